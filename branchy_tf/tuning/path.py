"""A path from the safest thresholds to the cheapest, and how far it is proven."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf.policy import exit_indices, exits_by_vector, flushed
from branchy_tf.thresholds.guarantee import safest_first
from branchy_tf.tuning import bounds
from branchy_tf.tuning.evidence import Evidence

# More rows would only take longer.
_MOST_SHAPING = 2000


class ThresholdPath:
    """Threshold vectors, safest first, and what the testing rows say of each.

    One walks outward as long as each vector passes and stops at the first that does
    not. The rows that test did not shape the path, so that nothing was chosen by luck
    on them: going too far would need the first vector that is too bold to pass.

    Args:
        vectors: [V, N-1], the first all 0.
        savings: [V], of the cost of a row.

    Attributes:
        vectors: float32 [V, N-1].
        losses: int [V], testing rows that would have left with another answer.
        rows: how many tested.
        savings: float64 [V].
    """

    def __init__(self, vectors: Any, savings: Any) -> None:
        self.vectors = flushed(vectors)
        self.savings = np.asarray(savings, np.float64)
        self.losses = np.zeros(len(self.vectors), np.int64)
        self.rows = 0

    @classmethod
    def shaped(cls, evidence: Evidence, costs: np.ndarray) -> ThresholdPath:
        """The path that the shaping rows give, tested on the others."""
        shaping = np.flatnonzero(evidence.shapes)[-_MOST_SHAPING:]
        scores, agrees = evidence.scores[shaping], evidence.agrees[shaping]
        vectors = safest_first(scores, agrees, costs)
        left = (exit_indices(evidence.scores, vector) for vector in vectors)
        path = cls(vectors, [costs[-1] - costs[exits].mean() for exits in left])
        tests = ~evidence.shapes
        path.count(evidence.scores[tests], evidence.agrees[tests])
        return path

    def count(self, scores: np.ndarray, agrees: np.ndarray) -> None:
        """Takes in testing rows: scores float32 [m, N], agrees bool [m, N]."""
        exits = exits_by_vector(scores, self.vectors)
        self.losses += np.count_nonzero(~agrees[np.arange(len(scores)), exits], axis=1)
        self.rows += len(scores)

    def hoped(self, rate: float) -> int:
        """How far one could go by the plain count, losses at most `rate` of the rows."""
        return self._furthest(self.losses <= rate * self.rows)

    def proven(self, rate: float, budget: float, confidence: float) -> int:
        """How far one may go: as `hoped`, and agreement of `budget` is proven."""
        passed = bounds.is_proven(self.losses, self.rows, budget, confidence)
        return self._furthest(passed & (self.losses <= rate * self.rows))

    def _furthest(self, passed: np.ndarray) -> int:
        # With thresholds of 0 all agree, and there is nothing to prove.
        failed = ~passed[1:]
        return int(failed.argmax()) if failed.any() else len(failed)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {
            "vectors": self.vectors,
            "savings": self.savings,
            "losses": self.losses.copy(),
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ThresholdPath:
        """Raises KeyError, TypeError or ValueError if it is not from `to_json`."""
        path = cls(value["vectors"], value["savings"])
        path.losses += np.array(value["losses"], np.int64)
        path.rows = int(value["rows"])
        return path

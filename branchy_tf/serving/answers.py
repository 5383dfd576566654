"""Checks a server's answers against every exit's known answers."""

from __future__ import annotations

import dataclasses

import numpy as np

from branchy_tf.results import Predictions
from branchy_tf.thresholds import exits_early


@dataclasses.dataclass(frozen=True)
class ExpectedAnswers:
    """Every exit's answer to each of n images; thresholds select the expected one.

    Attributes:
        probabilities: float32 [n, N, classes].
        scores: float32 [n, N].
        tolerance: largest difference allowed. Batch size and processor change the order
            of additions.

    Example:

    ```python
    expected = ExpectedAnswers(*predictor.all_exits(images))
    answer = client.predict(images[3:5], thresholds=[0.1])
    expected.right(answer, np.array([3, 4]), [0.1])    # array([True, True])
    ```
    """

    probabilities: np.ndarray
    scores: np.ndarray
    tolerance: float = 1e-4

    def right(
        self, answer: Predictions, rows: np.ndarray, thresholds: np.ndarray
    ) -> np.ndarray:
        """Which rows of an answer are correct.

        Args:
            answer: of B rows.
            rows: int [B], indices of the images.
            thresholds: N-1 numbers or [B, N-1], as sent.

        Returns:
            bool [B]. A row whose score equals its threshold may exit or stay.
        """
        exits, each = answer.exits, np.arange(len(rows))
        num_exits, classes = self.probabilities.shape[1:]
        if exits.shape != rows.shape or answer.probabilities.shape[1:] != (classes,):
            return np.zeros(len(rows), bool)
        there = (exits >= 0) & (exits < num_exits)
        exits = np.where(there, exits, 0)
        return (
            there
            & self._possible(rows, np.asarray(thresholds))[each, exits]
            & self._near(answer.probabilities, self.probabilities[rows, exits]).all(1)
            & self._near(answer.scores, self.scores[rows, exits])
        )

    def _possible(self, rows: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Bool [B, N], the exits possible for each row within the tolerance."""
        scores = self.scores[rows, :-1]
        # No score is below 0, whatever the tolerance.
        may_leave = exits_early(scores, thresholds + self.tolerance) & (thresholds > 0)
        may_stay = ~exits_early(scores, thresholds - self.tolerance)
        always = np.ones((len(rows), 1), bool)
        reached = np.logical_and.accumulate(np.hstack([always, may_stay]), axis=1)
        return reached & np.hstack([may_leave, always])

    def _near(self, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return np.abs(found - expected) <= self.tolerance

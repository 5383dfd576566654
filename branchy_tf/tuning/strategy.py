"""When to leave early, when to ask every exit, and when to begin anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.policy import exit_indices, flushed
from branchy_tf.thresholds import agreement
from branchy_tf.tuning import bounds, change
from branchy_tf.tuning.evidence import Evidence
from branchy_tf.tuning.path import ThresholdPath

# Chosen on validation images under drifts that no figure is reported for (brighter,
# darker, turned, speckled): see zoo/studies/tuner.md.
_CONFIDENCE = 0.95  # of all proofs since a change
_CHANCE = 0.005  # with which a window may break the budget
_SUSPICIOUS, _CERTAIN = 3e3, 1e7  # levels of the alarm
_PROBATION = 500  # rows after which a suspicion counts as a change
_MOST_ROWS = 6000  # of evidence
_FEWEST_ROWS, _GROWTH = 600, 1.5  # of the evidence, for a first path and another


class Strategy:
    """Chooses thresholds from what is seen, without asking anybody for anything.

    It is in one of three states. *Learning*: thresholds are 0, every row asks all
    exits, which costs no more then. *Tuned*: the cheapest thresholds whose agreement
    is proven are in force, and a share of the rows asks all exits. *Suspicious*: the
    alarm is up; thresholds are 0 and every row asks all exits until the alarm falls,
    and all is as it was, or until the change is certain. Then what was known before
    is forgotten, and the rows since the suspicion begin the next learning.

    What is promised, for rows drawn alike since the last change: with probability
    0.95 no thresholds are ever in force with which less than `budget` of all rows would
    agree (see `bounds`); beyond 6,000 rows of evidence, where the oldest are dropped,
    at each time rather than at all times. Single windows are aimed at, not promised: a
    window breaks the budget with a chance of about 1 in 200. Nothing is promised of the
    rows between a change and the alarm: how many they are depends on the change (see
    `change`).

    Args:
        costs: N, cumulative by exit.
        budget: the least share of the rows that is to agree with the last exit.
        window: in every so many rows.
        share: of the rows that ask all exits when all is well.
        seed: of what parts rows with equal scores.

    Raises:
        BranchyError: arguments out of range.

    Example:

    ```python
    strategy = Strategy(costs=[1, 4])
    thresholds = strategy.observe(scores, labels)   # [B, N] each, of all exits
    thresholds = strategy.watch(exits, scores)      # [B] each, of rows that left
    ```
    """

    def __init__(
        self,
        costs: Sequence[float],
        budget: float = 0.99,
        window: int = 2000,
        share: float = 0.01,
        seed: int = 0,
    ) -> None:
        budget, share = _real("budget", budget), _real("share", share)
        window = checks.whole_number("window", window, at_least=1)
        seed = checks.whole_number("seed", seed, at_least=0)
        self._costs = _checked(costs, budget, window, share)
        self._budget = budget
        self._rate = bounds.rate_to_aim_at(budget, window, _CHANCE)
        self._least_share = share
        self._random = np.random.default_rng(seed)
        self._alarm = change.Alarm(budget)
        self.suspicions = self.changes = 0
        self._begin()

    def _begin(self) -> None:
        self._alarm.reset()
        self._evidence = self._no_rows()
        self._fresh: Evidence | None = None  # rows since a suspicion
        self._path: ThresholdPath | None = None
        self._shaped_at = self._paths = 0
        self._taken = 0
        self._tuned = np.zeros(len(self._costs) - 1, np.float32)
        self._known = np.zeros(0)
        self._share = 1.0

    def _no_rows(self) -> Evidence:
        return Evidence(len(self._costs), _MOST_ROWS)

    @property
    def state(self) -> str:
        """One of "learning", "tuned" and "suspicious"."""
        if self._fresh is not None:
            return "suspicious"
        return "tuned" if self._tuned.any() else "learning"

    @property
    def thresholds(self) -> np.ndarray:
        """Those in force, float32 [N-1]."""
        return self._tuned if self.state == "tuned" else np.zeros_like(self._tuned)

    @property
    def share(self) -> float:
        """Of the rows to come, how many should ask all exits."""
        return self._share if self.state == "tuned" else 1.0

    def status(self) -> dict[str, Any]:
        """State, thresholds, share, rows of evidence, and the bound on agreement."""
        path = self._path
        return {
            "state": self.state,
            "thresholds": self.thresholds.tolist(),
            "share": self.share,
            "rows": len(self._evidence),
            "agreement_bound": (
                bounds.lower_bound(
                    int(path.losses[self._taken]), path.rows, self._confidence
                )
                if path is not None and self.state == "tuned"
                else 1.0
            ),
            "suspicions": self.suspicions,
            "changes": self.changes,
        }

    @property
    def _confidence(self) -> float:
        """Of the present path's proofs: 1/2, 1/6, 1/12, ... of the doubt are 1 in all."""
        return 1 - (1 - _CONFIDENCE) / (self._paths * (self._paths + 1))

    def forget(self) -> None:
        """Begins anew, e.g. with another version of the model."""
        self._begin()

    def observe(self, scores: Any, labels: Any) -> np.ndarray:
        """Takes in rows of which every exit was asked.

        Args:
            scores: [B, N].
            labels: int [B, N], the answer of each exit.

        Returns:
            The thresholds in force from now on.

        Raises:
            BranchyError: shapes that do not fit.
        """
        scores, agrees = self._checked_rows(scores, labels)
        if self._tuned.any():
            exits = exit_indices(scores, self._tuned)
            rows = np.arange(len(scores))
            self._listen(exits, scores[rows, exits], ~agrees[rows, exits])
        if self._fresh is None:
            self._learn(scores, agrees)
        else:
            self._fresh.add(scores, agrees)
            self._judge(self._fresh)
        return self.thresholds

    def watch(self, exits: Any, scores: Any) -> np.ndarray:
        """Takes in rows that left with the thresholds in force.

        Args:
            exits: int [B], 0-based.
            scores: [B], at that exit.

        Returns:
            The thresholds in force from now on.
        """
        if self.state == "tuned":
            exits, scores = np.asarray(exits), np.asarray(scores, np.float32)
            self._listen(exits, scores, np.full(len(exits), None))
        return self.thresholds

    def _listen(self, exits: np.ndarray, scores: np.ndarray, lost: np.ndarray) -> None:
        places = change.places(exits, scores)
        ranks = change.ranks(self._known, places, self._random)
        highest = max(map(self._alarm.see, ranks, lost), default=0.0)
        if self._fresh is None and highest >= _SUSPICIOUS:
            self.suspicions += 1
            self._fresh = self._no_rows()

    def _judge(self, fresh: Evidence) -> None:
        """Ends a suspicion if it can be."""
        level = self._alarm.level
        if level >= _CERTAIN or len(fresh) >= _PROBATION:
            self.changes += 1
            self._begin()
            self._learn(fresh.scores, fresh.agrees)
        elif level < _SUSPICIOUS:
            self._fresh = None
            self._learn(fresh.scores, fresh.agrees)

    def _learn(self, scores: np.ndarray, agrees: np.ndarray) -> None:
        tests = self._evidence.add(scores, agrees)
        if self._evidence.ever >= max(_FEWEST_ROWS, _GROWTH * self._shaped_at):
            self._path = ThresholdPath.shaped(self._evidence, self._costs)
            self._shaped_at = self._evidence.ever
            self._paths += 1
        elif self._path is not None:
            self._path.count(scores[tests], agrees[tests])
        if self._path is not None:
            self._choose(self._path)

    def _choose(self, path: ThresholdPath) -> None:
        hoped = path.hoped(self._rate)
        self._taken = path.proven(self._rate, self._budget, self._confidence)
        # More labels are worth what they may still gain.
        gained = path.savings[self._taken] / max(path.savings[hoped], 1e-12)
        self._share = float(np.clip(1 - gained, self._least_share, 1))
        if (path.vectors[self._taken] != self._tuned).any():
            self._tuned = path.vectors[self._taken]
            self._known = np.sort(change.places(*self._evidence.where_left(self._tuned)))

    def _checked_rows(self, scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        scores = flushed(checks.real_array("scores", scores))
        labels = checks.real_array("labels", labels)
        number = len(self._costs)
        if scores.ndim != 2 or scores.shape != labels.shape or scores.shape[1] != number:
            raise BranchyError(
                f"Expected scores and labels of all {number} exits, [B, {number}] each. "
                f"Received {scores.shape} and {labels.shape}."
            )
        # Neither NaN nor infinity ever leaves, and infinity has its place in JSON.
        return np.where(np.isnan(scores), np.inf, scores), agreement(labels)

    def to_json(self) -> dict[str, Any]:
        """All that it knows, for `from_json`."""
        return {
            "costs": self._costs,
            "budget": self._budget,
            "evidence": self._evidence.to_json(),
            "fresh": None if self._fresh is None else self._fresh.to_json(),
            "path": None if self._path is None else self._path.to_json(),
            "shaped_at": self._shaped_at,
            "paths": self._paths,
            "thresholds": self._tuned,
            "alarm": self._alarm.to_json(),
            "suspicions": self.suspicions,
            "changes": self.changes,
        }

    def from_json(self, value: dict[str, Any]) -> None:
        """Goes on where another strategy of the same costs and budget was.

        Raises:
            KeyError, TypeError, ValueError: not from `to_json`.
        """
        self._begin()
        self._evidence.from_json(value["evidence"])
        self._alarm.from_json(value["alarm"])
        if value["fresh"] is not None:
            self._fresh = self._no_rows().from_json(value["fresh"])
        if value["path"] is not None:
            self._paths = int(value["paths"])
            self._path = ThresholdPath.from_json(value["path"])
            self._choose(self._path)
        if not np.array_equal(self._tuned, flushed(value["thresholds"])):
            raise ValueError("its thresholds do not follow from its evidence")
        self._shaped_at = int(value["shaped_at"])
        self.suspicions, self.changes = int(value["suspicions"]), int(value["changes"])


def _real(name: str, value: Any) -> float:
    return checks.real_number(name, value, infinite=True)


def _checked(costs: Any, budget: float, window: int, share: float) -> np.ndarray:
    """The costs, float64 [N]."""
    values = checks.real_array("costs", costs).astype(np.float64, copy=False)
    rising = values.ndim == 1 and len(values) > 1 and values[0] > 0
    if not rising or not (np.diff(values) > 0).all() or not np.isfinite(values).all():
        raise BranchyError(
            "Costs must be cumulative, positive and rise from exit to exit, one for each "
            f"of two exits or more. Received {checks.shown(costs)}."
        )
    if not 0 < budget < 1:
        raise BranchyError(
            f"The budget is the least share that agrees, between 0 and 1, for example "
            f"0.99; nobody can promise 1. Received {budget}."
        )
    if not window * (1 - budget) >= 1 - 1e-9:
        raise BranchyError(
            f"A window of {window} rows allows not even one to disagree within a budget "
            f"of {budget}. Give a window of {int(np.ceil(1 / (1 - budget) - 1e-9))} rows "
            "or more."
        )
    if not 0 < share <= 1:
        raise BranchyError(
            "The share of requests that ask every exit is above 0 and at most 1, for "
            f"example 0.01. Received {share}."
        )
    return values

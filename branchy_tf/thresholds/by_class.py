"""Accuracy by class, and thresholds that spare every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from branchy_tf.policy import exits_by_vector
from branchy_tf.thresholds.counting import Point, evaluate_all, undominated
from branchy_tf.thresholds.search import harmed_by_exiting, thin, threshold_cuts

# Vectors of the grid that the search starts from, and cuts tried of each exit.
_GRID = 4096
_CUTS = 256
# With more early exits, even the smallest useful grid is too large.
_MAX_GRID_EXITS = 7
# Points that are refined, and how often.
_REFINED = 32
_SWEEPS = 2
# Cells of one block, which takes tens of megabytes.
_BLOCK = 4_000_000


def class_drops(
    correct: np.ndarray, exits: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """How far early exit is below the final exit on each class.

    Args:
        correct: bool [n, N], whether each exit is correct.
        exits: int [n], the exit that each row takes, 0-based.
        labels: int [n].
        classes: the number of classes.

    Returns:
        float64 [classes], accuracy of the final exit minus that of early exit; NaN for
        a class without rows.

    Example:

    ```python
    class_drops(correct, policy.exit_indices(scores), labels, 10).max()
    ```
    """
    taken = correct[np.arange(len(labels)), exits]
    lost = correct[:, -1].astype(np.int64) - taken
    rows = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, lost, minlength=classes) / rows


def within_class_drop(
    scores: np.ndarray,
    correct: np.ndarray,
    right: np.ndarray,
    labels: np.ndarray,
    costs: np.ndarray,
    max_class_drop: float,
    points: Sequence[Point],
) -> list[Point]:
    """The Pareto frontier among thresholds that cost no class more than a drop.

    Exact for two exits. For more, the best of a grid and of a frontier, refined one exit
    at a time: good, but not proven optimal.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N], whether each exit is correct; bounds the drop of each
            class.
        right: bool [n, N], what the accuracy of the points counts.
        labels: int [n].
        costs: [N], cumulative.
        max_class_drop: the largest drop of accuracy of a class below the final exit, a
            fraction of 1.
        points: the frontier without this bound.

    Returns:
        Points in order of increasing cost and accuracy; never empty, since without early
        exit no class loses anything.
    """
    costs = np.asarray(costs, np.float64)
    early = scores.shape[1] - 1
    cuts = []
    for k in range(early):
        harmed = harmed_by_exiting(correct, costs, k) | harmed_by_exiting(right, costs, k)
        cut = threshold_cuts(scores[:, k], harmed)
        cuts.append(cut if early == 1 else thin(cut, scores[:, k], _CUTS))
    # A threshold of 0, so that exits can be left out.
    cuts = [np.unique(np.append(np.float32(0), cut)) for cut in cuts]
    known = _Feasible(scores, correct, right, labels, costs, max_class_drop)
    known.add(np.array([point.thresholds for point in points], np.float32))
    if early == 1:
        known.add(cuts[0][:, None])
    elif 1 < early <= _MAX_GRID_EXITS:
        most = max(int(_GRID ** (1 / early)), 3)
        coarse = [thin(cut, scores[:, k], most) for k, cut in enumerate(cuts)]
        grid = np.meshgrid(*coarse)
        known.add(np.stack([axis.ravel() for axis in grid], axis=1))
    for _ in range(_SWEEPS if early > 1 else 0):
        best = known.points()
        chosen = np.unique(np.linspace(0, len(best) - 1, _REFINED).round().astype(int))
        for k, cut in enumerate(cuts):
            for i in chosen:
                vectors = np.tile(np.float32(best[i].thresholds), (len(cut), 1))
                vectors[:, k] = cut
                known.add(vectors)
    return known.points()


class _Feasible:
    """Points whose classes all stay within the drop."""

    def __init__(
        self,
        scores: np.ndarray,
        correct: np.ndarray,
        right: np.ndarray,
        labels: np.ndarray,
        costs: np.ndarray,
        max_class_drop: float,
    ) -> None:
        self._arrays = (scores, right, costs)
        self._correct = correct
        names, index = np.unique(labels, return_inverse=True)
        self._of_class = np.eye(len(names), dtype=np.float32)[index]
        rows = self._of_class.sum(axis=0)
        final = correct[:, -1].astype(np.float32) @ self._of_class
        # The tolerance is far below one row of any data set.
        self._least = final - max_class_drop * rows - 1e-6 * rows
        self._points: list[Point] = []
        self.add(np.zeros((1, scores.shape[1] - 1), np.float32))

    def add(self, vectors: np.ndarray) -> None:
        """Adds those of the vectors, float32 [V, N-1], that are within the drop."""
        scores, right, costs = self._arrays
        step = max(_BLOCK // len(scores), 1)
        rows = np.arange(len(scores))
        kept = []
        for start in range(0, len(vectors), step):
            some = vectors[start : start + step]
            exits = exits_by_vector(scores, some)
            taken = self._correct[rows, exits].astype(np.float32)
            fit = (taken @ self._of_class >= self._least).all(axis=1)
            kept += list(some[fit])
        if kept:
            self._points += evaluate_all(scores, right, costs, kept)
            self._points = self.points()

    def points(self) -> list[Point]:
        """The Pareto-optimal points so far, in order of increasing cost."""
        best = undominated(
            [p.accuracy for p in self._points], [p.cost for p in self._points]
        )
        return [self._points[i] for i in best]

"""The best thresholds on calibration data: accuracy against expected cost."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from branchy_tf.thresholds import grid
from branchy_tf.thresholds.cuts import stoppers, thin, threshold_cuts
from branchy_tf.thresholds.descent import refine
from branchy_tf.thresholds.points import Point, check_arrays, evaluate_all, undominated

# Vectors that a grid may have; a second or so for 10 million of them.
_MAX_VECTORS = 12_000_000
# The fewest thresholds of a gate that make a grid worth its name.
_LEAST_CUTS = 12
# With more gates than this, so many thresholds each would take too long.
_MAX_GRID_GATES = 7


def frontier(scores: Any, correct: Any, costs: Any) -> list[Point]:
    """The thresholds that no others beat in both accuracy and cost.

    Exact, over all thresholds there are, for two and three exits, and for more
    as long as the vectors worth comparing number at most 12 million (see
    `cuts.threshold_cuts`: most need no comparing). Beyond, the best on a grid of
    12 quantiles or more an exit, refined over all scores, one exit at a time.
    With more than eight exits refinement alone: good, but not proven the best.

    Args:
        scores: [n, N] float32.
        correct: [n, N] bool.
        costs: [N] cumulative. If they do not increase, a warning says so.

    Returns:
        Points of rising cost and rising accuracy. The first is the cheapest
        there is, the last the most accurate. Rows of equal score leave together.

    Raises:
        BranchyError: shapes that do not fit together, or no rows.

    Example:

    ```python
    for point in frontier(scores, correct, costs):
        print(point.accuracy, point.cost, point.thresholds)
    ```
    """
    scores, correct, costs = check_arrays(scores, correct, costs)
    if (np.diff(costs) <= 0).any():
        warnings.warn(
            f"The costs {costs.tolist()} do not increase from exit to exit: leaving "
            "early need not save anything.",
            stacklevel=2,
        )
    gates = scores.shape[1] - 1
    cuts = [
        threshold_cuts(scores[:, k], stoppers(correct, costs, k)) for k in range(gates)
    ]
    if gates <= 2 or math.prod(map(len, cuts)) <= _MAX_VECTORS:
        return _points(
            scores, correct, costs, grid.cheapest(scores, correct, costs, cuts)
        )
    vectors: list = [np.zeros(gates, np.float32)]
    if gates <= _MAX_GRID_GATES:
        most = max(math.floor(_MAX_VECTORS ** (1 / gates)), _LEAST_CUTS)
        cuts = [thin(cut, scores[:, k], most) for k, cut in enumerate(cuts)]
        vectors = grid.cheapest(scores, correct, costs, cuts)
    coarse = _points(scores, correct, costs, vectors)
    fine = refine(scores, correct, costs, coarse)
    return _points(scores, correct, costs, [*vectors, *fine])


def _points(scores: Any, correct: Any, costs: Any, vectors: list) -> list[Point]:
    """The undominated of some threshold vectors, by a count on the rows."""
    points = evaluate_all(scores, correct, costs, vectors)
    best = undominated([p.accuracy for p in points], [p.cost for p in points])
    return [points[i] for i in best]

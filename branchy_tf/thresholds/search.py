"""The best thresholds on calibration data: accuracy against expected cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.thresholds.cuts import threshold_cuts
from branchy_tf.thresholds.descent import descend
from branchy_tf.thresholds.rule import exit_indices

# How many threshold vectors are compared at most. Two exits stay far below it
# and are searched exactly; for three it allows 2,000 thresholds each, for seven 12.
_MAX_VECTORS = 4_000_000
# With more gates than this a grid would have too few thresholds for each.
_MAX_GRID_GATES = 6


@dataclasses.dataclass(frozen=True)
class Point:
    """What one vector of thresholds does on the calibration data.

    Attributes:
        thresholds: N-1 numbers.
        accuracy: share of the rows answered rightly.
        cost: expected cost of a row, in the unit of the costs given.
        exit_rates: N shares, of the rows that leave at each exit.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    exit_rates: tuple[float, ...]


def evaluate(scores: Any, correct: Any, costs: Any, thresholds: Any) -> Point:
    """Counts what `thresholds` do on stored scores.

    Args:
        scores: [n, N] float32, the score of each row at each exit.
        correct: [n, N] bool, whether that exit alone answers the row rightly.
        costs: [N], cumulative cost of leaving at each exit.
        thresholds: N-1 numbers.

    Returns:
        A `Point`.
    """
    scores, correct, costs = _check(scores, correct, costs)
    exits = exit_indices(scores, thresholds)
    counts = np.bincount(exits, minlength=scores.shape[1])
    right = int(correct[np.arange(len(exits)), exits].sum())
    return Point(
        tuple(float(t) for t in thresholds),
        right / len(exits),
        float(counts @ costs) / len(exits),
        tuple((counts / len(exits)).tolist()),
    )


def frontier(scores: Any, correct: Any, costs: Any) -> list[Point]:
    """The thresholds that no others beat in both accuracy and cost.

    All thresholds that differ on these rows are compared for two exits, and
    for more as long as there are at most 4 million vectors of them; beyond,
    those on a grid of quantiles of the scores. With more than seven exits the
    points come from a descent, one exit at a time, and are good but not proven
    to be the best.

    Args:
        scores: [n, N] float32.
        correct: [n, N] bool.
        costs: [N] cumulative.

    Returns:
        Points of rising cost and rising accuracy. The first is the cheapest
        there is, the last the most accurate.

    Raises:
        BranchyError: shapes that do not fit together, or no rows.

    Example:

    ```python
    for point in frontier(scores, correct, costs):
        print(point.accuracy, point.cost, point.thresholds)
    ```
    """
    scores, correct, costs = _check(scores, correct, costs)
    gates = scores.shape[1] - 1
    if gates > _MAX_GRID_GATES:
        vectors = descend(scores, correct, costs)
        points = [evaluate(scores, correct, costs, vector) for vector in vectors]
        best = _undominated([p.accuracy for p in points], [p.cost for p in points])
        return [points[i] for i in best]
    per_exit = math.floor(_MAX_VECTORS ** (1 / max(gates, 1)) + 1e-9)
    cuts = [threshold_cuts(scores[:, k], per_exit) for k in range(gates)]
    right, cost = _tables(scores, correct, costs, cuts)
    return [
        evaluate(
            scores,
            correct,
            costs,
            [
                cut[i]
                for cut, i in zip(cuts, np.unravel_index(index, right.shape), strict=True)
            ],
        )
        for index in _undominated(right.ravel(), cost.ravel())
    ]


def _undominated(right: Any, cost: Any) -> np.ndarray:
    """Indices of the points that none beats in both, by rising cost."""
    right = np.asarray(right)
    # By cost, and the most accurate first among equals; stable, so that of equal
    # vectors the one with the lowest thresholds stays.
    order = np.lexsort((-right, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-1], right[order][:-1]]))
    return order[right[order] > best_before]


def check_budget(
    max_accuracy_drop: float | None, min_accuracy: float | None, max_cost: float | None
) -> None:
    """Raises `BranchyError` for more than one budget, or one out of range."""
    budgets = [b for b in (max_accuracy_drop, min_accuracy, max_cost) if b is not None]
    if len(budgets) > 1:
        raise BranchyError(
            "Give one of max_accuracy_drop, min_accuracy and the cost limit, not "
            f"{len(budgets)} of them."
        )
    for name, value in (
        ("max_accuracy_drop", max_accuracy_drop),
        ("min_accuracy", min_accuracy),
    ):
        if value is not None and not 0 <= value <= 1:
            raise BranchyError(
                f"`{name}` is a fraction of 1, from 0 to 1. Received {value}."
            )
    if max_cost is not None and not max_cost > 0:
        raise BranchyError(f"The cost limit must be positive. Received {max_cost}.")


def choose(
    scores: Any,
    correct: Any,
    costs: Any,
    max_accuracy_drop: float | None = None,
    min_accuracy: float | None = None,
    max_cost: float | None = None,
) -> Point:
    """The best point of the frontier within one budget.

    Args:
        scores: [n, N] float32.
        correct: [n, N] bool.
        costs: [N] cumulative.
        max_accuracy_drop: the cheapest point whose accuracy is at most this much
            below the final exit's on the same rows. The default budget: 0.
        min_accuracy: the cheapest point at least this accurate.
        max_cost: the most accurate point at most this expensive.

    Returns:
        A `Point`.

    Raises:
        BranchyError: more than one budget, or one that cannot be reached.

    Example:

    ```python
    point = choose(scores, correct, costs, max_accuracy_drop=0.005)
    ```
    """
    check_budget(max_accuracy_drop, min_accuracy, max_cost)
    points = frontier(scores, correct, costs)
    if max_cost is not None:
        within = [point for point in points if point.cost <= max_cost]
        if not within:
            raise BranchyError(
                f"No thresholds cost at most {max_cost:,.0f}; the cheapest there are "
                f"cost {points[0].cost:,.0f}, with accuracy {points[0].accuracy:.4f}."
            )
        return within[-1]
    if min_accuracy is None:
        min_accuracy = float(np.mean(_check(scores, correct, costs)[1][:, -1]))
        min_accuracy -= max_accuracy_drop or 0.0
    for point in points:
        # Far less than one row in any data set, far more than float error.
        if point.accuracy >= min_accuracy - 1e-12:
            return point
    raise BranchyError(
        f"No thresholds reach accuracy {min_accuracy:.4f}; the best there are reach "
        f"{points[-1].accuracy:.4f}, at cost {points[-1].cost:,.0f}."
    )


def count_losses_only(correct: Any) -> np.ndarray:
    """Correctness in which no row that an exit wins makes up for one it loses.

    A row counts as right at an exit unless the final exit alone is right. With
    these, an accuracy drop is the share of rows that leaving early answers
    wrongly although the full network knew them: never less than the drop in
    accuracy, and far less a matter of luck on few rows.

    Args:
        correct: [n, N] bool.

    Returns:
        [n, N] bool.

    References:
        The clipped loss of Fast yet Safe (Jazbec et al., NeurIPS 2024).
    """
    correct = np.asarray(correct)
    return correct | ~correct[:, -1:]


def _check(scores: Any, correct: Any, costs: Any) -> tuple:
    scores = np.asarray(scores, np.float32)
    correct = np.asarray(correct)
    costs = np.asarray(costs, np.float64)
    if (
        scores.ndim != 2
        or scores.shape != correct.shape
        or correct.dtype != bool
        or costs.shape != scores.shape[1:]
    ):
        raise BranchyError(
            "Expected scores [n, N], correct [n, N] of bool and costs [N]. Received "
            f"scores {scores.shape}, correct {correct.shape} of {correct.dtype}, costs "
            f"{costs.shape}."
        )
    if not len(scores):
        raise BranchyError("There are no rows to calibrate on; expected at least one.")
    if not (np.isfinite(costs).all() and (costs > 0).all()):
        raise BranchyError(f"Costs must be positive. Received {costs.tolist()}.")
    return scores, correct, costs


def _tables(
    scores: np.ndarray, correct: np.ndarray, costs: np.ndarray, cuts: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows answered rightly, and total cost, for every vector of cuts.

    A row leaves exit k at cut i exactly if i >= first[k], where first[k] counts
    the cuts that are not above its score. How many rows go past exits 1 ... k-1
    and leave at k, for all vectors at once, is then a histogram of `first` summed
    up along each axis (a summed-area table).
    """
    num_exits = len(costs)
    grid = tuple(len(cut) for cut in cuts)
    # A NaN score sorts above every cut: the row never leaves there.
    first = [np.searchsorted(cut, scores[:, k], "right") for k, cut in enumerate(cuts)]
    right = np.zeros(grid, np.int64)
    cost = np.zeros(grid, np.float64)
    for k in range(num_exits):
        axes = min(k + 1, num_exits - 1)
        sizes = tuple(size + 1 for size in grid[:axes])
        cells = np.zeros(len(scores), np.int64)
        if axes:
            cells = np.ravel_multi_index(tuple(first[:axes]), sizes)
        spread = (...,) + (None,) * (num_exits - 1 - axes)
        for total, weights in ((right, correct[:, k]), (cost, None)):
            table = np.bincount(cells, weights, math.prod(sizes)).reshape(sizes)
            for axis in range(axes):
                if axis == k:
                    table = table.cumsum(axis).take(range(grid[axis]), axis)
                else:
                    beyond = np.flip(np.flip(table, axis).cumsum(axis), axis)
                    table = beyond.take(range(1, grid[axis] + 1), axis)
            if weights is None:
                total += costs[k] * table[spread]
            else:
                total += np.rint(table[spread]).astype(np.int64)
    return right, cost

"""The best thresholds on calibration data: accuracy against expected cost.

`frontier` compares all vectors of a grid with summed-area tables. The grid consists of
the few thresholds that are worth trying at each exit (`threshold_cuts`). Where it would
be too large, the search refines a coarser grid one exit at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf.policy import SMALLEST, exits_early, flushed
from branchy_tf.thresholds.counting import Point, check_arrays, evaluate_all, undominated

# The largest grid; 10 million vectors take about a second.
_MAX_VECTORS = 12_000_000
# The smallest useful number of thresholds per exit.
_LEAST_CUTS = 12
# With more early exits, even a grid of the smallest useful size would take too long.
_MAX_GRID_EXITS = 7
# Cells of the grid in one block, which takes tens of megabytes.
_BLOCK = 1_000_000
# Prices of a full network's cost in accuracy; at 0 only accuracy counts.
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 50)])
_MOST_SWEEPS = 20


def frontier(scores: Any, correct: Any, costs: Any) -> list[Point]:
    """The Pareto frontier of thresholds in accuracy and cost.

    The result is exact over all possible thresholds for two and three exits, and for
    more exits if at most 12 million vectors are worth comparing (see `threshold_cuts`).
    Beyond that, it is the best of a grid of at least 12 quantiles per exit, refined over
    all scores one exit at a time. With more than eight exits it comes from refinement
    alone: good, but not proven optimal.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: [N], cumulative. If they do not increase, a warning says so.

    Returns:
        Points in order of increasing cost and accuracy, from the cheapest to the most
        accurate. Rows of equal score exit together.

    Raises:
        BranchyError: the shapes do not match, or there are no rows.

    Example:

    ```python
    for point in frontier(scores, correct, costs):
        print(point.accuracy, point.cost, point.thresholds)
    ```
    """
    scores, correct, costs = check_arrays(scores, correct, costs)
    if (np.diff(costs) <= 0).any():
        warnings.warn(
            f"The costs {costs.tolist()} do not increase from exit to exit: early exit "
            "may not save anything.",
            stacklevel=2,
        )
    early = scores.shape[1] - 1
    cuts = [
        threshold_cuts(scores[:, k], harmed_by_exiting(correct, costs, k))
        for k in range(early)
    ]
    if early <= 2 or math.prod(map(len, cuts)) <= _MAX_VECTORS:
        return _points(scores, correct, costs, best_of_grid(scores, correct, costs, cuts))
    vectors: list = [np.zeros(early, np.float32)]
    if early <= _MAX_GRID_EXITS:
        most = max(math.floor(_MAX_VECTORS ** (1 / early)), _LEAST_CUTS)
        cuts = [thin(cut, scores[:, k], most) for k, cut in enumerate(cuts)]
        vectors = best_of_grid(scores, correct, costs, cuts)
    coarse = _points(scores, correct, costs, vectors)
    fine = refine(scores, correct, costs, coarse)
    return _points(scores, correct, costs, [*vectors, *fine])


def _points(scores: Any, correct: Any, costs: Any, vectors: list) -> list[Point]:
    """The Pareto-optimal points of some threshold vectors, counted on the rows."""
    points = evaluate_all(scores, correct, costs, vectors)
    best = undominated([p.accuracy for p in points], [p.cost for p in points])
    return [points[i] for i in best]


def threshold_cuts(scores: np.ndarray, harmed: np.ndarray) -> np.ndarray:
    """The candidate thresholds of one exit, in increasing order.

    A threshold just below rows that may safely exit is never optimal: raised past them,
    it saves their cost and loses nothing. So the candidates lie just below a row that
    exiting may harm, or above all rows. Thousands of scores give tens or hundreds of
    candidates.

    A candidate lies between neighbouring scores, or on the upper one if float32 has
    no number in between, which separates them too because the comparison is strict.
    The last lies just above the largest score instead of at infinity, so that a row
    less confident than any of these does not exit.

    Args:
        scores: float32 [n], at least 0; rows with NaN or infinity never exit.
        harmed: bool [n], rows that exiting may harm.

    Returns:
        float32, at least one number; [0] if no score is finite.
    """
    scores = flushed(scores)
    known = np.isfinite(scores)
    values = np.unique(scores[known])
    if not len(values):
        return np.zeros(1, np.float32)
    # Rows of equal score exit together, so one harmed row holds back all of them.
    below = np.searchsorted(values, np.unique(scores[known & harmed]))
    cuts = np.append(np.float32(0), between(values))
    return cuts[np.append(below, len(values))]


def thin(cuts: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the cuts: the next above each of evenly spaced quantiles.

    Moving from a quantile to the next cut above it only adds rows that may safely exit,
    so the best of these cuts is at least as good as the best of the quantiles.

    Args:
        cuts: float32, increasing, from `threshold_cuts`.
        scores: float32 [n].
        most: the largest number of cuts, at least 3.
    """
    if len(cuts) <= most:
        return cuts
    known = scores[np.isfinite(scores)]
    quantiles = np.quantile(known, np.linspace(0, 1, most - 1), method="inverted_cdf")
    above = np.searchsorted(cuts, quantiles, side="right").clip(max=len(cuts) - 1)
    return cuts[np.unique(np.append(0, above))]


def between(values: np.ndarray) -> np.ndarray:
    """Thresholds that separate each value from the next larger one.

    Args:
        values: float32, increasing, at least 0, none of them denormal.

    Returns:
        float32 of the same length, none of them denormal.
    """
    above = np.nextafter(values[-1], np.float32(np.inf))
    upper = np.append(values[1:], np.maximum(above, np.float32(SMALLEST)))
    middle = ((values.astype(np.float64) + upper) / 2).astype(np.float32)
    # No number fits between neighbours, nor below the smallest normal number.
    return np.where((middle > values) & (middle >= SMALLEST), middle, upper)


def harmed_by_exiting(correct: np.ndarray, costs: np.ndarray, k: int) -> np.ndarray:
    """Rows that exiting at exit k may harm: bool [n].

    These are the rows on which exit k is wrong and a later exit correct, or all rows if
    a later exit is cheaper.

    Args:
        correct: bool [n, N].
        costs: [N], cumulative.
        k: the exit, 0-based.
    """
    if (costs[k + 1 :] < costs[k]).any():
        return np.ones(len(correct), bool)
    return ~correct[:, k] & correct[:, k + 1 :].any(axis=1)


def best_of_grid(
    scores: np.ndarray, correct: np.ndarray, costs: np.ndarray, cuts: Sequence[np.ndarray]
) -> list[list[np.float32]]:
    """The cheapest vector of the grid for each number of correct rows.

    The grid is processed in blocks of the first exit's thresholds, so that memory does
    not grow with its size.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: float64 [N], cumulative.
        cuts: N-1 arrays of increasing thresholds.

    Returns:
        Vectors of N-1 thresholds, which include the Pareto-optimal ones of the grid.
    """
    if not cuts:
        return [[]]
    rows = len(scores)
    # A row takes exit k at cut i exactly if i >= first[k]. NaN sorts above all.
    first = [np.searchsorted(cut, scores[:, k], "right") for k, cut in enumerate(cuts)]
    sizes = [len(cut) for cut in cuts]
    rest = math.prod(sizes[1:])
    best_cost = np.full(rows + 1, np.inf)
    best_cell = np.full(rows + 1, -1, np.int64)
    step = max(_BLOCK // rest, 1)
    for start in range(0, sizes[0], step):
        count = min(step, sizes[0] - start)
        cells = [np.clip(first[0] - start, 0, count), *first[1:]]
        block = [count, *sizes[1:]]
        # Whole numbers stay exact in float64 up to 2^53.
        right = np.rint(_totals(cells, block, correct.astype(np.float64))).astype(np.intp)
        cost = _totals(cells, block, np.broadcast_to(costs, scores.shape))
        new = np.flatnonzero(cost < best_cost[right])
        right, cost = right[new], cost[new]
        np.minimum.at(best_cost, right, cost)
        # Of tied cells the last one written stays, which has the lowest thresholds.
        wins = np.flatnonzero(cost == best_cost[right])[::-1]
        best_cell[right[wins]] = start * rest + new[wins]
    # Retained: cheaper than all with more correct rows, up to rounding.
    others = np.append(np.minimum.accumulate(best_cost[::-1])[::-1][1:], np.inf)
    retained = best_cell[(best_cell >= 0) & (best_cost <= others * (1 + 1e-12))]
    found = np.unravel_index(retained, sizes)
    columns = [cut[index] for cut, index in zip(cuts, found, strict=True)]
    return [list(vector) for vector in zip(*columns, strict=True)]


def _totals(
    cells: Sequence[np.ndarray], sizes: Sequence[int], weights: np.ndarray
) -> np.ndarray:
    """The sum of the weights at the exits that the rows take, for every vector.

    Works from the final exit backwards: rows that pass an exit are summed beyond its
    cut, rows that take it up to its cut, and both sums go to the exit before.

    Args:
        cells: int [n] for each early exit, the first cut at which a row exits there.
        sizes: the number of cuts of each early exit.
        weights: float64 [n, N], the weight of each row at each exit.

    Returns:
        float64 [product of sizes], flat.

    References:
        Crow, Summed-area tables for texture mapping (1984).
    """
    onward = _histogram(cells, sizes, weights[:, -1])
    for k in reversed(range(len(sizes))):
        here = _histogram(cells[: k + 1], sizes[: k + 1], weights[:, k])
        here = here.cumsum(axis=k).take(range(sizes[k]), axis=k)
        beyond = np.flip(np.flip(onward, k).cumsum(axis=k), k)
        onward = beyond.take(range(1, sizes[k] + 1), axis=k)
        onward += here.reshape(here.shape + (1,) * (onward.ndim - here.ndim))
    return onward.ravel()


def _histogram(
    cells: Sequence[np.ndarray], sizes: Sequence[int], weights: np.ndarray
) -> np.ndarray:
    bins = tuple(size + 1 for size in sizes)
    flat = np.ravel_multi_index(tuple(cells), bins)
    return np.bincount(flat, weights, math.prod(bins)).reshape(bins)


def refine(
    scores: np.ndarray, correct: np.ndarray, costs: np.ndarray, starts: Sequence[Point]
) -> list[np.ndarray]:
    """Threshold vectors that no change of a single threshold improves, by price.

    For each of a series of prices, coordinate ascent maximises accuracy - price * cost
    from the best of the starts: it chooses the best threshold of one exit with all
    others fixed, until nothing changes. Each choice is exact over all scores: the rows
    that reach the exit are sorted, and their gains from exiting are summed up. The time
    is proportional to rows * exits.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: float64 [N], cumulative.
        starts: the points to start from, at least one.

    Returns:
        Vectors of N-1 thresholds, from the most accurate to the cheapest.
    """
    found = []
    for price in _PRICES:
        value = correct - price * costs / costs[-1]
        start = max(starts, key=lambda p: p.accuracy - price * p.cost / costs[-1])
        found.append(_ascend(scores, value, np.array(start.thresholds, np.float32)))
    return found


def _ascend(scores: np.ndarray, value: np.ndarray, vector: np.ndarray) -> np.ndarray:
    for _ in range(_MOST_SWEEPS):
        before = vector.copy()
        # From the last exit backwards, so that the thresholds before exit k are those
        # that `exited` was computed with.
        exited = np.logical_or.accumulate(exits_early(scores[:, :-1], vector), axis=1)
        # The value of each row if it passes exit k.
        onward = value[:, -1]
        for k in reversed(range(len(vector))):
            reach = ~exited[:, k - 1] if k else np.ones(len(scores), bool)
            vector[k] = _best(scores[reach, k], (value[:, k] - onward)[reach])
            onward = np.where(exits_early(scores[:, k], vector[k]), value[:, k], onward)
        if np.array_equal(vector, before):
            break
    return vector


def _best(scores: np.ndarray, gains: np.ndarray) -> np.float32:
    """The threshold with the largest sum of gains below it; the lowest of equals."""
    known = np.isfinite(scores)
    values, group = np.unique(scores[known], return_inverse=True)
    if not len(values):
        return np.float32(0)
    # Rows of equal score exit together.
    total = np.cumsum(np.bincount(group, gains[known]))
    best = int(total.argmax())
    return between(values)[best] if total[best] > 1e-12 else np.float32(0)

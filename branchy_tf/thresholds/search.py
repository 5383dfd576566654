"""The best thresholds on calibration data: accuracy against expected cost.

`frontier` compares the vectors of a whole grid by summed-area tables, of the few
thresholds that are worth trying at each exit (`threshold_cuts`), and refines what is
too large for a grid one exit at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf.policy import SMALLEST, flushed, leaves
from branchy_tf.thresholds.counting import Point, check_arrays, evaluate_all, undominated

# Vectors that a grid may have; a second or so for 10 million of them.
_MAX_VECTORS = 12_000_000
# The fewest thresholds of an exit that make a grid worth its name.
_LEAST_CUTS = 12
# With more early exits than this, so many thresholds each would take too long.
_MAX_GRID_EXITS = 7
# Cells of the grid that are looked at together; some tens of megabytes.
_BLOCK = 1_000_000
# Prices of a full network's cost in accuracy; at 0 only accuracy counts.
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 50)])
_MOST_SWEEPS = 20


def frontier(scores: Any, correct: Any, costs: Any) -> list[Point]:
    """The thresholds that no others beat in both accuracy and cost.

    Exact, over all thresholds there are, for two and three exits, and for more
    as long as the vectors worth comparing number at most 12 million (see
    `threshold_cuts`: most need no comparing). Beyond, the best on a grid of
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
    early = scores.shape[1] - 1
    cuts = [
        threshold_cuts(scores[:, k], stoppers(correct, costs, k)) for k in range(early)
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
    """The undominated of some threshold vectors, by a count on the rows."""
    points = evaluate_all(scores, correct, costs, vectors)
    best = undominated([p.accuracy for p in points], [p.cost for p in points])
    return [points[i] for i in best]


def threshold_cuts(scores: np.ndarray, stoppers: np.ndarray) -> np.ndarray:
    """Thresholds among which the best one is, rising.

    A threshold need never stand just below rows that may as well leave: raised
    past them, it saves their cost and loses none of them. So it stands below a
    row that leaving harms, a stopper, or above all rows. This alone leaves tens
    or hundreds of candidates where there are thousands of scores.

    They lie between neighbouring scores, where float32 has room, and on the
    upper one otherwise: the comparison is strict, so that parts them as well.
    The last lies just above the largest score and not at infinity: a row more
    unsure than any seen here goes on.

    Args:
        scores: float32 [n], at least 0; rows with NaN or infinity never leave.
        stoppers: bool [n], rows that leaving may harm.

    Returns:
        float32, rising, at least one; 0 where nothing may leave.
    """
    scores = flushed(scores)
    known = np.isfinite(scores)
    values = np.unique(scores[known])
    if not len(values):
        return np.zeros(1, np.float32)
    # Rows of equal score leave together: one stopper stops them all.
    below = np.searchsorted(values, np.unique(scores[known & stoppers]))
    cuts = np.append(np.float32(0), between(values))
    return cuts[np.append(below, len(values))]


def thin(cuts: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the cuts: those next above evenly spread quantiles.

    Going on from a quantile to the next cut above only lets rows leave that may
    as well, so the best on these is no worse than the best on the quantiles.

    Args:
        cuts: float32, rising, from `threshold_cuts`.
        scores: float32 [n].
        most: at least 3: the lowest cut and those of the least and largest score.
    """
    if len(cuts) <= most:
        return cuts
    known = scores[np.isfinite(scores)]
    quantiles = np.quantile(known, np.linspace(0, 1, most - 1), method="inverted_cdf")
    above = np.searchsorted(cuts, quantiles, side="right").clip(max=len(cuts) - 1)
    return cuts[np.unique(np.append(0, above))]


def between(values: np.ndarray) -> np.ndarray:
    """For each of rising values, a threshold that lets it leave, not the next.

    Args:
        values: float32, at least 0, none of them denormal (see `policy.flushed`).

    Returns:
        float32, of the same length; no threshold is denormal either.
    """
    above = np.nextafter(values[-1], np.float32(np.inf))
    upper = np.append(values[1:], np.maximum(above, np.float32(SMALLEST)))
    middle = ((values.astype(np.float64) + upper) / 2).astype(np.float32)
    # Below the smallest normal number there is no room, as between neighbours.
    return np.where((middle > values) & (middle >= SMALLEST), middle, upper)


def stoppers(correct: np.ndarray, costs: np.ndarray, k: int) -> np.ndarray:
    """Rows that leaving at exit k may harm: bool [n].

    Those that exit k answers wrongly and a later one rightly; all rows, where a
    later exit is cheaper.

    Args:
        correct: bool [n, N].
        costs: [N] cumulative.
        k: 0-based.
    """
    if (costs[k + 1 :] < costs[k]).any():
        return np.ones(len(correct), bool)
    return ~correct[:, k] & correct[:, k + 1 :].any(axis=1)


def best_of_grid(
    scores: np.ndarray, correct: np.ndarray, costs: np.ndarray, cuts: Sequence[np.ndarray]
) -> list[list[np.float32]]:
    """For each number of rows answered rightly, the cheapest vector of the grid.

    Memory stays at a block of the grid, however large the grid is: the first
    exit's thresholds are taken some at a time, with all those of the others.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: float64 [N] cumulative.
        cuts: N-1 arrays of rising thresholds.

    Returns:
        Vectors of N-1 thresholds. The undominated ones of the grid are among them.
    """
    if not cuts:
        return [[]]
    rows = len(scores)
    # A row leaves exit k at cut i exactly if i >= first[k]. NaN sorts above all.
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
        # Of cells that tie, the last to be written stays: the lowest thresholds.
        wins = np.flatnonzero(cost == best_cost[right])[::-1]
        best_cell[right[wins]] = start * rest + new[wins]
    # Cheaper than all that answer more rows rightly, but for rounding.
    others = np.append(np.minimum.accumulate(best_cost[::-1])[::-1][1:], np.inf)
    kept = best_cell[(best_cell >= 0) & (best_cost <= others * (1 + 1e-12))]
    found = np.unravel_index(kept, sizes)
    columns = [cut[index] for cut, index in zip(cuts, found, strict=True)]
    return [list(vector) for vector in zip(*columns, strict=True)]


def _totals(
    cells: Sequence[np.ndarray], sizes: Sequence[int], weights: np.ndarray
) -> np.ndarray:
    """Sum of the weights that the rows pick up where they leave, for every vector.

    From the last exit back: what goes past an exit is summed from beyond its
    cut, what leaves there up to its cut, and the two go together to the exit
    before.

    Args:
        cells: for each early exit, int [n], the first cut at which a row leaves there.
        sizes: number of cuts of each early exit.
        weights: float64 [n, N], what a row picks up at each exit.

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
    """Threshold vectors that no change of a single one betters, at some price.

    For a series of prices, accuracy - price * cost is raised from the start that
    is worth most by choosing the best threshold of one exit, all others as they
    are, until no exit changes. Each choice is exact, over all scores: the rows
    that reach the exit are sorted, and their gains from leaving are summed up.
    The time grows with rows * exits.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: float64 [N] cumulative.
        starts: where to start from, at least one.

    Returns:
        Vectors of N-1 thresholds, from the most accurate to the cheapest.
    """
    found = []
    for price in _PRICES:
        value = correct - price * costs / costs[-1]
        start = max(starts, key=lambda p: p.accuracy - price * p.cost / costs[-1])
        found.append(_descend(scores, value, np.array(start.thresholds, np.float32)))
    return found


def _descend(scores: np.ndarray, value: np.ndarray, vector: np.ndarray) -> np.ndarray:
    for _ in range(_MOST_SWEEPS):
        before = vector.copy()
        # From the last exit back: what comes before the one looked at has not moved.
        gone = np.logical_or.accumulate(leaves(scores[:, :-1], vector), axis=1)
        # What each row is worth if it goes past the exit now looked at.
        onward = value[:, -1]
        for k in reversed(range(len(vector))):
            reach = ~gone[:, k - 1] if k else np.ones(len(scores), bool)
            vector[k] = _best(scores[reach, k], (value[:, k] - onward)[reach])
            onward = np.where(leaves(scores[:, k], vector[k]), value[:, k], onward)
        if np.array_equal(vector, before):
            break
    return vector


def _best(scores: np.ndarray, gains: np.ndarray) -> np.float32:
    """The threshold below which the gains sum up to most; the lowest of equals."""
    known = np.isfinite(scores)
    values, group = np.unique(scores[known], return_inverse=True)
    if not len(values):
        return np.float32(0)
    # Rows of equal score leave together.
    total = np.cumsum(np.bincount(group, gains[known]))
    best = int(total.argmax())
    return between(values)[best] if total[best] > 1e-12 else np.float32(0)

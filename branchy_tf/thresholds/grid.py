"""The best threshold vectors of a whole grid, by summed-area tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Cells of the grid that are looked at together; some tens of megabytes.
_BLOCK = 1_000_000


def cheapest(
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
        cells: for each gate, int [n], the first cut at which a row leaves there.
        sizes: number of cuts of each gate.
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

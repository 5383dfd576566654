"""Better thresholds from good ones, one exit at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from branchy_tf.thresholds.cuts import between
from branchy_tf.thresholds.points import Point
from branchy_tf.thresholds.rule import leaves

# Prices of a full network's cost in accuracy; at 0 only accuracy counts.
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 50)])
_MOST_SWEEPS = 20


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

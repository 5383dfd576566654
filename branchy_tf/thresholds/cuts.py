"""The thresholds worth trying at one exit."""

from __future__ import annotations

import numpy as np


def threshold_cuts(scores: np.ndarray, most: int) -> np.ndarray:
    """Thresholds that let different numbers of rows leave, rising from 0.

    They lie between neighbouring scores, where float32 has room, and on the
    upper one otherwise: the comparison is strict, so that parts them as well.
    The last lies just above the largest score and not at infinity: a row more
    unsure than any seen here goes on.

    Args:
        scores: float32 [n], at least 0.
        most: how many thresholds at most.
    """
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return np.zeros(1, np.float32)
    values = np.unique(scores)
    cuts = between(values)
    if len(cuts) >= most:
        # Above quantiles of the rows, the smallest and the largest score among them.
        shares = np.linspace(0, 1, most - 1)
        quantiles = np.quantile(scores, shares, method="inverted_cdf")
        cuts = cuts[np.unique(np.searchsorted(values, quantiles))]
    return np.append(np.float32(0), cuts)


def between(values: np.ndarray) -> np.ndarray:
    """For each of rising float32 values, a threshold that lets it leave, not the next."""
    upper = np.append(values[1:], np.nextafter(values[-1], np.float32(np.inf)))
    middle = ((values.astype(np.float64) + upper) / 2).astype(np.float32)
    return np.where(middle > values, middle, upper)

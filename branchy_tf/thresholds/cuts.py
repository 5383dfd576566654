"""The thresholds worth trying at one exit."""

from __future__ import annotations

import numpy as np


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
    """For each of rising float32 values, a threshold that lets it leave, not the next."""
    upper = np.append(values[1:], np.nextafter(values[-1], np.float32(np.inf)))
    middle = ((values.astype(np.float64) + upper) / 2).astype(np.float32)
    return np.where(middle > values, middle, upper)


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

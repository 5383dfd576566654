"""Confidence bounds on the rate of losses, valid at all times.

A loss is a row that exits with another label than the full network gives. Every bound
is a bet: a stake of 1 is placed on alternative rates, and each row multiplies it by the
likelihood ratio of the alternative to the rate in question. If the true rate is at least
that bad, no bet gains in expectation, however long it runs and whenever it is inspected:
the stake ever reaches 1 / (1 - confidence) with probability at most 1 - confidence
(Ville's inequality).

References:
    Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting
    (2024, arXiv 2010.09686). Robbins, Statistical methods related to the law of the
    iterated logarithm (1970): the mixture of bets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special

# The alternative rates, as fractions of the rate in question.
_BELOW = np.arange(10) / 10


def stake(losses: Any, rows: Any, rate: float) -> np.ndarray:
    """The current value of a stake of 1 on "the rate of losses is below `rate`".

    Args:
        losses: number of losses, any shape.
        rows: number of rows, of the same shape or a scalar.
        rate: between 0 and 1.

    Returns:
        Natural logarithms, of the same shape.
    """
    losses = np.asarray(losses)[..., None]
    kept = np.asarray(rows)[..., None] - losses
    bets = special.xlogy(losses, _BELOW) + kept * (
        np.log1p(-rate * _BELOW) - np.log1p(-rate)
    )
    return special.logsumexp(bets, axis=-1) - np.log(len(_BELOW))


def is_proven(losses: Any, rows: Any, budget: float, confidence: float) -> np.ndarray:
    """Whether agreement of at least `budget` is proven: bool.

    The same as `lower_bound(...) >= budget`, for many counts at once.

    Args:
        losses: number of rows that disagree, any shape.
        rows: number of rows.
        budget: required share of agreement.
        confidence: a probability.
    """
    return stake(losses, rows, 1 - budget) >= -np.log1p(-confidence)


def lower_bound(losses: int, rows: int, confidence: float = 0.95) -> float:
    """The lower confidence bound on agreement.

    For one vector of thresholds, chosen without these rows, and identically distributed
    rows: with probability `confidence` the true agreement is never below this bound,
    after any number of rows.

    Args:
        losses: number of rows that disagree.
        rows: number of rows.
        confidence: a probability.

    Returns:
        A share, 0 without rows.

    Example:

    ```python
    lower_bound(0, 423)     # 0.99: so many rows without a loss are enough for 99 %
    ```
    """
    if losses >= rows:
        return 0.0
    needed = -np.log1p(-confidence)

    def missing(rate: float) -> float:
        return float(stake(losses, rows, rate)) - needed

    # The stake grows with the rate.
    most = 1 - 1e-12
    if missing(most) < 0:
        return 0.0
    return 1 - float(optimize.brentq(missing, losses / rows, most))


def rate_to_aim_at(budget: float, window: int, chance: float) -> float:
    """The rate of losses at which a window rarely exceeds the budget.

    A rate just within the budget exceeds it by chance in every second window.

    Args:
        budget: required share of agreement in a window.
        window: number of rows.
        chance: probability that a window exceeds the budget.

    Returns:
        The largest rate with P(Binomial(window, rate) > allowed losses) <= chance.

    Example:

    ```python
    rate_to_aim_at(0.99, 2000, 0.001)      # 0.0048, where 0.01 is allowed
    ```
    """
    allowed = int((1 - budget) * window + 1e-9)
    if allowed >= window:
        return 1.0
    return float(special.betaincinv(allowed + 1, window - allowed, chance))

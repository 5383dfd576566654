"""How sure one may be of a rate of losses, from the labels seen so far.

A loss is a row that leaves with another label than the full network gives. Every
bound here is a bet: a stake of 1 is put on some alternative rates, and each row
multiplies it by how much likelier the alternative made that row than the rate in
question. If the rate is as bad as that, no bet can be expected to gain, however
long it goes on and whenever it is looked at: the stake ever reaches 1 / (1 -
confidence) with a probability of at most 1 - confidence (Ville's inequality).

References:
    Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting
    (2024, arXiv 2010.09686). Robbins, Statistical methods related to the law of the
    iterated logarithm (1970): the mixture of bets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special

# The rates bet on, as shares of the rate in question; 1 would be no bet.
_BELOW = np.arange(10) / 10


def stake(losses: Any, rows: Any, rate: float) -> np.ndarray:
    """What is left, by now, of a stake of 1 on "the rate of losses is below `rate`".

    Args:
        losses: how many rows were lost, any shape.
        rows: of how many, of the same shape or one number.
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
    """Whether agreement of at least `budget` may be taken as proven: bool.

    The same as `lower_bound(...) >= budget`, for many counts at once.

    Args:
        losses: how many rows disagreed, any shape.
        rows: of how many.
        budget: the least share that is to agree.
        confidence: a probability.
    """
    return stake(losses, rows, 1 - budget) >= -np.log1p(-confidence)


def lower_bound(losses: int, rows: int, confidence: float = 0.95) -> float:
    """The least agreement that the labels leave believable.

    For one vector of thresholds, chosen without these rows, and rows that are drawn
    alike: with probability `confidence` the true agreement is never, after any
    number of rows, below this bound.

    Args:
        losses: how many rows disagreed.
        rows: of how many.
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

    # The stake grows with the rate: it is easier to be below a large one.
    most = 1 - 1e-12
    if missing(most) < 0:
        return 0.0
    return 1 - float(optimize.brentq(missing, losses / rows, most))


def rate_to_aim_at(budget: float, window: int, chance: float) -> float:
    """The rate of losses with which a window seldom breaks the budget.

    A rate just within the budget breaks it in every second window, by chance.

    Args:
        budget: the least share of a window that is to agree.
        window: rows.
        chance: with which a window may break it.

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

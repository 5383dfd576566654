"""An alarm for a change in the distribution of rows.

Every row has an exit and a score, and so a rank among the rows that the thresholds were
chosen on. For rows that asked every exit, agreement is known too. Each bet assumes one
kind of change in these. With every row 1 is added to its stake, which is then multiplied
by the likelihood ratio of that change (Shiryaev and Roberts), so a change is noticed
whenever it comes. The level is the mean of all stakes.

Without a change the level takes at least x rows on average to reach x: exactly for the
bets on agreement, while agreement is within the budget; approximately for those on
ranks, as the distribution of scores is only known from a sample.

References:
    Shin, Ramdas, Rinaldo, E-detectors: a nonparametric framework for sequential change
    detection (2024, arXiv 2203.03532). Lipton, Wang, Smola, Detecting and Correcting for
    Label Shift with Black Box Predictors (2018, arXiv 1802.03916): what a network says
    of its inputs is enough to notice that they changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

# Resolution of the ranks.
_CELLS = 24
# Beta distributions of ranks: slightly or much less sure or surer, towards the ends or
# the middle.
_SHAPES = [
    (2, 1), (1.3, 1), (1, 2), (1, 1.3), (4, 1), (1, 4), (0.5, 0.5), (2, 2)
]  # fmt: skip
# Alternative rates of losses, as multiples of the allowed rate.
_WORSE = np.array([2, 4, 8, 16, 32])


class Alarm:
    """The stakes of all bets, and their mean.

    Args:
        budget: required share of agreement.
    """

    def __init__(self, budget: float) -> None:
        edges = np.linspace(0, 1, _CELLS + 1)
        self._ranks = np.array(
            [np.diff(stats.beta.cdf(edges, a, b)) * _CELLS for a, b in _SHAPES]
        )
        allowed = 1 - budget
        worse = np.minimum(allowed * _WORSE, (1 + allowed) / 2)
        self._agreed, self._lost = (1 - worse) / budget, worse / allowed
        self.reset()

    def reset(self) -> None:
        """Resets all stakes to 0."""
        self._on_ranks = np.zeros(len(self._ranks))
        self._on_losses = np.zeros(len(_WORSE))

    def see(self, rank: float, lost: bool | None) -> float:
        """Adds one row.

        Args:
            rank: share of the known rows that are surer, 0 to 1.
            lost: whether its answer disagrees; None if unknown.

        Returns:
            The level.
        """
        cell = min(int(rank * _CELLS), _CELLS - 1)
        self._on_ranks = (self._on_ranks + 1) * self._ranks[:, cell]
        if lost is not None:
            self._on_losses = (self._on_losses + 1) * (
                self._lost if lost else self._agreed
            )
        return self.level

    @property
    def level(self) -> float:
        """The mean stake, with equal weight for both kinds of bets."""
        return float(self._on_ranks.mean() + self._on_losses.mean()) / 2

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {"on_ranks": self._on_ranks, "on_losses": self._on_losses}

    def from_json(self, value: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError if it is not from `to_json`."""
        self._on_ranks = _shaped(value["on_ranks"], len(self._ranks))
        self._on_losses = _shaped(value["on_losses"], len(_WORSE))


def _shaped(stakes: Any, number: int) -> np.ndarray:
    return np.array(stakes, np.float64).reshape(number)


def places(exits: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A number for each row's exit and score, surest first: float64 [n].

    Args:
        exits: int [n], 0-based.
        scores: [n], at that exit; NaN counts as least sure.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float64), nan=np.inf)
    return exits + 1 - 1 / (1 + scores)


def ranks(known: np.ndarray, new: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The ranks of new places among known ones: float64 [m], from 0 to 1.

    Args:
        known: float64 [n], ascending.
        new: float64 [m].
        random: breaks ties.
    """
    below = np.searchsorted(known, new, side="left")
    equal = np.searchsorted(known, new, side="right") - below
    return (below + random.random(len(new)) * (equal + 1)) / (len(known) + 1)

"""An alarm for the moment at which rows stop being like those before.

Two things are bet on, row by row. Each tells at which exit it left and with what
score: where it stands among the rows that the thresholds were chosen on. Of rows that
asked every exit it is also known whether their answer agrees. A bet names one way in
which this may change; its stake is multiplied by how much likelier that change makes
what was seen, after 1 was added to it (Shiryaev and Roberts), so that a change is
noticed whenever it comes. The level is the mean of all stakes.

As long as nothing changes, it takes at least x rows in the mean until the level reaches
x: exactly, for the bets on agreement, while at least the budget agrees; nearly, for
those on ranks, since how scores are distributed is only known from the rows at hand.

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

# Ranks are told apart as finely as this.
_CELLS = 24
# Beta distributions that ranks may take: less sure and surer, slightly and much,
# drawn to the ends and to the middle.
_SHAPES = [
    (2, 1), (1.3, 1), (1, 2), (1, 1.3), (4, 1), (1, 4), (0.5, 0.5), (2, 2)
]  # fmt: skip
# Rates of losses bet on, as multiples of the rate that the budget allows.
_WORSE = np.array([2, 4, 8, 16, 32])


class Alarm:
    """The stakes of all bets, and their mean.

    Args:
        budget: the least share that is to agree.
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
        """Begins anew, all stakes at 0."""
        self._on_ranks = np.zeros(len(self._ranks))
        self._on_losses = np.zeros(len(_WORSE))

    def see(self, rank: float, lost: bool | None) -> float:
        """Takes one row in.

        Args:
            rank: the share of the known rows that are surer, 0 to 1.
            lost: whether its answer disagrees, None where nobody knows.

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
        """The mean stake, in which both kinds of bets weigh the same."""
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
    """One number for where each row left, surest first: float64 [n].

    Args:
        exits: int [n], 0-based.
        scores: [n], at that exit; NaN counts as entirely unsure.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float64), nan=np.inf)
    return exits + 1 - 1 / (1 + scores)


def ranks(known: np.ndarray, new: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Where new places stand among known ones: float64 [m], from 0 to 1.

    Args:
        known: float64 [n], rising.
        new: float64 [m].
        random: parts equal places.
    """
    below = np.searchsorted(known, new, side="left")
    equal = np.searchsorted(known, new, side="right") - below
    return (below + random.random(len(new)) * (equal + 1)) / (len(known) + 1)

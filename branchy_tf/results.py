"""Results of predictions, and the names of exits."""

from __future__ import annotations

import dataclasses

import numpy as np


def exit_name(number: int) -> str:
    """The name of exit `number`, counted from 1 at the entry."""
    return f"exit_{number}"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The answers to one batch, from the predictor or a client.

    Attributes:
        probabilities: float32 [B, classes], at each row's exit.
        exits: int32 [B], 0-based: 0 is exit_1.
        scores: float32 [B], the score at that exit; lower is surer.
        model_version: the version that answered; None without a server.
        degraded: bool [B], from a cascade of units: whether a unit that should have
            answered the row was down or late, and this is an earlier unit's answer. None
            without a cascade.
    """

    probabilities: np.ndarray
    exits: np.ndarray
    scores: np.ndarray
    model_version: int | None = None
    degraded: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """int64 [B], the most probable class of each row."""
        return self.probabilities.argmax(axis=-1)

    def __len__(self) -> int:
        return len(self.exits)

    def exit_rates(self, num_exits: int) -> np.ndarray:
        """float64 [num_exits], the share of rows at each exit."""
        counts = np.bincount(self.exits, minlength=num_exits)
        return counts / max(len(self), 1)


@dataclasses.dataclass(frozen=True)
class AllExits:
    """Every exit's answers to one batch.

    Attributes:
        probabilities: float32 [B, N, classes].
        scores: float32 [B, N]; lower is surer.
        model_version: the version that answered.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    model_version: int | None = None

    @property
    def labels(self) -> np.ndarray:
        """int64 [B, N], the most probable class of each row at each exit."""
        return self.probabilities.argmax(axis=-1)

    def __len__(self) -> int:
        return len(self.scores)

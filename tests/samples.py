"""Scores as a network's exits might give them."""

from __future__ import annotations

import numpy as np


def rows(
    n: int, exits: int, seed: int = 0, decimals: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [n, exits] and whether each answer is correct, bool [n, exits]."""
    random = np.random.default_rng(seed)
    scores = random.gamma(1, 0.5, (n, exits)).astype("float32")
    if decimals is not None:
        scores = scores.round(decimals)
    # Lower scores and later exits are correct more often.
    right = random.random((n, exits)) > 0.4 * scores / (1 + np.arange(exits))
    return scores, right

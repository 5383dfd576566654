"""Random data, for timing where no real data are at hand."""

from __future__ import annotations

import numpy as np


def cifar10() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Noise with the shapes and classes of CIFAR-10.

    Returns:
        Training, validation and test split: uint8 [n, 32, 32, 3] and labels [n].
    """
    random = np.random.default_rng(0)
    return tuple(
        (
            random.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
            np.arange(rows) % 10,
        )
        for rows in (5000, 500, 500)
    )

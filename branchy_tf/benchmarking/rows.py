"""Rows of a model's inputs, by input name and in the order of the inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Each [n, ...].
Arrays = Mapping[str, np.ndarray]


def count(arrays: Arrays) -> int:
    """The number of rows."""
    return len(next(iter(arrays.values())))


def take(arrays: Arrays, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Some of the rows."""
    return {name: array[rows] for name, array in arrays.items()}


def in_batches(arrays: Arrays, size: int) -> list[dict[str, np.ndarray]]:
    """All rows in batches of `size`; the last may have fewer."""
    return [
        take(arrays, slice(start, start + size))
        for start in range(0, count(arrays), size)
    ]

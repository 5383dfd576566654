"""Checks a batch before it is sent or run. Needs numpy alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError


@dataclasses.dataclass(frozen=True)
class Expected:
    """What one input of a model takes.

    Attributes:
        shape: with the batch first; None or -1 where any size will do.
        dtype: of the elements.
    """

    shape: tuple[int | None, ...]
    dtype: Any

    def __str__(self) -> str:
        sides = ["B", *("any" if n in (None, -1) else str(n) for n in self.shape[1:])]
        return f"{np.dtype(self.dtype).name} [{', '.join(sides)}]"


def check(
    batch: Any, expected: Mapping[str, Expected]
) -> tuple[dict[str, np.ndarray], int]:
    """The batch as arrays by input name, and its number of rows.

    Args:
        batch: an array for the one input, or a mapping for several.
        expected: what each input takes.

    Returns:
        `({name: array}, rows)`.

    Raises:
        BranchyError: wrong names, shape, dtype, or values that are not finite.
    """
    given = batch if isinstance(batch, Mapping) else None
    if given is None and len(expected) == 1:
        given = {next(iter(expected)): batch}
    if given is None or set(given) != set(expected):
        received = ", ".join(map(str, given)) if given else type(batch).__name__
        raise BranchyError(
            f"The model takes the inputs {', '.join(expected)}; pass a dict with these "
            f"names. Received {received}."
        )
    arrays = {name: _check_one(given[name], name, expected[name]) for name in expected}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BranchyError(f"The inputs differ in their number of rows: {counts}.")
    return arrays, next(iter(counts.values()))


def _check_one(value: Any, name: str, expected: Expected) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(value, dtype=object)
    shape = expected.shape
    fits = array.ndim == len(shape) and all(
        want in (None, -1) or got == want
        for got, want in zip(array.shape[1:], shape[1:], strict=True)
    )
    if not fits:
        hint = ""
        if array.ndim == len(shape) - 1:
            hint = (
                " Add the channel axis: images[..., None]."
                if array.ndim == 3 and shape[-1] == 1 and array.shape[1:] == shape[1:-1]
                else " Add the batch axis: images[None]."
            )
        raise BranchyError(
            f"`{name}` has shape {array.shape}; expected {expected}.{hint}"
        )
    if not np.can_cast(array.dtype, expected.dtype, "safe"):
        hint = (
            " For raw pixels 0...255, convert with images.astype('uint8')."
            if np.dtype(expected.dtype) == np.uint8
            else f" Convert with .astype('{np.dtype(expected.dtype).name}')."
        )
        raise BranchyError(
            f"`{name}` has dtype {array.dtype}; expected {expected}.{hint}"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise BranchyError(
            f"`{name}` holds NaN or infinite values; expected finite ones."
        )
    return np.ascontiguousarray(array, dtype=expected.dtype)

"""Checks a batch before it is sent or run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of one input or output of a model.

    Attributes:
        shape: batch first; None or -1 for any size.
        dtype: of the elements.
    """

    shape: tuple[int | None, ...]
    dtype: Any

    def __str__(self) -> str:
        sides = ["B", *("any" if n in (None, -1) else str(n) for n in self.shape[1:])]
        return f"{np.dtype(self.dtype).name} [{', '.join(sides)}]"


def batch(
    value: Any, specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, np.ndarray], int]:
    """Checks a batch and converts it to arrays.

    Args:
        value: an array for a single input, or a mapping for several.
        specs: what the model takes, by input name.

    Returns:
        `({name: array}, rows)`.

    Raises:
        BranchyError: wrong names, shapes or dtypes, or NaN or infinite values.
    """
    given = value if isinstance(value, Mapping) else None
    if given is None and len(specs) == 1:
        given = {next(iter(specs)): value}
    if given is None or set(given) != set(specs):
        received = ", ".join(map(str, given)) if given else type(value).__name__
        raise BranchyError(
            f"The model takes the inputs {', '.join(specs)}; pass a dict with these "
            f"names. Received {received}."
        )
    arrays = {name: _check_one(given[name], name, specs[name]) for name in specs}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BranchyError(f"The inputs differ in their number of rows: {counts}.")
    return arrays, next(iter(counts.values()))


def _check_one(value: Any, name: str, expected: TensorSpec) -> np.ndarray:
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
        hint = f" Convert with .astype('{np.dtype(expected.dtype).name}')."
        if np.dtype(expected.dtype) == np.uint8:
            hint = " For raw pixels 0...255, convert with images.astype('uint8')."
            if _are_fractions(array):
                hint = " These look like pixels 0...1. Multiply by 255 and round first."
        raise BranchyError(
            f"`{name}` has dtype {array.dtype}; expected {expected}.{hint}"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise BranchyError(
            f"`{name}` holds NaN or infinite values; expected finite values."
        )
    return np.ascontiguousarray(array, dtype=expected.dtype)


def _are_fractions(array: np.ndarray) -> bool:
    """Whether all values are within -1...1, some of them not whole."""
    if array.dtype.kind != "f" or not array.size:
        return False
    return bool(np.abs(array).max() <= 1 and (array != np.rint(array)).any())

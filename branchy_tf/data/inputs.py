"""Checks the inputs of a data set and converts them to the dtypes that models take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from branchy_tf.data.splits import ArrayLike, Inputs, is_in_memory
from branchy_tf.errors import BranchyError, one_line


def check(
    splits: Mapping[str, Inputs], names: Mapping[str, str], source: str
) -> dict[str, Inputs]:
    """The inputs of all splits, checked and converted.

    A single array [n, H, W] or [n, H, W, C] of whole numbers 0...255 is images: it
    becomes uint8 [n, H, W, C]. Named arrays are never taken for images.

    Args:
        splits: an array for each split, or arrays by input name.
        names: what messages call them.
        source: starts the messages.

    Returns:
        uint8 as it is, other integers as int32 or int64, floats as float32. Lazy arrays
        are returned as they are.

    Raises:
        BranchyError: an array has no rows, no numbers, or NaN or infinite values, or the
            splits differ.
    """
    _check_same_inputs(splits, names, source)
    checked = {
        part: _each(inputs, f"{source}: {names[part]}", _checked)
        for part, inputs in splits.items()
    }
    arrays = {p: x for p, x in checked.items() if not isinstance(x, Mapping)}
    pixels = {part: _are_pixels(array) for part, array in arrays.items()}
    if any(pixels.values()):
        for part, are in pixels.items():
            if not are and len(arrays[part].shape) in (3, 4):
                _refuse_other_values(arrays[part], f"{source}: {names[part]}")
        converted: dict[str, Inputs] = {p: _as_images(x) for p, x in arrays.items()}
    else:
        converted = {
            part: _each(inputs, f"{source}: {names[part]}", _narrowed)
            for part, inputs in checked.items()
        }
    _check_same_shapes(converted, names, source)
    return converted


def _each(
    inputs: Inputs, what: str, function: Callable[[ArrayLike, str], ArrayLike]
) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: function(x, f"{what}/{name}") for name, x in inputs.items()}
    return function(inputs, what)


def _check_same_inputs(
    splits: Mapping[str, Inputs], names: Mapping[str, str], source: str
) -> None:
    first = _shapes(splits["train"])
    if not first:
        raise BranchyError(
            f"{source}: {names['train']} has no inputs; expected at least one array."
        )
    for part, inputs in splits.items():
        if set(_shapes(inputs)) != set(first):
            raise BranchyError(
                f"{source}: {names['train']} has the inputs {_listed(first)} and "
                f"{names[part]} has {_listed(_shapes(inputs))}; expected the same."
            )


def _check_same_shapes(
    splits: Mapping[str, Inputs], names: Mapping[str, str], source: str
) -> None:
    first = _shapes(splits["train"])
    for part, inputs in splits.items():
        for name, shape in _shapes(inputs).items():
            if shape != first[name]:
                end = f"/{name}" if name else ""
                what = "images" if len(first[name]) == 3 else "rows"
                raise BranchyError(
                    f"{source}: {names['train']}{end} holds {what} of shape "
                    f"{first[name]} and {names[part]}{end} of {shape}; expected the same."
                )


def rows(inputs: Inputs, what: str) -> int:
    """The number of rows, the same in every array."""
    arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BranchyError(
            f"The inputs of {what} differ in their number of rows: {shown}; expected the "
            "same."
        )
    return next(iter(counts.values()))


def _shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
    return {name: tuple(array.shape[1:]) for name, array in arrays.items()}


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(name or "(one without a name)" for name in shapes)


def _checked(array: ArrayLike, what: str) -> ArrayLike:
    shape, kind = tuple(array.shape), array.dtype.kind
    if len(shape) < 2 or 0 in shape:
        raise BranchyError(
            f"{what} has shape {shape}; expected rows [n, ...], such as images [n, "
            "height, width, channels] or tables [n, features], n > 0."
        )
    if kind not in "iuf":
        raise BranchyError(
            f"{what} has dtype {one_line(str(array.dtype))}; expected numbers."
            + (" Convert it with .astype('uint8')." if kind == "b" else "")
        )
    if is_in_memory(array) and kind == "f":
        values = np.asarray(array)
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise BranchyError(
                f"{what} holds {bad} values that are NaN or infinite; expected finite "
                "numbers. Remove or repair those rows."
            )
    return array


def _are_pixels(array: ArrayLike) -> bool:
    rank = len(array.shape)
    if rank not in (3, 4):
        return False
    if array.dtype == np.uint8:
        return is_in_memory(array) or rank == 4
    if not is_in_memory(array):
        return False
    values = np.asarray(array)
    low, high = values.min(), values.max()
    # Rows of zeros and ones are one-hot vectors rather than nearly black images.
    return bool(
        low >= 0
        and (high > 1 or rank == 4)
        and high <= 255
        and (values.dtype.kind != "f" or (values == np.rint(values)).all())
    )


def _refuse_other_values(array: ArrayLike, what: str) -> None:
    values = np.asarray(array)
    raise BranchyError(
        f"{what} holds values from {values.min():g} to {values.max():g}, dtype "
        f"{values.dtype}, but another split holds raw pixels, whole numbers 0...255; "
        "expected the same kind."
    )


def _as_images(array: ArrayLike) -> ArrayLike:
    if not is_in_memory(array):
        return array
    values = np.asarray(array).astype(np.uint8, copy=False)
    return values[..., None] if values.ndim == 3 else values


def _narrowed(array: ArrayLike, what: str) -> ArrayLike:
    """The values in a dtype that frameworks compute with."""
    if not is_in_memory(array):
        return array
    values = np.asarray(array)
    if values.dtype.kind == "f":
        largest: Any = np.finfo(np.float32).max
        if np.abs(values).max() > largest:
            raise BranchyError(
                f"{what} holds {np.abs(values).max():g}, which is too large for float32. "
                "Scale the values."
            )
        return values.astype(np.float32, copy=False)
    if values.dtype == np.uint8:
        return values
    low, high = int(values.min()), int(values.max())
    if low >= -(2**31) and high < 2**31:
        return values.astype(np.int32, copy=False)
    if high >= 2**63:
        raise BranchyError(
            f"{what} holds {high}, which is too large for int64. Use smaller numbers."
        )
    return values.astype(np.int64, copy=False)

"""The values that a model was trained on, and whether a batch has the same scale.

A network answers inputs of another scale without complaint, and wrongly: pixels 0...1
where it learned from 0...255 look black to it. `check` tells such a batch from one that
is unusual but of the right scale, such as dark pictures.

The size of a row is its largest absolute value; the size of the training is that of all
its rows. Rows of zeros say nothing about the scale and are left out. The rule, with the
median size of the batch's other rows:

- More than 10 times the training's: refused; more than 3 times: a warning. Fewer than 8
  rows of a table (a single axis besides the rows) are an outlier: a warning at most.
- Trained on whole numbers up to at least 100, and the batch holds fractions of which none
  exceeds 1: refused. Dark pictures do not look like this, because raw pixels are whole.
- Trained on whole numbers none of which was negative, and the batch holds fractions,
  some negative, and its median size is less than a tenth: refused, as standardised.
- At least 32 pictures, none of them larger than a hundredth of the training: a warning.
  They may be dark, or 0...1 cast to integers, so they are not refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError

# How far the median size of a batch may exceed the training's.
_REFUSED, _SUSPICIOUS = 10.0, 3.0
# The fewest rows of a table whose size is no outlier.
_TABLE_ROWS = 8
# Whole numbers up to here may be counts or codes, for which 0...1 is nothing unusual.
_LARGE = 100.0
# The fewest pictures that say something when all are dark, and how dark that is.
_DARK_ROWS, _DARK = 32, 0.01
# The most rows of a batch to look at, evenly spread.
_MOST_ROWS = 512


@dataclasses.dataclass(frozen=True)
class InputRange:
    """What one input of a model held in training.

    Attributes:
        shape: the batch first; None for any size.
        dtype: the name of its dtype.
        low: the smallest value.
        high: the largest value.
        whole: whether all values were whole numbers.
    """

    shape: tuple[int | None, ...]
    dtype: str
    low: float
    high: float
    whole: bool

    @property
    def size(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def to_json(self) -> dict[str, Any]:
        """The fields as data.json, thresholds.json and branchy.json store them."""
        return dataclasses.asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> InputRange:
        """Reads the fields; without `whole`, the dtype decides.

        Raises:
            ValueError: a field is missing or has another type.
        """
        if not isinstance(value, dict):
            raise ValueError("expected an object with shape, dtype, low and high")
        missing = [n for n in ("shape", "dtype", "low", "high") if n not in value]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        shape, low, high = value["shape"], value["low"], value["high"]
        sides = isinstance(shape, list) and all(
            n is None or (isinstance(n, int) and n >= 0) for n in shape
        )
        numbers = all(
            isinstance(x, (int, float)) and not isinstance(x, bool) for x in (low, high)
        )
        if not sides or not numbers or not low <= high:
            raise ValueError("expected a list of sides, and low at most high")
        try:
            dtype = np.dtype(value["dtype"])
        except TypeError:
            raise ValueError(f"{value['dtype']!r} is no dtype") from None
        whole = value.get("whole", dtype.kind in "iub")
        return cls(tuple(shape), dtype.name, float(low), float(high), bool(whole))


def ranges_from_json(value: Any, source: Any) -> dict[str, InputRange] | None:
    """`{input: InputRange}` from the `inputs` of a JSON file; None for null.

    A branchy.json describes inputs of unknown range too, without low and high; they are
    left out, and None is returned if nothing else is there.

    Raises:
        BranchyError: they are not what `InputRange.to_json` writes.
    """
    if value is None:
        return None
    try:
        if not isinstance(value, dict):
            raise ValueError("expected an object")
        known = {
            name: InputRange.from_json(item)
            for name, item in value.items()
            if not isinstance(item, dict) or {"low", "high"} & item.keys()
        }
        return known or None
    except ValueError as error:
        raise BranchyError(
            f"{source} has inputs that cannot be read: {error}. Write the file again."
        ) from None


def measure(batches: Iterable[Mapping[str, Any]]) -> dict[str, InputRange]:
    """The ranges of all inputs, batch by batch.

    Args:
        batches: `{input: [n, ...]}` each.

    Raises:
        BranchyError: there are no rows, or an input holds NaN or infinity.
    """
    found: dict[str, InputRange] = {}
    for arrays in batches:
        for name, given in arrays.items():
            array = np.asarray(given)
            if not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            if not np.isfinite([low, high]).all():
                raise BranchyError(
                    f"The input {name!r} holds NaN or infinite values; expected finite "
                    "numbers. Remove or repair those rows."
                )
            now = InputRange(
                (None, *array.shape[1:]), array.dtype.name, low, high, _is_whole(array)
            )
            known = found.get(name, now)
            found[name] = InputRange(
                known.shape,
                known.dtype,
                min(known.low, low),
                max(known.high, high),
                known.whole and now.whole,
            )
    if not found:
        raise BranchyError("There are no rows to take the range of the inputs from.")
    return found


def check(
    trained: Mapping[str, InputRange] | None, arrays: Mapping[str, Any], mend: str = ""
) -> str | None:
    """Compares a batch with what the model was trained on.

    Args:
        trained: the ranges by input name, or None if they are unknown.
        arrays: the batch, `{input: [B, ...]}`.
        mend: what else helps against a refusal, in a whole sentence.

    Returns:
        A warning of one line, or None.

    Raises:
        BranchyError: the batch has another scale.

    Example:

    ```python
    check({"images": InputRange((None, 28, 28, 1), "uint8", 0, 255, True)}, arrays)
    ```
    """
    warning = None
    for name, known in (trained or {}).items():
        if name not in arrays or not len(arrays[name]):
            continue
        rows = np.asarray(arrays[name])
        rows = rows[:: -(-len(rows) // _MOST_ROWS)]
        found = _compare(known, rows)
        if found is None:
            continue
        is_clear, how = found
        low, high = float(rows.min()), float(rows.max())
        text = (
            f"`{name}` holds values from {low:g} to {high:g}, but the model was trained "
            f"on {known}: {how}."
        )
        if is_clear:
            raise BranchyError(f"{text} {_advice(known, high)} {mend}".rstrip())
        warning = warning or text
    return warning


def _compare(known: InputRange, rows: np.ndarray) -> tuple[bool, str] | None:
    """`(whether to refuse, in words)` for a batch of another scale; see the module."""
    if rows.dtype.kind not in "iuf" or not known.size:
        return None
    count, median, largest = _sizes(rows)
    if not count:
        return None
    if median > _SUSPICIOUS * known.size:
        is_outlier = rows.ndim < 3 and count < _TABLE_ROWS
        if median > _REFUSED * known.size and not is_outlier:
            return True, "another scale"
        return False, "they may have another scale"
    if largest > _DARK * known.size and median >= known.size / _REFUSED:
        return None
    if known.whole and known.size >= _LARGE and not _is_whole(rows):
        standardised = rows.min() < 0 <= known.low and median < known.size / _REFUSED
        if largest <= 1 or standardised:
            return True, "another scale"
    is_dark = largest <= _DARK * known.size and count >= _DARK_ROWS
    if is_dark and rows.ndim == 4:
        return False, "they are almost black, or have another scale"
    return None


def _sizes(rows: np.ndarray) -> tuple[int, float, float]:
    """The number of rows that are not zero, and their median and largest size."""
    if not rows.size:
        return 0, 0.0, 0.0
    if len(rows) == 1:
        # A median takes longer than a device's whole answer to its one row may.
        size = max(abs(float(rows.min())), abs(float(rows.max())))
        return int(size > 0), size, size
    flat = rows.reshape(len(rows), -1)
    low, high = flat.min(axis=1).astype(float), flat.max(axis=1).astype(float)
    sizes = np.maximum(np.abs(low), np.abs(high))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 0, 0.0, 0.0
    return len(sizes), float(np.median(sizes)), float(sizes.max())


def _is_whole(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool((array == np.rint(array)).all())


def _advice(known: InputRange, high: float) -> str:
    if known.low >= 0 and known.high == 255 and high <= 1:
        return "Multiply by 255."
    if known.low >= 0 and known.high <= 1 and 1 < high <= 255:
        return "Divide by 255."
    return "Prepare them as for the training."

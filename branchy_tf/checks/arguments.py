"""Checks of arguments: converts valid values, raises `BranchyError` for others.

Numbers may be Python's, NumPy's, or arrays without axes. Strings and booleans are not
numbers, and NaN is outside every range.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError


def shown(value: Any) -> str:
    """The value in one short line for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole_number(
    name: str, value: Any, at_least: int | None = None, at_most: int | None = None
) -> int:
    """The value as an int.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        at_least: smallest allowed value.
        at_most: largest allowed value; default: the largest int64.

    Raises:
        BranchyError: not a whole number, or out of range. 2.0 is not one either.

    Example:

    ```python
    whole_number("batch_size", np.int64(32), at_least=1)    # 32
    ```
    """
    number = int(value) if _is_plain(value, numbers.Integral) else _scalar(value, "iu")
    if (
        number is None
        or (at_least is not None and number < at_least)
        or number > (2**63 - 1 if at_most is None else at_most)
    ):
        limits = _limits(at_least=at_least, at_most=at_most)
        raise BranchyError(
            f"`{name}` must be a whole number{limits}. Received {shown(value)}."
        )
    return number


def real_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    what: str = "number",
) -> float:
    """The value as a float.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        at_least: smallest allowed value.
        above: exclusive lower bound.
        at_most: largest allowed value.
        below: exclusive upper bound.
        infinite: whether infinity is allowed.
        what: noun for the message, such as "number of seconds".

    Raises:
        BranchyError: not a number, NaN, or out of range.

    Example:

    ```python
    real_number("timeout", np.float32(2), above=0)    # 2.0
    ```
    """
    number = _as_float(value)
    if (
        number is None
        or math.isnan(number)
        or (math.isinf(number) and not infinite)
        or (at_least is not None and number < at_least)
        or (above is not None and number <= above)
        or (at_most is not None and number > at_most)
        or (below is not None and number >= below)
    ):
        bounded = infinite or at_most is not None or below is not None
        kind = f"{what}{_limits(at_least, above, at_most, below)}"
        raise BranchyError(
            f"`{name}` must be a {'' if bounded else 'finite '}{kind}. "
            f"Received {shown(value)}."
        )
    return number


def fraction(name: str, value: Any, *, difference: bool = False) -> float:
    """The value as a fraction of 1.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        difference: whether it is a difference of shares, which is always below 1.

    Raises:
        BranchyError: not a number, NaN, or out of range. For a percentage, the message
            says the fraction to pass.

    Example:

    ```python
    fraction("min_accuracy", 0.95)      # 0.95
    ```
    """
    try:
        what = "fraction of 1,"
        if difference:
            return real_number(name, value, at_least=0, below=1, what=what)
        return real_number(name, value, at_least=0, at_most=1, what=what)
    except BranchyError as error:
        raise BranchyError(f"{error}{percentage_hint(value, difference)}") from None


def percentage_hint(value: Any, difference: bool = False) -> str:
    """The fraction that a percentage stands for, as a sentence; "" for other values.

    Args:
        value: what was passed.
        difference: whether it is a difference of shares, in percentage points.
    """
    number = _as_float(value)
    if number is None or not 1 <= number <= 100 or (number == 1 and not difference):
        return ""
    points = "percentage point is" if number == 1 else "percentage points are"
    return f" {number:g} {points if difference else '% is'} {number / 100:g}."


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """The value, one of the known names.

    Raises:
        BranchyError: an unknown name.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise BranchyError(f"Unknown {name} {shown(value)}. Known: {', '.join(known)}.")
    return value


def text(name: str, value: Any) -> str:
    """The value, a non-empty string.

    Raises:
        BranchyError: it is empty or not a string.
    """
    if not isinstance(value, str) or not value.strip():
        raise BranchyError(
            f"`{name}` must be a non-empty string. Received {shown(value)}."
        )
    return value


def switch(name: str, value: Any) -> bool:
    """The value as a bool.

    Raises:
        BranchyError: it is neither true nor false.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise BranchyError(f"`{name}` must be True or False. Received {shown(value)}.")
    return bool(value)


def path(name: str, value: Any) -> str | os.PathLike:
    """The value, a path.

    Raises:
        BranchyError: it is empty or not a path.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise BranchyError(f"`{name}` must be a path. Received {shown(value)}.")
    return value


def real_array(name: str, value: Any) -> np.ndarray:
    """The value as an array of numbers with its own dtype.

    Raises:
        BranchyError: it is ragged, or not all numbers.
    """
    try:
        array = np.asarray(value)
    except Exception:  # array libraries raise types of their own
        array = np.array(None)
    # NumPy stores fractions and large ints as objects.
    if array.dtype == object and array.size:
        found = [_as_float(item) for item in array.flat]
        if None not in found:
            array = np.array(found, np.float64).reshape(array.shape)
    if array.dtype.kind not in "iuf" and array.size:
        raise BranchyError(f"`{name}` must be numbers. Received {shown(value)}.")
    return array


def _scalar(value: Any, kinds: str) -> Any:
    """The number in a NumPy scalar or an array without axes; otherwise None."""
    try:
        array = np.asarray(value)
    except Exception:  # array libraries raise types of their own
        return None
    return array.item() if not array.ndim and array.dtype.kind in kinds else None


def _as_float(value: Any) -> float | None:
    number = value if _is_plain(value, numbers.Real) else _scalar(value, "iuf")
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


def _is_plain(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _limits(
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> str:
    """The range in words, such as " from 0 to 1"."""
    if at_least is not None and at_most is not None:
        return f" from {at_least:,} to {at_most:,}"
    if above is not None and below is not None:
        return f" between {above:,} and {below:,}"
    bounds = {"of at least": at_least, "above": above, "at most": at_most, "below": below}
    found = [f"{words} {x:,}" for words, x in bounds.items() if x is not None]
    return f" {' and '.join(found)}" if found else ""

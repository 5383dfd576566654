"""Data sets that a Python function returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.data import pipelines
from branchy_tf.data.raw import Raw, RawSplit
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.files.functions import load_function

_SPLITS = ("train", "validation", "test")
_EXPECTED = (
    "expected (train, validation, test) or (train, test), or a dict of them that may "
    "also hold class_names; each split (inputs, labels), (inputs, labels, weights) or a "
    "tf.data.Dataset of such rows"
)


def read(name: str) -> Raw:
    """The data set that a function returns when called without arguments.

    Args:
        name: the function, as module:function.

    Raises:
        BranchyError: the function raises an error, or returns something else.

    Example:

    ```python
    def digits():
        (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        return (x, y), (x_test, y_test)
    ```
    """
    function = load_function(name)
    try:
        value = function()
    except BranchyError:
        raise
    except (Exception, SystemExit) as error:
        # The function is the user's: anything may come.
        raise BranchyError(
            f"{name} raised {type(error).__name__}: {first_line(error)}. Call it in "
            "Python to see where."
        ) from error
    class_names = None
    if isinstance(value, Mapping):
        parts = dict(value)
        class_names = parts.pop("class_names", None)
        if set(parts) not in ({"train", "test"}, set(_SPLITS)):
            raise _unexpected(name, f"a dict with {', '.join(map(str, value))}")
    elif isinstance(value, (tuple, list)) and len(value) in (2, 3):
        names = _SPLITS if len(value) == 3 else ("train", "test")
        parts = dict(zip(names, value, strict=True))
    else:
        raise _unexpected(name, checks.shown(type(value).__name__))
    splits = {part: _split(name, part, given) for part, given in parts.items()}
    return Raw(
        name,
        name,
        splits,
        class_names=None if class_names is None else [str(x) for x in class_names],
    )


def _unexpected(name: str, found: str) -> BranchyError:
    return BranchyError(f"{name} returned {found}; {_EXPECTED}.")


def _split(name: str, part: str, value: Any) -> RawSplit:
    names = (f"{part} inputs", f"{part} labels", f"{part} weights")
    if pipelines.is_pipeline(value):
        value = pipelines.arrays(value, f"{name}: {part}")
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        raise _unexpected(name, f"{checks.shown(type(value).__name__)} as {part}")
    inputs, labels, *weights = value
    if isinstance(inputs, Mapping):
        inputs = {
            str(key): _array(array, f"{name}: {part} inputs/{key}")
            for key, array in inputs.items()
        }
    else:
        inputs = _array(inputs, f"{name}: {part} inputs")
    labels = _plain(labels, f"{name}: {part} labels")
    return RawSplit(inputs, labels, weights[0] if weights else None, names)


def _array(value: Any, what: str) -> Any:
    """The value as an array; arrays that read rows on access stay as they are."""
    reads_rows = all(
        hasattr(value, name) for name in ("shape", "dtype", "__len__", "__getitem__")
    )
    if isinstance(value, np.ndarray) or (reads_rows and not hasattr(value, "numpy")):
        return value
    return _plain(value, what)


def _plain(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # array libraries raise types of their own
        raise BranchyError(
            f"{what} cannot be made an array: {first_line(error)}."
        ) from None
    if not array.ndim:
        raise BranchyError(
            f"{what} is {checks.shown(value)}; expected an array with a row for each "
            "example."
        )
    return array

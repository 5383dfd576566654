"""Checks of the fields of a JSON file, before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from branchy_tf.errors import BranchyError

# `{field: (the expected kind in words, the check for it)}`.
Kinds = Mapping[str, tuple[str, Callable[[Any], bool]]]


def check_kinds(source: object, value: Mapping[str, Any], kinds: Kinds) -> None:
    """Raises `BranchyError` for a field of another kind; fields may be missing.

    Args:
        source: the file, for the message.
        value: its content.
        kinds: the kinds of its fields.
    """
    for name, (expected, is_one) in kinds.items():
        if name in value and not is_one(value[name]):
            shown = " ".join(repr(value[name]).split())
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise BranchyError(
                f"{source}: {name} is {shown}; expected {expected}. Calibrate again to "
                "replace the file."
            )


def is_numbers(value: Any) -> bool:
    """Whether it is a list of numbers."""
    # In Python, True and False are ints.
    return isinstance(value, list) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
    )


def is_text(value: Any) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)

"""Reads the texts of flags."""

from __future__ import annotations

import ast
from typing import Any

from absl import flags

from branchy_tf.errors import BranchyError, one_line

FLAGS = flags.FLAGS


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """The sides in the text of --image_size, such as 96x96; None stays None.

    Raises:
        BranchyError: the text has another form.
    """
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (2, 3) or not all(side.isdecimal() for side in sides):
        raise BranchyError(
            f"--image_size={one_line(text)}: expected height and width, for example "
            "96x96, or 96x96x1 for grey pictures."
        )
    return tuple(map(int, sides))


def parse_arguments(text: str) -> dict[str, Any]:
    """Builder arguments from "depth=20,input_shape=32x32x3".

    Raises:
        BranchyError: the text has another form than name=value,name=value.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BranchyError(
                f"--model_args={text!r}: expected name=value,name=value, for example "
                f"classes=100,input_shape=32x32x3. Received {part!r}."
            )
        arguments[name.strip()] = _value(value.strip())
    return arguments


def _value(text: str) -> Any:
    sides = text.split("x")
    if len(sides) > 1 and all(side.isdigit() for side in sides):
        return tuple(int(side) for side in sides)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_numbers(flag: str, texts: list[str] | None) -> list[float] | None:
    """Floats from a list flag, which may include "inf"; None stays None.

    Raises:
        BranchyError: an entry is not a number.
    """
    if texts is None:
        return None
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise BranchyError(
            f"--{flag}={','.join(texts)}: expected comma-separated numbers ({error})."
        ) from None


def whole_numbers(flag: str) -> list[int]:
    """Whole numbers of at least 1 from a list flag.

    Raises:
        BranchyError: the list is empty, or an entry is invalid.
    """
    numbers = parse_numbers(flag, FLAGS[flag].value) or []
    if not numbers or any(n < 1 or not n.is_integer() for n in numbers):
        raise BranchyError(
            f"--{flag} must be comma-separated whole numbers of at least 1. Received "
            f"{','.join(FLAGS[flag].value)}."
        )
    return [int(n) for n in numbers]

"""Exits as a flag spells them: "block_3=conv(64,32);block_5=linear", or "auto:3"."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping

import keras

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.exits.adding import add_exits
from branchy_tf.exits.heads import Head, conv_head, linear_head, pool_head, takes_features
from branchy_tf.exits.proposing import propose_exits
from branchy_tf.files import functions

_AUTO = "auto:"
_CALL = re.compile(r"(\w+)\s*(?:\((.*)\))?\Z", re.DOTALL)
_KINDS = ("linear", "conv", "pool")
_HEADS = "linear, conv(FILTERS,...), pool(SIZE) or module:function"


@dataclasses.dataclass(frozen=True)
class ExitPlan:
    """The early exits to add to a model.

    Attributes:
        heads: `{layer name: head}` in order from the input, or None to propose layers.
        count: the number of layers to propose.
        head: the head at each proposed layer.
    """

    heads: Mapping[str, Head] | None = None
    count: int = 0
    head: Head = linear_head

    def add_to(self, model: keras.Model) -> keras.Model:
        """The model with these exits.

        Raises:
            BranchyError: what `add_exits` and `propose_exits` raise.
        """
        heads = self.heads
        if heads is None:
            heads = dict.fromkeys(propose_exits(model, self.count), self.head)
        return add_exits(model, heads)


def parse_exits(text: str) -> ExitPlan:
    """Reads exits as a flag spells them.

    Args:
        text: `LAYER=HEAD;LAYER=HEAD;...` in order from the input, or `auto:N`, which
            proposes N layers for linear heads, or `auto:N=HEAD` for other heads. A head
            is `linear`, `conv(64,32)` (the filters of each convolution), `pool(4)` (the
            size of a window) or `module:function`, a callable
            `(features, classes, name) -> logits`.

    Raises:
        BranchyError: the text has another form; the message says what was expected
            where.

    Example:

    ```python
    parse_exits("block_3=conv(64,32);block_5=linear").add_to(model)
    parse_exits("auto:2").add_to(model)
    ```
    """
    if not isinstance(text, str):
        raise BranchyError(
            "`text` must be exits as text, such as 'block_3=conv(64)' or 'auto:2'. "
            f"Received {checks.shown(text)}."
        )
    if text.strip().startswith(_AUTO):
        return _automatic(text)
    heads: dict[str, Head] = {}
    entries = text.split(";")
    for number, entry in enumerate(entries, start=1):
        layer, equals, head = (part.strip() for part in entry.partition("="))
        where = f"exit {number} of {len(entries)}, {entry.strip()!r}"
        if not (layer and equals and head):
            raise _malformed(text, where, "LAYER=HEAD, for example block_3=conv(64)")
        if layer in heads:
            raise _malformed(text, where, f"another layer; {layer!r} has an exit already")
        heads[layer] = _head(text, where, head)
    return ExitPlan(heads)


def _automatic(text: str) -> ExitPlan:
    number, equals, head = (p.strip() for p in text.strip()[len(_AUTO) :].partition("="))
    if not number.isdecimal() or int(number) < 1:
        raise _malformed(
            text, f"{number!r} after auto:", "a whole number of at least 1, as in auto:2"
        )
    if not equals:
        return ExitPlan(count=int(number))
    return ExitPlan(count=int(number), head=_head(text, f"{head!r} after =", head))


def _head(text: str, where: str, spelled: str) -> Head:
    if functions.names_function(spelled):
        function = functions.load_function(spelled)
        if not takes_features(function):
            raise BranchyError(
                f"The head {spelled} must be a function (features, classes, name) -> "
                "logits."
            )
        return function
    match = _CALL.match(spelled)
    kind, inside = match.groups() if match else (spelled, None)
    if kind not in _KINDS:
        close = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise _malformed(text, where, f"the head {_HEADS} after ={hint}")
    if kind == "linear":
        if inside is not None:
            raise _malformed(text, where, "linear without parentheses")
        return linear_head
    numbers = [] if inside is None else [part.strip() for part in inside.split(",")]
    if not numbers or not all(part.isdecimal() and int(part) > 0 for part in numbers):
        example = "conv(64) or conv(64,32)" if kind == "conv" else "pool(4)"
        raise _malformed(
            text, where, f"whole numbers of at least 1 in parentheses, as in {example}"
        )
    if kind == "conv":
        return conv_head([int(part) for part in numbers])
    if len(numbers) > 1:
        raise _malformed(text, where, "one number in parentheses, as in pool(4)")
    return pool_head(int(numbers[0]))


def _malformed(text: str, where: str, expected: str) -> BranchyError:
    return BranchyError(
        f"The exits {text!r} cannot be read at {where}: expected {expected}."
    )

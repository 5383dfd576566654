"""What a layer says about its own cost, and what to do when nothing is known."""

from __future__ import annotations

import numbers
from typing import Any

from branchy_tf.errors import BranchyError


def declared_macs(layer: Any) -> int | None:
    """The attribute `macs` of a layer: its multiply-adds for one example, or None.

    Raises:
        BranchyError: it is not a whole number from 0.
    """
    declared = getattr(layer, "macs", None)
    if declared is None:
        return None
    whole = isinstance(declared, numbers.Integral) and not isinstance(declared, bool)
    if not whole or declared < 0:
        raise BranchyError(
            f"The attribute `macs` of layer {layer.name!r} is {declared!r}; expected its "
            "multiply-adds for one example, a whole number."
        )
    return int(declared)


def uncountable(layer: Any, why: str, otherwise: str = "") -> BranchyError:
    """The error for a layer whose multiply-adds cannot be counted.

    Args:
        layer: a layer or operation of Keras.
        why: what it does, as in "it runs FFT".
        otherwise: another way out, if there is one.
    """
    return BranchyError(
        f"The multiply-adds of layer {layer.name!r} ({type(layer).__name__}) cannot be "
        f"counted: {why}. {otherwise}Give the layer's class an attribute `macs`, its "
        "multiply-adds for one example."
    )


def unknown_size(layer: Any) -> BranchyError:
    """The error for a layer whose inputs or outputs have axes of unknown size."""
    return BranchyError(
        f"The multiply-adds of layer {layer.name!r} depend on the input size, which is "
        "unknown. Build the model for a fixed size: a fixed height and width, or a fixed "
        "number of tokens."
    )

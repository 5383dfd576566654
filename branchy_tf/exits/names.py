"""The exits of a model, by their names.

Exits are called exit_1 ... exit_N from the entry on; exit_N is the network's
own output. An exit's head layer carries that name and so does its key in the
model's output dict, which is what lets a plain Keras model be compiled, saved
and cut into stages without a table on the side.
"""

from __future__ import annotations

import re
from typing import Any

import keras

from branchy_tf import graphs
from branchy_tf.errors import BranchyError

_NAME = re.compile(r"exit_([1-9][0-9]*)\Z")


def exit_tensors(model: keras.Model) -> dict:
    """The exits of a model from the entry on.

    Returns:
        `{"exit_1": logits, ..., "exit_N": logits}`, symbolic tensors in exit
        order (by number: exit_10 comes after exit_9).

    Raises:
        BranchyError: the model is not functional, or its outputs are not
            named exit_1 ... exit_N.

    Example:

    ```python
    list(exit_tensors(branchy_lenet()))     # ["exit_1", "exit_2"]
    ```
    """
    graphs.check_functional(model)
    outputs = model.output if isinstance(model.output, dict) else {}
    tensors = {
        key: tensor
        for key, tensor in outputs.items()
        if isinstance(key, str) and _NAME.match(key) and _maker(tensor) == key
    }
    numbers = {int(key.removeprefix("exit_")): key for key in tensors}
    if not outputs or len(tensors) < len(outputs) or max(numbers) > len(numbers):
        raise BranchyError(
            f"Model {model.name!r} has outputs {_described(model)}; expected a dict of "
            "exit_1 ... exit_N, each made by a layer of that very name. Name each "
            "exit's last layer exactly like its key."
        )
    for name, tensor in tensors.items():
        if len(tensor.shape) != 2 or tensor.shape[-1] is None:
            raise BranchyError(
                f"{name} of model {model.name!r} has shape {tuple(tensor.shape)}; "
                "expected logits (batch, classes)."
            )
    widths = {tensors[numbers[n]].shape[-1] for n in numbers}
    if len(widths) > 1:
        raise BranchyError(
            f"The exits of model {model.name!r} have different numbers of classes: "
            f"{sorted(widths)}. Every exit must answer the same question."
        )
    return {numbers[n]: tensors[numbers[n]] for n in sorted(numbers)}


def _described(model: keras.Model) -> str:
    if not isinstance(model.output, dict):
        return f"made by the layers {', '.join(model.output_names)}, not in a dict"
    return ", ".join(
        f"{key} made by layer {_maker(tensor) or 'none alone'}"
        for key, tensor in model.output.items()
    )


def _maker(tensor: Any) -> str:
    """The name of the layer that makes an output; empty for a structure of several."""
    # Not is_keras_tensor: that complains of what is no tensor.
    history = getattr(tensor, "_keras_history", None)
    return history.operation.name if history else ""


def exit_names(model: keras.Model) -> list[str]:
    """`["exit_1", ..., "exit_N"]` of a model; raises like `exit_tensors`."""
    return list(exit_tensors(model))


def num_classes(model: keras.Model) -> int:
    """The number of classes that every exit of `model` tells apart."""
    return next(iter(exit_tensors(model).values())).shape[-1]


def baseline(model: keras.Model) -> keras.Model:
    """The same network and weights with the final exit alone.

    Args:
        model: a multi-exit model.

    Returns:
        A plain `keras.Model` from the same inputs to the logits of exit_N,
        [B, classes]. It shares its layers with `model`: training one trains
        the other.

    Example:

    ```python
    branchy_tf.baseline(branchy_lenet()).summary()   # LeNet
    ```
    """
    final = list(exit_tensors(model).values())[-1]
    return keras.Model(model.input, final, name=f"{model.name}_baseline")

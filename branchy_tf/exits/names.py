"""The exits of a model, by name.

Exits are called exit_1 ... exit_N in order from the input; exit_N is the network's own
output. An exit's last layer and its key in the model's output dict share that name, so
a plain Keras model can be compiled, saved and cut into stages without extra metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

from branchy_tf import graphs
from branchy_tf.errors import BranchyError

_NAME = re.compile(r"exit_([1-9][0-9]*)\Z")


def classifies(shape: Sequence[int | None]) -> bool:
    """Whether an output of this shape can hold logits for one label per example."""
    return len(shape) == 2 and shape[-1] is not None and shape[-1] > 1


def other_task(shape: Sequence[int | None]) -> str:
    """What an output of another shape is for, as a sentence with a space before it."""
    if len(shape) > 2:
        return (
            " An answer for each position, as in segmentation or tagging, is out of "
            "scope; pool the positions before the last layer."
        )
    if tuple(shape[1:]) == (1,):
        return (
            " A single number, as in regression, is out of scope; for two classes, give "
            "the last layer two units and no activation."
        )
    return ""


def exit_tensors(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The logits of every exit of a model, in order.

    Returns:
        `{"exit_1": logits, ..., "exit_N": logits}`, symbolic tensors [B, classes],
        sorted by number: exit_10 comes after exit_9.

    Raises:
        BranchyError: the model is not functional, its outputs are not exit_1 ...
            exit_N, or they are not logits for the same number of classes.

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
            "exit_1 ... exit_N, each made by a layer of that name. Name each exit's "
            "last layer exactly like its key."
        )
    for name, tensor in tensors.items():
        if not classifies(tensor.shape):
            raise BranchyError(
                f"{name} of model {model.name!r} has shape {tuple(tensor.shape)}; "
                "expected logits (batch, classes) with at least 2 classes."
                f"{other_task(tensor.shape)}"
            )
    widths = {tensors[numbers[n]].shape[-1] for n in numbers}
    if len(widths) > 1:
        raise BranchyError(
            f"The exits of model {model.name!r} have different numbers of classes: "
            f"{sorted(widths)}. Give every exit the same classes."
        )
    return {numbers[n]: tensors[numbers[n]] for n in sorted(numbers)}


def _described(model: keras.Model) -> str:
    if not isinstance(model.output, dict):
        return f"made by the layers {', '.join(model.output_names)}, not in a dict"
    return ", ".join(
        f"{key} made by layer {_maker(tensor) or 'none alone'}"
        for key, tensor in model.output.items()
    )


def _maker(tensor: object) -> str:
    """The name of the layer that makes an output; empty for a nested output."""
    # is_keras_tensor would raise for a nested output.
    history = getattr(tensor, "_keras_history", None)
    return history.operation.name if history else ""


def exit_names(model: keras.Model) -> list[str]:
    """`["exit_1", ..., "exit_N"]` of a model; raises what `exit_tensors` raises."""
    return list(exit_tensors(model))


def num_classes(model: keras.Model) -> int:
    """The number of classes of a model; raises what `exit_tensors` raises."""
    return next(iter(exit_tensors(model).values())).shape[-1]


def baseline(model: keras.Model) -> keras.Model:
    """The same network and weights with only the final exit.

    Args:
        model: a multi-exit model.

    Returns:
        A plain `keras.Model` from the same inputs to the logits of exit_N,
        [B, classes]. It shares its layers with `model`, so training one trains the
        other.

    Raises:
        BranchyError: what `exit_tensors` raises.

    Example:

    ```python
    branchy_tf.baseline(branchy_lenet()).summary()   # LeNet
    ```
    """
    final = list(exit_tensors(model).values())[-1]
    return keras.Model(model.input, final, name=f"{model.name}_baseline")

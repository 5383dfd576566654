"""Bottlenecks: fewer channels at a cut, between an encoder and a decoder.

A bottleneck is part of the network, so it is trained with the network's own loss, and a
plain `.keras` file holds it. `units.cut` finds it by the names of its layers and puts the
encoder into the unit before the cut, the decoder into the one behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from branchy_tf import checks, exits, graphs, stages
from branchy_tf.errors import BranchyError

_CONVOLUTIONS = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}


def add_bottlenecks(model: keras.Model, channels: Mapping[str, int]) -> keras.Model:
    """Narrows what crosses the cuts after some exits.

    Every tensor [B, ..., C] of floats that crosses a cut is mapped to the given number of
    channels and back, each by one linear layer over the channels (a 1 x 1 convolution
    for feature maps). Narrower tensors, integers and booleans stay as they are. At the
    start, the two layers are a random orthogonal projection: fit the model before use.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        channels: `{exit to cut after: channels}`.

    Returns:
        A model that shares all other layers with `model`.

    Raises:
        BranchyError: what `stages.crossing` raises, an unknown or the final exit, a
            number below 1, a cut that has a bottleneck, or one that nothing wider
            crosses.

    References:
        Eshratifar, Esmaili, Pedram: BottleNet (2019), arXiv 1902.01000, which also
        reduces the map's height and width.

    Example:

    ```python
    model = add_bottlenecks(branchy_resnet(depth=20), {"exit_1": 4})
    training.train(model, dataset, settings, training.RunFolder("runs/narrow"))
    device, cloud = units.cut(model, ["exit_1"])    # 4 channels travel
    ```
    """
    known = exits.exit_names(model)
    for name in channels:
        checks.one_of("exit of a bottleneck", name, known[:-1])
    for name in sorted(channels, key=known.index):
        model = _with_one(model, name, channels[name])
    return model


def parse_bottlenecks(text: str, model: keras.Model) -> dict[str, int]:
    """Reads bottlenecks as a flag spells them.

    Args:
        text: "exit_1=8,exit_2=4", the channels after each exit; for a model with a
            single early exit also "8".
        model: the multi-exit model.

    Returns:
        `{exit: channels}`.

    Raises:
        BranchyError: the text has another form, or names no early exit of the model.

    Example:

    ```python
    parse_bottlenecks("exit_1=8", branchy_lenet())      # {"exit_1": 8}
    ```
    """
    early = exits.exit_names(model)[:-1]
    found: dict[str, int] = {}
    for entry in text.split(","):
        name, equals, number = (part.strip() for part in entry.rpartition("="))
        if not equals and len(early) == 1:
            name = early[0]
        if not number.isdecimal() or not name or name in found:
            raise BranchyError(
                f"The bottleneck {text!r} cannot be read at {entry.strip()!r}: expected "
                "EXIT=CHANNELS,EXIT=CHANNELS, each exit once, for example "
                f"{early[0] if early else 'exit_1'}=8. The early exits of {model.name} "
                f"are {', '.join(early) or 'none'}."
            )
        found[checks.one_of("exit of a bottleneck", name, early)] = int(number)
    return found


def _with_one(model: keras.Model, exit: str, channels: int) -> keras.Model:
    channels = checks.whole_number("channels of a bottleneck", channels, at_least=1)
    cut = stages.crossing(model, exit)
    if any(node.operation.name == stages.encoder_name(exit, 0) for node in cut.after):
        raise BranchyError(f"{model.name} already has a bottleneck after {exit}.")
    wide = [i for i, t in enumerate(cut.carried) if _is_wider(t, channels)]
    if not wide:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in cut.carried)
        raise BranchyError(
            f"Nothing that crosses the cut after {exit} of {model.name} has more than "
            f"{channels} channels: {shapes}. Pass fewer channels."
        )
    before = {id(tensor): tensor for tensor in model.inputs}
    graphs.replay(cut.before, before)
    after = dict(before)
    for number, i in enumerate(wide):
        old = cut.carried[i]
        after[id(old)] = _through(before[id(old)], channels, exit, number)
    graphs.replay(cut.after, after)
    # Later stages may read the logits of an early exit, narrowed too.
    made = after | before
    outputs = {
        name: made[id(logits)] for name, logits in exits.exit_tensors(model).items()
    }
    return keras.Model(model.input, outputs, name=model.name)


def _is_wider(tensor: keras.KerasTensor, channels: int) -> bool:
    return (
        keras.backend.is_float_dtype(tensor.dtype)
        and 2 <= len(tensor.shape) <= 5
        and tensor.shape[-1] is not None
        and tensor.shape[-1] > channels
    )


def _through(tensor: Any, channels: int, exit: str, index: int) -> Any:
    """The tensor behind an encoder and a decoder."""
    name = stages.encoder_name(exit, index)
    start = keras.initializers.Orthogonal()
    encode = _linear(tensor, channels, name, start, use_bias=False)
    decode = _linear(tensor, tensor.shape[-1], name.replace("encoder", "decoder"), start)
    found = decode(encode(tensor))
    # Its transpose is the inverse on the subspace that the encoder keeps.
    kernel = keras.ops.swapaxes(encode.kernel, -1, -2)
    decode.kernel.assign(kernel)
    return found


def _linear(
    tensor: Any, channels: int, name: str, start: Any, use_bias: bool = True
) -> keras.Layer:
    """A linear map of the channels of tensors of this rank."""
    rank = len(tensor.shape)
    arguments = {"use_bias": use_bias, "kernel_initializer": start, "name": name}
    if rank == 2:
        return layers.Dense(channels, **arguments)
    return _CONVOLUTIONS[rank](channels, 1, **arguments)

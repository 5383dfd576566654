"""Adds early exits to any functional Keras model."""

from __future__ import annotations

import collections
import difflib
from collections.abc import Container, Mapping

import keras
from keras import layers

from branchy_tf import graphs
from branchy_tf.errors import BranchyError
from branchy_tf.exits.flattening import Flat, flatten
from branchy_tf.exits.heads import Head, takes_features
from branchy_tf.exits.logits import (
    activation_of,
    check_logits,
    is_softmax_of,
    last_change,
    looks_bounded,
)
from branchy_tf.exits.names import classifies, other_task
from branchy_tf.results import exit_name

# Layers that apply a softmax and nothing else.
_SOFTMAX_ONLY = (layers.Activation, layers.Softmax)


def add_exits(
    model: keras.Model, heads: Mapping[str, Head], name: str | None = None
) -> keras.Model:
    """Adds early exits to a model.

    The new model shares its layers and weights with `model`, which stays unchanged.
    The output of `model` becomes the final exit: an Identity called exit_N follows
    it and replaces any Identity already there. A final softmax is dropped (same
    kernel, logits out). Models inside the model, such as a network of
    `keras.applications` behind preprocessing layers, are inlined, see
    `flattening.flatten`, so that exits can be placed between their layers.

    Args:
        model: a functional or Sequential Keras model, channels last, with one output
            [B, classes]: your own, one of `keras.applications`, or the
            `exits.baseline` of a multi-exit model.
        heads: `{layer name: head}` in order from the input: exit_1 reads the output
            of the first layer, and so on. A head is `linear_head`,
            `conv_head(...)`, `pool_head(...)` or any callable `(features, classes,
            name) -> logits`. A layer may belong to the branch of an earlier exit
            (e.g. `exit_1_conv_1`); the exits then form a tree. The name of an inlined
            model stands for its output.
        name: the name of the new model. Default: `branchy_` plus the model's name.

    Returns:
        A plain `keras.Model` from the same inputs to `{"exit_1": logits, ...,
        "exit_N": logits}`, each float32 [B, classes].

    Raises:
        BranchyError: the model is not functional, has several outputs, is channels
            first or returns bounded values other than a final softmax; a layer is
            missing, out of order, the output itself or without a gradient; a head
            does not return logits; or two layers would share a name.

    Example:

    ```python
    trunk = keras.applications.MobileNet(weights=None)
    model = add_exits(trunk, {"conv_pw_5_relu": conv_head(filters=[64])})
    model(images)["exit_1"]     # logits [B, 1000]
    ```
    """
    flat = flatten(single_output(model))
    model = flat.model
    name = f"branchy_{model.name}" if name is None else name
    graphs.check_name(name)
    logits = _without_softmax(model)
    classes = logits.shape[-1]
    if not isinstance(heads, Mapping) or not heads:
        raise BranchyError(
            "`heads` must be {layer name: head} with at least one entry. Received "
            f"{heads!r}."
        )
    outputs: dict[str, keras.KerasTensor] = {}
    places: dict[str, keras.KerasTensor] = {}
    for number, (layer, head) in enumerate(heads.items(), start=1):
        exit_ = exit_name(number)
        features = _place(flat, outputs, layer, logits)
        _check_order(places, layer, features)
        places[layer] = features
        outputs[exit_] = _logits(head, features, classes, exit_, layer)
    final = exit_name(len(heads) + 1)
    outputs[final] = layers.Identity(name=final, dtype="float32")(logits)
    _check_names(model, outputs)
    return keras.Model(model.input, outputs, name=name)


def single_output(model: keras.Model) -> keras.Model:
    """The model in functional form; raises unless its one output is [B, classes]."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise BranchyError(
                f"Sequential model {model.name!r} has no input shape yet. Begin it with "
                "keras.Input(shape)."
            )
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    graphs.check_functional(model)
    graphs.check_channels_last(model)
    if len(model.outputs) != 1:
        raise BranchyError(
            f"Model {model.name!r} has {len(model.outputs)} outputs: "
            f"{', '.join(model.output_names)}. Expected one. Select the one that "
            "classifies: keras.Model(model.input, output)."
        )
    shape = model.outputs[0].shape
    if not classifies(shape):
        raise BranchyError(
            f"Model {model.name!r} has an output of shape {tuple(shape)}; expected "
            f"(batch, classes) with at least 2 classes.{other_task(shape)}"
        )
    return model


def _without_softmax(model: keras.Model) -> keras.KerasTensor:
    """The model's logits: its output, or the input of its final softmax."""
    output = model.outputs[0]
    # The final exit of a model this one was made from; the new one replaces it.
    while isinstance(graphs.producer(output).operation, layers.Identity):
        output = graphs.producer(output).input_tensors[0]
    node = last_change(output)
    layer = node.operation
    activation = activation_of(layer)
    if activation is keras.activations.linear:
        bounded = looks_bounded(output)
        if bounded:
            raise BranchyError(
                f"Model {model.name!r} gives {bounded}; expected logits or a final "
                "softmax. Build it without the operation that turns its logits into "
                "probabilities."
            )
        return output
    if activation is not keras.activations.softmax:
        several = (
            " With a sigmoid each class has an answer of its own; several labels for one "
            "example are out of scope. If there is one label, return the logits."
        )
        raise BranchyError(
            f"Model {model.name!r} ends in layer {layer.name!r} with the activation "
            f"{getattr(activation, '__name__', activation)}; expected logits or softmax."
            f"{several if activation is keras.activations.sigmoid else ''}"
        )
    if tuple(node.outputs[0].shape) != tuple(output.shape):
        raise BranchyError(
            f"Model {model.name!r} reshapes the output of its softmax {layer.name!r}. "
            "Expected logits, or a softmax over (batch, classes)."
        )
    # An activity regulariser is meant for probabilities, but would see the logits.
    plain = not isinstance(layer, layers.Layer) or (
        graphs.computes_as_its_class(layer) and layer.activity_regularizer is None
    )
    if plain and isinstance(layer, layers.Dense):
        logits = _linear_twin(layer)(node.input_tensors[0])
    elif plain and (type(layer) in _SOFTMAX_ONLY or not isinstance(layer, layers.Layer)):
        logits = node.input_tensors[0]
    else:
        raise BranchyError(
            f"Model {model.name!r} ends in layer {layer.name!r}, a "
            f"{type(layer).__name__} with softmax inside. Expected a plain Dense or a "
            "separate softmax layer."
        )
    if not is_softmax_of(output, logits):
        raise BranchyError(
            f"Model {model.name!r} ends in the softmax {layer.name!r}, which is not a "
            "softmax of its logits over the classes (another axis, or a mask)."
        )
    return logits


def _linear_twin(layer: layers.Dense) -> layers.Dense:
    """The same dense layer, with its name and variables but no activation."""
    twin = layers.Dense.from_config(layer.get_config() | {"activation": "linear"})
    twin._kernel, twin.bias = layer._kernel, layer.bias
    if layer.lora_enabled:
        twin.lora_kernel_a, twin.lora_kernel_b = layer.lora_kernel_a, layer.lora_kernel_b
        twin.lora_enabled = True
    twin.built = True
    return twin


def _place(
    flat: Flat,
    outputs: Mapping[str, keras.KerasTensor],
    name: str,
    logits: keras.KerasTensor,
) -> keras.KerasTensor:
    """The output of the layer called `name`, in the trunk or in a branch."""
    model = flat.model
    nodes = graphs.nodes_between(model.inputs, [logits, *outputs.values()])
    tensors = [t for node in nodes if node.operation.name == name for t in node.outputs]
    names = {node.operation.name for node in nodes}
    if not tensors and isinstance(name, str):
        computed = {id(tensor) for node in nodes for tensor in node.outputs}
        tensors = [t for t in flat.outputs.get(name, []) if id(t) in computed]
    if not tensors:
        raise BranchyError(_no_such_layer(model, names, name, flat.outputs))
    last = graphs.producer(logits).operation.name
    if any(tensor._keras_history.operation.name == last for tensor in tensors):
        raise BranchyError(
            f"Layer {name!r} makes the output of {model.name!r}, which is already the "
            "final exit. Place the exit at an earlier layer."
        )
    if len(tensors) > 1:
        raise BranchyError(
            f"Layer {name!r} gives {len(tensors)} tensors (it is called several times or "
            "has several outputs); an exit needs one. Choose another layer."
        )
    if not keras.backend.is_float_dtype(tensors[0].dtype):
        raise BranchyError(
            f"Layer {name!r} gives {tensors[0].dtype} values, which carry no gradient. "
            "Place the exit at a later layer."
        )
    return tensors[0]


def _no_such_layer(
    model: keras.Model, names: set[str], name: str, after: Container[str]
) -> str:
    if isinstance(name, layers.Layer):
        return (
            f"Exits are placed by layer name. Received the {type(name).__name__} itself; "
            f"pass its name, {name.name!r}."
        )
    if name in after or any(layer.name == name for layer in model.layers):
        return (
            f"Layer {name!r} is the input of {model.name!r} or comes after its logits. "
            "Place the exit at a layer in between."
        )
    inner = {
        deep.name: layer.name
        for layer in model.layers
        if isinstance(layer, keras.Model)
        for deep in graphs.layers_within(layer)
    }
    if name in inner:
        return (
            f"Layer {name!r} is inside the sub-model {inner[name]!r}, which "
            f"cannot be inlined into {model.name!r}: it has its own call method or a "
            "mask, or shares a layer name with another part. Build it on the outer "
            f"tensor (input_tensor=), or place the exit at {inner[name]!r}."
        )
    close = difflib.get_close_matches(str(name), sorted(names), n=3, cutoff=0.4)
    hint = f" Closest: {', '.join(close)}." if close else ""
    return f"Model {model.name!r} has no layer {name!r}.{hint} See model.summary()."


def _check_order(
    places: Mapping[str, keras.KerasTensor], layer: str, features: keras.KerasTensor
) -> None:
    for earlier, tensor in places.items():
        if graphs.depends(tensor, features):
            raise BranchyError(
                f"Exits must be given in order from the input, but layer {layer!r} comes "
                f"before {earlier!r}. Give {layer!r} first."
            )


def _logits(
    head: Head, features: keras.KerasTensor, classes: int, exit_: str, layer: str
) -> keras.KerasTensor:
    if not takes_features(head):
        raise BranchyError(
            f"The head at {layer!r} must be a callable (features, classes, name) -> "
            f"logits. Received {head!r}. For example: conv_head(filters=[32])."
        )
    logits = head(features, classes, exit_)
    shape = tuple(logits.shape) if keras.utils.is_keras_tensor(logits) else None
    if shape is None or shape[1:] != (classes,):
        raise BranchyError(
            f"The head at {layer!r} must return logits of shape (batch, {classes}), "
            f"computed from its features. Received {shape or type(logits).__name__}."
        )
    if logits is not features and not graphs.depends(logits, features):
        raise BranchyError(
            f"The head at {layer!r} does not read its features, so no gradient reaches "
            "them. Compute its logits from the features."
        )
    if not keras.backend.is_float_dtype(logits.dtype):
        raise BranchyError(
            f"The head at {layer!r} gives {logits.dtype} values, which carry no "
            "gradient. Expected logits of a floating dtype."
        )
    check_logits({f"The head at {layer!r}": logits})
    named = graphs.producer(logits).operation.name == exit_
    if named and logits.dtype != "float32":
        raise BranchyError(
            f"The head at {layer!r} gives {logits.dtype} logits; expected float32. Pass "
            "dtype='float32' to its last layer."
        )
    if not named:
        logits = layers.Identity(name=exit_, dtype="float32")(logits)
    return logits


def _check_names(model: keras.Model, outputs: Mapping[str, keras.KerasTensor]) -> None:
    nodes = graphs.nodes_between([], outputs.values())
    names = {id(node.operation): node.operation.name for node in nodes}
    inputs = [tensor._keras_history.operation.name for tensor in model.inputs]
    for name, times in collections.Counter([*names.values(), *inputs]).items():
        if times > 1:
            raise BranchyError(
                f"{times} layers of {model.name!r} and its heads would be called "
                f"{name!r}. Rename the model's layer, or start the head's layer name "
                "with the `name` that the head receives."
            )

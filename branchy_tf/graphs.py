"""Reading the graph of a functional Keras model, and replaying it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import keras

from branchy_tf.errors import BranchyError


def check_functional(model: keras.Model) -> None:
    """Raises `BranchyError` unless `model` is a functional Keras model."""
    if not isinstance(model, keras.Model) or not hasattr(model, "output_names"):
        raise BranchyError(
            f"Expected a functional keras.Model, received {type(model).__name__}. "
            "A subclassed model has no graph to read; build it as "
            "keras.Model(inputs, outputs)."
        )


def check_name(name: object) -> None:
    """Raises `BranchyError` unless a model can be called so."""
    if not isinstance(name, str) or not name or "/" in name:
        raise BranchyError(
            f"`name` must be a text without '/', not empty. Received {name!r}."
        )


def layers_within(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of `model` and of the models inside it."""
    found = []
    for layer in model.layers:
        found.append(layer)
        if isinstance(layer, keras.Model):
            found += layers_within(layer)
    return found


def check_backend() -> None:
    """Raises `BranchyError` unless Keras runs on TensorFlow, as routing and export do."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise BranchyError(
            f"Keras runs on {backend}; routing and exporting need it on TensorFlow. Set "
            "KERAS_BACKEND=tensorflow; what another backend trained loads there."
        )


def check_image_data_format() -> None:
    """Raises `BranchyError` if Keras is set to channels first."""
    if keras.config.image_data_format() != "channels_last":
        raise BranchyError(
            "The networks and exits here read channels-last images, but Keras is set to "
            "channels_first. Call keras.config.set_image_data_format('channels_last')."
        )


def check_channels_last(model: keras.Model) -> None:
    """Raises `BranchyError` if layers of a model, or new ones, are channels first."""
    check_image_data_format()
    for layer in layers_within(model):
        if getattr(layer, "data_format", None) == "channels_first":
            raise BranchyError(
                f"Layer {layer.name!r} of {model.name!r} is channels first; exits read "
                "channels-last features. Build it with data_format='channels_last'."
            )


def has_nodes(model: keras.Model) -> bool:
    """Whether `nodes_in_order` can read it; not if Sequential or subclassed."""
    return hasattr(model, "_nodes_by_depth")


def nodes_in_order(model: keras.Model) -> list[Any]:
    """The calls of layers and operations in `model`, inputs aside, in order."""
    # Keras keeps them by depth, the distance to the output, but gives no public
    # way to them.
    by_depth = model._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def fingerprint(model: keras.Model) -> str:
    """16 hexadecimal digits that tell a model's weights from others."""
    digest = hashlib.sha256()
    # Not all variables: dropout keeps the state of its random numbers in one.
    for variable in sorted(model.weights, key=lambda weight: weight.path):
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()[:16]


def producer(tensor: Any) -> Any:
    """The node that makes a symbolic tensor."""
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]


def nodes_between(inputs: Iterable, outputs: Iterable) -> list[Any]:
    """The nodes that `outputs` need, back to `inputs`, in no certain order."""
    seen = {id(tensor) for tensor in inputs}
    nodes: dict[int, Any] = {}
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = producer(tensor)
        if node.is_input or id(node) in nodes:
            continue
        nodes[id(node)] = node
        waiting.extend(node.input_tensors)
    return list(nodes.values())


def depends(tensor: Any, source: Any) -> bool:
    """Whether `tensor` is computed from `source`."""
    if tensor is source:
        return False
    return any(
        source is read
        for node in nodes_between([], [tensor])
        for read in node.input_tensors
    )


def replay(
    nodes: Iterable,
    value: dict[int, Any],
    instead: Mapping[int, Callable[..., Any]] = MappingProxyType({}),
) -> None:
    """Calls the operations of `nodes` again, on other tensors.

    Args:
        nodes: in an order in which they can be computed.
        value: `{id(old tensor): new tensor}`; holds what the nodes read from
            outside and receives what they make.
        instead: `{id(node): what to call instead of its operation}`.
    """
    for node in nodes:
        args, kwargs = node.arguments.fill_in(value)
        operation = instead.get(id(node), node.operation)
        outputs = keras.tree.flatten(operation(*args, **kwargs))
        value.update(
            (id(old), new) for old, new in zip(node.outputs, outputs, strict=True)
        )


def rebuild(
    model: keras.Model, instead: Mapping[int, Callable[..., Any]], inputs: Any = None
) -> keras.Model:
    """The graph of `model` again, with other operations in some of its nodes.

    Args:
        model: a functional model; it is not changed.
        instead: `{id(node): what to call instead of its operation}`.
        inputs: structured like the model's own, which are the default.
    """
    inputs = model.input if inputs is None else inputs
    old, new = keras.tree.flatten(model.input), keras.tree.flatten(inputs)
    value = {id(tensor): fresh for tensor, fresh in zip(old, new, strict=True)}
    replay(nodes_in_order(model), value, instead)
    outputs = keras.tree.map_structure(lambda tensor: value[id(tensor)], model.output)
    return keras.Model(inputs, outputs, name=model.name)

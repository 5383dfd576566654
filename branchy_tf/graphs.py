"""Reads and replays the graph of a functional Keras model."""

from __future__ import annotations

import hashlib
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from branchy_tf.errors import BranchyError

_UNNAMED = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def check_functional(model: keras.Model) -> None:
    """Raises `BranchyError` unless `model` is a functional Keras model."""
    if isinstance(model, keras.Model) and hasattr(model, "output_names"):
        return
    expected = "Expected a functional keras.Model, received"
    if is_keras_2(model):
        raise BranchyError(
            f"{expected} {model.name!r}, a tf_keras (Keras 2) model. Build it with "
            "Keras 3 (`import keras`) and copy its weights: "
            "new.set_weights(old.get_weights())."
        )
    if isinstance(model, keras.Model):
        raise BranchyError(
            f"{expected} {type(model).__name__}. A subclassed model has no graph; build "
            "it as keras.Model(inputs, outputs)."
        )
    raise BranchyError(
        f"{expected} {type(model).__name__}. Build one as keras.Model(inputs, outputs)."
    )


def is_keras_2(layer: object) -> bool:
    """Whether `layer` is a layer or model of Keras 2, which Keras 3 cannot call."""
    # tf_keras, and the copy inside older versions of TensorFlow.
    packages = ("tf_keras.", "tensorflow.python.keras.")
    return any(f"{kind.__module__}.".startswith(packages) for kind in type(layer).__mro__)


def computes_as_its_class(layer: Any) -> bool:
    """Whether `layer` computes what Keras documents for its class and attributes.

    It is false for a subclass, a layer with a replaced `call`, and a quantised layer,
    whose kernel has a scale. LoRA is no exception: `kernel` includes it.
    """
    kind = type(layer)
    return (
        getattr(keras.layers, kind.__name__, None) is kind
        and "call" not in vars(layer)
        and layer.quantization_mode is None
    )


def copy_weights(source: keras.Layer, target: keras.Layer) -> None:
    """Copies weights to `target`, which was built from the configuration of `source`."""
    target.set_weights(source.get_weights())
    # Dense.build ignores the LoRA scale in its configuration.
    for ours, theirs in zip(
        target._flatten_layers(), source._flatten_layers(), strict=True
    ):
        if getattr(theirs, "lora_enabled", False):
            ours.lora_alpha = theirs.lora_alpha


def check_name(name: object) -> None:
    """Raises `BranchyError` unless `name` is valid for a model."""
    if not isinstance(name, str) or not name or "/" in name:
        raise BranchyError(
            f"`name` must be a non-empty string without '/'. Received {name!r}."
        )


def layers_within(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of `model` and, recursively, of the models inside it."""
    found = []
    for layer in model.layers:
        found.append(layer)
        if isinstance(layer, keras.Model):
            found += layers_within(layer)
    return found


def check_backend() -> None:
    """Raises `BranchyError` unless Keras runs on TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise BranchyError(
            f"Keras runs on {backend}; routing and exporting need TensorFlow. Set "
            "KERAS_BACKEND=tensorflow; it loads models trained with another backend."
        )


def check_image_data_format() -> None:
    """Raises `BranchyError` if Keras is set to channels first."""
    if keras.config.image_data_format() != "channels_last":
        raise BranchyError(
            "branchy_tf needs channels-last images, but Keras is set to channels_first. "
            "Call keras.config.set_image_data_format('channels_last')."
        )


def check_channels_last(model: keras.Model) -> None:
    """Raises `BranchyError` if a layer of `model`, or Keras, is channels first."""
    check_image_data_format()
    for layer in layers_within(model):
        if getattr(layer, "data_format", None) == "channels_first":
            raise BranchyError(
                f"Layer {layer.name!r} of {model.name!r} is channels first; exits read "
                "channels-last features. Build it with data_format='channels_last'."
            )


def has_nodes(model: keras.Model) -> bool:
    """Whether `nodes_in_order` works; false for Sequential and subclassed models."""
    return hasattr(model, "_nodes_by_depth")


def nodes_in_order(model: keras.Model) -> list[Any]:
    """The nodes of `model` in the order of computation, without its inputs.

    A node is one call of a layer or operation.
    """
    # Keras sorts them by depth, the distance to the output, but not in public.
    by_depth = model._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def input_names(model: keras.Model) -> list[str]:
    """The names of the inputs in signatures and files, the same in each process.

    A single input of rank 4 is called images.
    """
    tensors = model.inputs
    if len(tensors) == 1 and len(tensors[0].shape) == 4:
        return ["images"]
    names = [tensor.name for tensor in tensors]
    keys = sorted(model.input) if isinstance(model.input, dict) else []
    for i, name in enumerate(names):
        # Keras numbers unnamed inputs with a counter per process.
        if _UNNAMED.fullmatch(name):
            names[i] = keys[i] if len(keys) == len(names) else f"input_{i + 1}"
    return [_identifier(name) for name in names]


def named_inputs(model: keras.Model, inputs: Any) -> dict[str, Any]:
    """The arrays of a batch by the names of `input_names`.

    Args:
        model: the model.
        inputs: an array for a single input; else a dict by these names, or by those of
            the model's own inputs.

    Raises:
        BranchyError: an input is missing.
    """
    names = input_names(model)
    if not isinstance(inputs, Mapping):
        inputs = {names[0]: inputs}
    own = {name: tensor.name for name, tensor in zip(names, model.inputs, strict=True)}
    missing = [name for name in names if not {name, own[name]} & inputs.keys()]
    if missing:
        raise BranchyError(
            f"{model.name} takes the inputs {', '.join(names)}; pass a dict with these "
            f"names. Missing: {', '.join(missing)}."
        )
    return {name: inputs[name if name in inputs else own[name]] for name in names}


def cast_inputs(model: keras.Model, inputs: Any) -> dict[str, np.ndarray]:
    """The arrays of `named_inputs` with the dtypes that the model reads.

    Keras casts by itself; a Session and an interpreter do not.
    """
    arrays = named_inputs(model, inputs).items()
    return {
        name: np.ascontiguousarray(array, keras.backend.standardize_dtype(tensor.dtype))
        for (name, array), tensor in zip(arrays, model.inputs, strict=True)
    }


def _identifier(name: str) -> str:
    """The name as a valid Python argument, as a signature's input requires."""
    plain = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    usable = plain.isidentifier() and not keyword.iskeyword(plain)
    return plain if usable else f"input_{plain}"


def fingerprint(model: keras.Model) -> str:
    """A hash of a model's weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    # Other variables, such as dropout's random state, are not weights.
    for variable in sorted(model.weights, key=lambda weight: weight.path):
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()[:16]


def producer(tensor: keras.KerasTensor) -> Any:
    """The node that produces a symbolic tensor."""
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]


def nodes_between(
    inputs: Iterable[keras.KerasTensor], outputs: Iterable[keras.KerasTensor]
) -> list[Any]:
    """The nodes that compute `outputs` from `inputs`, in no particular order."""
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


def depends(tensor: keras.KerasTensor, source: keras.KerasTensor) -> bool:
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
        value: `{id(old tensor): new tensor}`: holds the inputs of the nodes and
            receives their outputs.
        instead: `{id(node): callable}` that replaces the node's operation.
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
    """A copy of `model` with other operations in some of its nodes.

    Args:
        model: a functional model, which stays unchanged.
        instead: `{id(node): callable}` that replaces the node's operation.
        inputs: structured like the model's inputs, which are the default.
    """
    inputs = model.input if inputs is None else inputs
    old, new = keras.tree.flatten(model.input), keras.tree.flatten(inputs)
    value = {id(tensor): fresh for tensor, fresh in zip(old, new, strict=True)}
    replay(nodes_in_order(model), value, instead)
    outputs = keras.tree.map_structure(lambda tensor: value[id(tensor)], model.output)
    return keras.Model(inputs, outputs, name=model.name)

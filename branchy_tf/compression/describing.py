"""Describes a Keras 3 model, so that a process with tf_keras can rebuild it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError


@dataclasses.dataclass(frozen=True)
class Description:
    """A model in plain values.

    Attributes:
        graph: JSON values: `inputs` (name, shape without the batch and dtype of each,
            by the names of `graphs.input_names`), `layers` (class, name and
            configuration of each), `calls` (in order of computation, with numbered
            tensors, of which the first are the inputs) and `outputs`.
        layers: the layers, in the order of `graph["layers"]`.
    """

    graph: dict[str, Any]
    layers: list[keras.Layer]

    def weights(self) -> dict[str, np.ndarray]:
        """`{"LAYER.WEIGHT": array}`, with the numbers of layer and weight."""
        return {
            f"{number}.{i}": array
            for number, layer in enumerate(self.layers)
            for i, array in enumerate(layer.get_weights())
        }

    def names(self) -> list[str]:
        """The names of the layers."""
        return [entry["name"] for entry in self.graph["layers"]]


def describe(model: keras.Model) -> Description:
    """Describes a multi-exit model, models inside it included.

    Raises:
        BranchyError: the model has a layer or operation that tf_keras does not provide;
            the message names it.
    """
    tensors = exits.exit_tensors(model)
    inputs = describe_inputs(model)
    walk = _Walk(model.inputs, {given["name"] for given in inputs})
    walk.walk(model)
    graph = {
        "name": model.name,
        "inputs": inputs,
        "layers": walk.entries,
        "calls": walk.calls,
        "outputs": {name: walk.numbers[id(tensor)] for name, tensor in tensors.items()},
    }
    return Description(graph, walk.layers)


def describe_inputs(model: keras.Model) -> list[dict[str, Any]]:
    """The name, the shape without the batch, and the dtype of each input."""
    return [
        {"name": name, "shape": list(tensor.shape[1:]), "dtype": tensor.dtype}
        for name, tensor in zip(graphs.input_names(model), model.inputs, strict=True)
    ]


class _Walk:
    """Collects layers and calls, in the order of computation."""

    def __init__(self, inputs: list[keras.KerasTensor], names: set[str]) -> None:
        # The names that tf_keras gives to the inputs.
        self.names = names
        self.layers: list[keras.Layer] = []
        self.entries: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        # {id(tensor): number}.
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self._made = len(inputs)

    def walk(self, model: keras.Model) -> None:
        for node in graphs.nodes_in_order(model):
            operation = node.operation
            if isinstance(operation, keras.Model):
                self._enter(operation, node)
                continue
            number = self._number(model, operation)
            arguments = node.arguments
            given = {k: v for k, v in arguments.kwargs.items() if v is not None}
            call = {
                "layer": number,
                "args": [self._plain(value, operation) for value in arguments.args],
                "kwargs": {k: self._plain(v, operation) for k, v in given.items()},
            }
            for tensor in node.outputs:
                self.numbers[id(tensor)] = self._made
                self._made += 1
            call["outputs"] = [self.numbers[id(tensor)] for tensor in node.outputs]
            self.calls.append(call)

    def _enter(self, inner: keras.Model, node: Any) -> None:
        """Walks through a model inside the model, as if its layers stood there."""
        if isinstance(inner, keras.Sequential):
            inner = keras.Model(inner.inputs, inner.outputs)
        graphs.check_functional(inner)
        for outer, own in zip(node.input_tensors, inner.inputs, strict=True):
            self.numbers[id(own)] = self.numbers[id(outer)]
        self.walk(inner)
        for outer, own in zip(node.outputs, inner.outputs, strict=True):
            self.numbers[id(outer)] = self.numbers[id(own)]

    def _number(self, model: keras.Model, layer: Any) -> int:
        for number, known in enumerate(self.layers):
            if known is layer:
                return number
        kind = type(layer).__name__
        if not isinstance(layer, keras.Layer):
            raise BranchyError(
                f"Model {model.name!r} calls the operation {kind} ({layer.name!r}) "
                "outside a layer, which tf_keras cannot replay. Use a layer of "
                "keras.layers, for example Add for +."
            )
        if not graphs.computes_as_its_class(layer):
            raise BranchyError(
                f"Layer {layer.name!r} of {model.name!r} is a custom {kind}, which "
                "tf_keras does not provide. Compression takes the layers of "
                "keras.layers."
            )
        taken = self.names | {entry["name"] for entry in self.entries}
        name = layer.name if layer.name not in taken else f"{model.name}_{layer.name}"
        config = keras.saving.serialize_keras_object(layer)["config"]
        self.layers.append(layer)
        self.entries.append(
            {
                "class": kind,
                "name": name,
                # Weights come separately, and tf_keras has no such dtype policies.
                "config": {
                    key: value
                    for key, value in config.items()
                    if not key.endswith("_initializer")
                }
                | {"name": name, "dtype": layer.dtype_policy.name},
            }
        )
        return len(self.layers) - 1

    def _plain(self, value: Any, layer: keras.Layer) -> Any:
        """An argument of a call as JSON, tensors as {"tensor": number}."""
        if keras.utils.is_keras_tensor(value):
            return {"tensor": self.numbers[id(value)]}
        if isinstance(value, (list, tuple)):
            return [self._plain(item, layer) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise BranchyError(
            f"Layer {layer.name!r} is called with a {type(value).__name__}, which cannot "
            "be replayed on tf_keras."
        )

"""Inlines the models inside a model, so that exits can be placed between their layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from branchy_tf import graphs


class Flat(NamedTuple):
    """A model whose inner models are inlined.

    Attributes:
        model: it has the inputs, layers, weights and outputs of the original.
        outputs: `{name of an inlined model: its output tensors in `model`}`.
    """

    model: keras.Model
    outputs: dict[str, list[keras.KerasTensor]]


def flatten(model: keras.Model) -> Flat:
    """Inlines the functional and Sequential models inside a functional model.

    A network of `keras.applications` behind preprocessing layers is such an inner model:
    to the outer one it is a single layer. The layers are shared with `model`, which
    stays unchanged, and the outputs are equal bit for bit.

    An inner model stays as it is if it has its own `call`, if a mask enters it, or if one
    of its layers has the name of another layer.

    Args:
        model: a functional model.

    Returns:
        The flat model, which is `model` itself if there is nothing to inline.

    Example:

    ```python
    inner = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))
    model = keras.Sequential([keras.layers.Rescaling(1 / 127.5, -1), inner])
    model.build((None, 96, 96, 3))
    flatten(keras.Model(model.inputs, model.outputs)).model.get_layer("Conv1")
    ```
    """
    # Inputs have no node that computes, but their names count.
    taken = {tensor._keras_history.operation.name: tensor for tensor in model.inputs}
    taken |= {operation.name: operation for operation in _operations(model)}
    chosen = set(_inlinable(model, taken))
    if not chosen:
        return Flat(model, {})
    outputs: dict[str, list[keras.KerasTensor]] = {}
    return Flat(graphs.rebuild(model, _instead(model, chosen, outputs)), outputs)


def _operations(model: keras.Model) -> list[Any]:
    nodes = graphs.nodes_in_order(model)
    return list({id(node.operation): node.operation for node in nodes}.values())


def _inlinable(model: keras.Model, taken: dict[str, Any]) -> Iterator[int]:
    """The ids of the models to inline; adds the names of their layers to `taken`."""
    for operation in _operations(model):
        inner = _graph(operation)
        if inner is None or not _is_called_plainly(model, operation, inner):
            continue
        names = {layer.name: layer for layer in _operations(inner)}
        if all(taken.get(name, layer) is layer for name, layer in names.items()):
            taken |= names
            yield id(operation)
            yield from _inlinable(inner, taken)


def _graph(operation: Any) -> keras.Model | None:
    """The graph that a model of Keras's own classes runs; None for other layers."""
    # A subclass may compute something else in its `call`.
    if not type(operation).__module__.startswith("keras.") or "call" in vars(operation):
        return None
    # A Sequential keeps its graph in an inner functional model.
    graph = getattr(operation, "_functional", None) or operation
    is_model = isinstance(graph, keras.Model) and graphs.has_nodes(graph)
    return graph if is_model else None


def _is_called_plainly(model: keras.Model, operation: Any, inner: keras.Model) -> bool:
    """Whether every call passes what `inner` reads, of the same rank and no mask."""
    for node in graphs.nodes_in_order(model):
        if node.operation is not operation:
            continue
        masks = keras.tree.flatten(node.arguments.kwargs.get("mask"))
        if any(mask is not None for mask in masks):
            return False
        (given,) = node.arguments.args
        if isinstance(given, dict) != isinstance(inner.input, dict):
            return False
        pairs = zip(node.input_tensors, inner.inputs, strict=False)
        if len(node.input_tensors) != len(inner.inputs) or any(
            len(ours.shape) != len(theirs.shape)
            or getattr(ours, "_keras_mask", None) is not None
            for ours, theirs in pairs
        ):
            return False
    return True


def _instead(
    model: keras.Model, chosen: set[int], outputs: dict[str, list[keras.KerasTensor]]
) -> dict[int, Callable[..., Any]]:
    """`{id(node): callable}` that runs the layers of each chosen model."""
    return {
        id(node): functools.partial(_run, node.operation, chosen, outputs)
        for node in graphs.nodes_in_order(model)
        if id(node.operation) in chosen
    }


def _run(
    operation: Any,
    chosen: set[int],
    outputs: dict[str, list[keras.KerasTensor]],
    inputs: Any,
    training: bool | None = None,
    mask: None = None,
) -> Any:
    """Calls the layers of an inner model on `inputs`, as the model itself would."""
    inner = _graph(operation)
    assert inner is not None
    value = {
        # The model would cast its inputs too.
        id(ours): x if x.dtype == ours.dtype else keras.ops.cast(x, ours.dtype)
        for ours, x in zip(inner.inputs, keras.tree.flatten(inputs), strict=True)
    }
    instead = _instead(inner, chosen, outputs)
    nodes = graphs.nodes_in_order(inner)
    if training is not None:
        for node in nodes:
            run = instead.get(id(node), node.operation)
            is_model = id(node) in instead
            if is_model or getattr(node.operation, "_call_has_training_arg", False):
                instead[id(node)] = _in_mode(run, training)
    graphs.replay(nodes, value, instead)
    made = keras.tree.map_structure(lambda tensor: value[id(tensor)], inner.output)
    outputs.setdefault(operation.name, []).extend(keras.tree.flatten(made))
    return made


def _in_mode(run: Callable[..., Any], training: bool) -> Callable[..., Any]:
    def call(*inputs: Any, **arguments: Any) -> Any:
        # The call of the outer model goes before what the inner call recorded.
        return run(*inputs, **arguments | {"training": training})

    return call

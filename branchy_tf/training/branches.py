"""Controls how much of a branch's gradient reaches the trunk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError


class ScaleGradient(keras.layers.Layer):
    """The identity, with its gradient multiplied by `scale`.

    It is part of the trained graph only, never of a saved model.

    Args:
        scale: the factor; 0 stops the gradient.
    """

    def __init__(self, scale: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.supports_masking = True

    def call(self, x):
        """The values of `x`, of any shape, bit for bit."""
        still = keras.ops.stop_gradient(x)
        return still + self.scale * (x - still) if self.scale else still


def trunk(model: keras.Model) -> list[Any]:
    """The nodes that compute the final exit."""
    final = list(exits.exit_tensors(model).values())[-1]
    return graphs.nodes_between(model.inputs, [final])


@contextlib.contextmanager
def frozen_trunk(model: keras.Model) -> Iterator[None]:
    """Freezes the trunk's weights and batch norm statistics."""
    # Setting `trainable` also sets it on the inner layers, which come later in this
    # list, so restoring in order gives each layer its own value.
    before = [
        (layer, layer.trainable)
        for node in trunk(model)
        if isinstance(node.operation, keras.layers.Layer)
        for layer in node.operation._flatten_layers()
    ]
    for layer, _ in before:
        layer.trainable = False
    try:
        yield
    finally:
        for layer, trainable in before:
            layer.trainable = trainable


def detached(model: keras.Model) -> keras.Model:
    """The same function, but no gradient of a branch reaches the trunk.

    Each branch learns on the trunk's features as on a fixed input. A branch of a
    branch stays attached to it.

    Raises:
        BranchyError: a branch shares a layer with the trunk.
    """
    inside = {id(node): node for node in trunk(model)}
    made = {id(tensor) for node in inside.values() for tensor in node.outputs}
    with_weights = {
        id(node.operation)
        for node in inside.values()
        if getattr(node.operation, "weights", [])
    }
    scale: dict[tuple[int, int], float] = {}
    for node in graphs.nodes_in_order(model):
        if id(node) in inside:
            continue
        if id(node.operation) in with_weights:
            raise BranchyError(
                f"A branch shares layer {node.operation.name!r} with the trunk, so in "
                "mode detached its gradient would still reach the trunk. Give the branch "
                "a separate layer, or train in another mode."
            )
        scale |= {(id(node), id(t)): 0.0 for t in node.input_tensors if id(t) in made}
    return _rebuilt(model, scale)


def equilibrium(model: keras.Model) -> keras.Model:
    """The same function with gradient equilibrium.

    Where the branch of exit i of k starts, the gradient from the branch is multiplied
    by 1 / (k - i + 1) and the gradient from later layers by (k - i) / (k - i + 1).
    Before the first branch, each exit's gradient then has the weight 1 / k, and their
    sum keeps its variance. (A shortcut around the start of a branch, as inside a
    residual block, is not scaled.)

    Raises:
        BranchyError: a branch starts from the branch of another exit, or at several
            places of the trunk.

    References:
        Li, Zhang, Qi, Yang, Huang: Improved Techniques for Training Adaptive
        Deep Networks (ICCV 2019), arXiv 1908.06294, section 3.1.
    """
    nodes = graphs.nodes_in_order(model)
    inside = {id(node) for node in trunk(model)}
    scale: dict[tuple[int, int], float] = {}
    tensors = exits.exit_tensors(model)
    count = len(tensors)
    taken: set[int] = set()
    for i, (name, logits) in enumerate(list(tensors.items())[:-1], start=1):
        own = {id(node) for node in graphs.nodes_between(model.inputs, [logits])}
        if own & taken:
            raise BranchyError(
                "Gradient equilibrium needs every branch to start from the trunk, but "
                f"{name} starts from the branch of an earlier exit. Pass "
                "--gradient_scaling=none."
            )
        own -= inside
        taken |= own
        starts = {
            id(tensor)
            for node in nodes
            if id(node) in own
            for tensor in node.input_tensors
            if keras.backend.is_float_dtype(tensor.dtype)
        } - {id(t) for node in nodes if id(node) in own for t in node.outputs}
        if len(starts) > 1:
            raise BranchyError(
                "Gradient equilibrium needs every branch to start at one place of the "
                f"trunk, but {name} reads {len(starts)} of its tensors. Pass "
                "--gradient_scaling=none."
            )
        for node in nodes:
            if id(node) in taken and id(node) not in own:
                continue  # an earlier exit's branch at the same place
            for tensor in node.input_tensors:
                if id(tensor) in starts:
                    share = 1.0 if id(node) in own else count - i
                    edge = (id(node), id(tensor))
                    scale[edge] = scale.get(edge, 1.0) * share / (count - i + 1)
    return _rebuilt(model, scale)


def _rebuilt(model: keras.Model, scale: dict[tuple[int, int], float]) -> keras.Model:
    """A copy of the model that scales gradients at edges `(id(node), id(tensor))`."""
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
        for tensor in model.inputs
    ]
    value = {id(old): new for old, new in zip(model.inputs, inputs, strict=True)}
    for node in graphs.nodes_in_order(model):
        read = dict(value)
        for tensor in node.input_tensors:
            factor = scale.get((id(node), id(tensor)), 1.0)
            if factor != 1.0:
                read[id(tensor)] = ScaleGradient(factor, dtype=tensor.dtype)(
                    value[id(tensor)]
                )
        graphs.replay([node], read)
        value.update((id(tensor), read[id(tensor)]) for tensor in node.outputs)
    outputs = {
        name: value[id(tensor)] for name, tensor in exits.exit_tensors(model).items()
    }
    packed = keras.tree.pack_sequence_as(model.input, inputs)
    return keras.Model(packed, outputs, name=model.name)

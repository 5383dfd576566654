"""Where branches leave the trunk, and how much of their error goes back there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError


class ScaleGradient(keras.layers.Layer):
    """The identity, whose gradient is multiplied by `scale`.

    Lives in the graph that is trained and never in a saved model.

    Args:
        scale: 0 lets nothing back.
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
    """The nodes that the final exit needs."""
    final = list(exits.exit_tensors(model).values())[-1]
    return graphs.nodes_between(model.inputs, [final])


@contextlib.contextmanager
def frozen_trunk(model: keras.Model) -> Iterator[None]:
    """Keeps the trunk's weights and batch norm statistics as they are."""
    # A layer hands what it is told on to those inside it, which come after it here:
    # each gets its own back in the end.
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
    """The same function, from whose branches no error reaches the trunk.

    Tree training: each branch learns on the trunk's features as on an input of
    its own. Branches of branches stay attached to these.

    Raises:
        BranchyError: a branch uses a layer of the trunk, whose weights its error
            would reach.
    """
    inside = {id(node) for node in trunk(model)}
    made = {id(tensor) for node in trunk(model) for tensor in node.outputs}
    of_trunk = {id(node.operation) for node in trunk(model)}
    for node in graphs.nodes_in_order(model):
        operation = node.operation
        shared = id(node) not in inside and id(operation) in of_trunk
        if shared and getattr(operation, "weights", []):
            raise BranchyError(
                f"A branch uses layer {operation.name!r} of the trunk, so its error "
                "would reach the trunk in mode detached. Give the branch a layer of its "
                "own, or train in another mode."
            )
    return _rebuilt(
        model,
        {
            (id(node), id(tensor)): 0.0
            for node in graphs.nodes_in_order(model)
            if id(node) not in inside
            for tensor in node.input_tensors
            if id(tensor) in made
        },
    )


def equilibrium(model: keras.Model) -> keras.Model:
    """The same function with gradient equilibrium.

    Where the branch of exit i of k leaves the trunk, the gradient from the
    branch is multiplied by 1 / (k - i + 1) and the one from further on by
    (k - i) / (k - i + 1). The trunk then sees each exit's gradient at one k-th
    where all meet, and their sum keeps its variance. (Where a shortcut passes by
    an exit's place, as inside a residual block, the gradient through it is not
    scaled.)

    Raises:
        BranchyError: an exit hangs off the branch of another, or leaves the
            trunk at several places.

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
                f"Gradient equilibrium is for exits that leave the trunk one by one; "
                f"{name} hangs off the branch of an earlier exit. Train it without."
            )
        own -= inside
        taken |= own
        left = {
            id(tensor)
            for node in nodes
            if id(node) in own
            for tensor in node.input_tensors
            if keras.backend.is_float_dtype(tensor.dtype)
        } - {id(t) for node in nodes if id(node) in own for t in node.outputs}
        if len(left) > 1:
            raise BranchyError(
                f"Gradient equilibrium is for exits that leave the trunk at one place; "
                f"{name} reads {len(left)} tensors of it. Train it without."
            )
        for node in nodes:
            if id(node) in taken and id(node) not in own:
                continue  # an earlier exit's branch at the same place
            for tensor in node.input_tensors:
                if id(tensor) in left:
                    share = 1.0 if id(node) in own else count - i
                    edge = (id(node), id(tensor))
                    scale[edge] = scale.get(edge, 1.0) * share / (count - i + 1)
    return _rebuilt(model, scale)


def _rebuilt(model: keras.Model, scale: dict[tuple[int, int], float]) -> keras.Model:
    """The model with scaled gradients on some edges `(id(node), id(tensor))`."""
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

"""Multiply-adds of Keras models for one example.

The attributes of common layers tell them. A model with any other layer is counted in its
TensorFlow graph, whatever its layers are made of.
"""

from __future__ import annotations

import keras

from branchy_tf import graphs
from branchy_tf.errors import BranchyError
from branchy_tf.multiply_adds import by_layer

__all__ = ["macs", "macs_by_node"]


def macs(model: keras.Model) -> int:
    """The multiply-adds of a functional model for one example.

    Convolutions and products of matrices count: dense layers, attention, recurrent
    layers in every step, `keras.ops.matmul` and `einsum` in your own layers. A layer
    called twice counts twice. Biases, activations, normalisations, pooling, embeddings,
    products element by element, and products of weights alone do not count. A layer
    with an attribute `macs` counts as that number.

    Returns:
        A whole number, e.g. 1140070 for LeNet at 28 x 28.

    Raises:
        BranchyError: the model is not functional, its input size is unknown, or what a
            layer does cannot be counted.

    Example:

    ```python
    macs(branchy_tf.baseline(branchy_lenet()))     # 1140070
    ```
    """
    return sum(macs_by_node(model).values())


def macs_by_node(model: keras.Model) -> dict[int, int]:
    """The multiply-adds of each call of a layer for one example: `{id(node): macs}`.

    Raises:
        BranchyError: what `macs` raises.
    """
    graphs.check_functional(model)
    nodes = graphs.nodes_in_order(model)
    try:
        return {id(node): by_layer.node_macs(node) for node in nodes}
    except BranchyError:
        if keras.backend.backend() != "tensorflow":
            raise
    # Tracing takes as long as building the model.
    from branchy_tf.multiply_adds import by_graph

    return by_graph.macs_by_node(model)

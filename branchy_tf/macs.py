"""Counting multiply-adds, from a model's graph alone."""

from __future__ import annotations

import math

import keras
from absl import logging

from branchy_tf import graphs
from branchy_tf.errors import BranchyError

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def macs(model: keras.Model) -> int:
    """Multiply-adds of one example through a functional model.

    Convolutions and dense layers are counted, biases and all else are not. A
    layer called twice counts twice; models inside the model are counted too.

    Returns:
        A whole number, e.g. 1140070 for LeNet at 28 x 28.

    Raises:
        BranchyError: the model is not functional, or takes inputs of any size.
    """
    graphs.check_functional(model)
    return sum(node_macs(node) for node in graphs.nodes_in_order(model))


def node_macs(node) -> int:
    """Multiply-adds of one example through one call of a layer."""
    layer = node.operation
    # A Sequential keeps its graph in a functional model of its own.
    layer = getattr(layer, "_functional", None) or layer
    if isinstance(layer, keras.Model) and hasattr(layer, "_nodes_by_depth"):
        return macs(layer)
    read, written = node.input_tensors[0].shape, node.outputs[0].shape
    if isinstance(layer, _SEPARABLE):
        pixels = _positions(layer, written)
        return pixels * (_size(layer.depthwise_kernel) + _size(layer.pointwise_kernel))
    if isinstance(layer, _TRANSPOSED):
        # Every input pixel meets the whole kernel.
        return _positions(layer, read) * _size(layer.kernel)
    if isinstance(layer, _CONVOLUTIONS):
        return _positions(layer, written) * _size(layer.kernel)
    if isinstance(layer, keras.layers.Dense):
        # Not the kernel's size: int4 packs two numbers into one.
        return _product(written[1:-1], layer) * read[-1] * layer.units
    if isinstance(layer, keras.layers.EinsumDense):
        # Each output value sums over the kernel's axes that are not its own.
        return _einsum_macs(layer, read)
    if isinstance(layer, keras.layers.Layer) and any(
        len(weight.shape) > 1 for weight in layer.weights
    ):
        logging.warning(
            "The multiply-adds of layer %s (%s) are not counted.",
            layer.name,
            type(layer).__name__,
        )
    return 0


def _einsum_macs(layer, read) -> int:
    inputs, _ = layer.equation.replace("...", "").split("->")
    left, right = inputs.split(",")
    sizes = dict(zip(right, layer.kernel.shape, strict=True))
    # The leading axes that an ellipsis stands for are batch and positions.
    extra = read[1 : len(read) - len(left)] if "..." in layer.equation else ()
    named = zip(reversed(left), reversed(read), strict=False)
    sizes |= {axis: size or 1 for axis, size in named}
    return math.prod(sizes.values()) * math.prod(extra)


def _positions(layer, shape) -> int:
    """Number of pixels of a feature map of that shape."""
    first = layer.data_format == "channels_first"
    return _product(shape[2:] if first else shape[1:-1], layer)


def _product(sizes, layer) -> int:
    if None in sizes:
        raise BranchyError(
            f"The multiply-adds of layer {layer.name} depend on the size of the input, "
            "which the model leaves open. Build it for a fixed height and width."
        )
    return math.prod(sizes)


def _size(kernel) -> int:
    return math.prod(kernel.shape)

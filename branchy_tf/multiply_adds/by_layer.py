"""Counts the multiply-adds of common Keras layers from their attributes."""

from __future__ import annotations

import math
from typing import Any

import keras

from branchy_tf import graphs
from branchy_tf.multiply_adds.declared import declared_macs, uncountable, unknown_size

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
_COUNTED = (
    *_CONVOLUTIONS,
    *_TRANSPOSED,
    *_SEPARABLE,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
)
# Layers of Keras without weights of their own that multiply matrices.
_NOT_COUNTED = {
    "AdditiveAttention", "Attention", "Dot", "FlaxLayer", "JaxLayer", "Lambda",
    "MelSpectrogram", "TFSMLayer", "TorchModuleWrapper",
}  # fmt: skip
# Functions of keras.ops that neither multiply matrices nor move the axis of the batch.
_FREE = {
    "Absolute", "Add", "Cast", "Clip", "Divide", "Elu", "Exp", "Gelu", "HardSigmoid",
    "HardSilu", "LeakyRelu", "Log", "LogSoftmax", "Maximum", "Minimum", "Multiply",
    "Negative", "Power", "Relu", "Relu6", "Sigmoid", "Silu", "Softmax", "Softplus",
    "Sqrt", "Square", "Subtract", "Tanh", "TrueDivide",
}  # fmt: skip


def node_macs(node: Any) -> int:
    """The multiply-adds of one node for one example.

    Raises:
        BranchyError: the layer's attributes do not tell, or it reads inputs of unknown
            size.
    """
    layer = node.operation
    declared = declared_macs(layer)
    if declared is not None:
        return declared
    # A Sequential keeps its graph in an inner functional model.
    layer = getattr(layer, "_functional", None) or layer
    if isinstance(layer, keras.Model) and graphs.has_nodes(layer):
        return sum(map(node_macs, graphs.nodes_in_order(layer)))
    if not _is_known(layer):
        raise uncountable(
            layer,
            "it is not one of the layers whose attributes tell, and Keras runs on "
            f"{keras.backend.backend()}",
            "Set KERAS_BACKEND=tensorflow, under which every layer is counted. ",
        )
    read, written = node.input_tensors[0].shape, node.outputs[0].shape
    if isinstance(layer, _SEPARABLE):
        pixels = _positions(layer, written)
        return pixels * (_size(layer.depthwise_kernel) + _size(layer.pointwise_kernel))
    if isinstance(layer, _TRANSPOSED):
        # Every input pixel is multiplied with the whole kernel.
        return _positions(layer, read) * _size(layer.kernel)
    if isinstance(layer, _CONVOLUTIONS):
        return _positions(layer, written) * _size(layer.kernel)
    if isinstance(layer, keras.layers.Dense):
        # The kernel's size would be wrong: int4 packs two numbers into one.
        return _product(written[1:-1], layer) * read[-1] * layer.units
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_macs(layer, read)
    return 0


def _is_known(layer: Any) -> bool:
    """Whether the attributes of a layer or operation tell its multiply-adds."""
    kind = type(layer)
    if not isinstance(layer, keras.Layer):
        return kind.__module__.startswith("keras.") and kind.__name__ in _FREE
    if not graphs.computes_as_its_class(layer) or kind.__name__ in _NOT_COUNTED:
        return False
    layers_inside = any(True for _ in layer._flatten_layers(include_self=False))
    return isinstance(layer, _COUNTED) or not (
        layers_inside or any(len(weight.shape) > 1 for weight in layer.weights)
    )


def _einsum_macs(layer: Any, read: Any) -> int:
    inputs, _ = layer.equation.replace("...", "").split("->")
    left, right = inputs.split(",")
    sizes = dict(zip(right, layer.kernel.shape, strict=True))
    # An ellipsis stands for the leading axes: batch and positions.
    extra = read[1 : len(read) - len(left)] if "..." in layer.equation else ()
    named = dict(zip(reversed(left), reversed(read), strict=False))
    if len(left) == len(read):
        named[left[0]] = 1  # the batch
    sizes |= named
    return _product([*sizes.values(), *extra], layer)


def _positions(layer: Any, shape: Any) -> int:
    """The number of pixels in a feature map of that shape."""
    first = layer.data_format == "channels_first"
    return _product(shape[2:] if first else shape[1:-1], layer)


def _product(sizes: Any, layer: Any) -> int:
    if None in sizes:
        raise unknown_size(layer)
    return math.prod(sizes)


def _size(kernel: Any) -> int:
    return math.prod(kernel.shape)

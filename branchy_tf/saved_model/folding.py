"""Folds batch norm into the layer before it.

TensorFlow itself folds the factor of a batch norm into a constant filter, but keeps the
offset as an addition. In a residual block, this is merged with the addition of the
shortcut, and convolution, sum, sum and ReLU take four passes over memory. As the bias
of the convolution, the offset is part of one fused kernel (oneDNN's, with sum and ReLU).
"""

from __future__ import annotations

import collections
from typing import Any

import keras
import numpy as np
from keras import layers

from branchy_tf import graphs

# Layers whose output channels are the last axis of the kernel ...
_LAST_AXIS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)
# ... or its last two axes.
_LAST_TWO = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Folds each batch norm into the layer before it, for inference.

    A batch norm is folded if it normalises the channels of a convolution or dense layer
    without activation whose output nothing else reads. All others stay, such as batch
    norms that are called several times.

    Args:
        model: a functional model; it is not changed.

    Returns:
        A model with the same inputs and outputs, equal up to rounding. A folded layer
        has the name of the batch norm; all other layers are shared with `model`. If
        there is nothing to fold, the result is `model` itself.
    """
    nodes = graphs.nodes_in_order(model)
    calls = collections.Counter(id(node.operation) for node in nodes)
    read = [tensor for node in nodes for tensor in node.input_tensors]
    readers = collections.Counter(id(tensor) for tensor in read + model.outputs)
    inputs = {id(tensor) for tensor in model.inputs}

    instead: dict[int, Any] = {}
    for node in nodes:
        norm = node.operation
        if type(norm) is not layers.BatchNormalization or calls[id(norm)] > 1:
            continue
        tensor = node.input_tensors[0]
        # With training=True, it uses the batch's statistics in inference too.
        if id(tensor) in inputs or node.arguments.kwargs.get("training"):
            continue
        before = graphs.producer(tensor)
        if readers[id(tensor)] == 1 and _can_take(before.operation, norm, tensor):
            instead[id(before)] = _folded(before.operation, norm, before.input_tensors[0])
            instead[id(node)] = _unchanged
    return graphs.rebuild(model, instead) if instead else model


def _can_take(layer: Any, norm: layers.BatchNormalization, made: Any) -> bool:
    return (
        type(layer) in _LAST_AXIS + _LAST_TWO
        and graphs.computes_as_its_class(layer)
        and graphs.computes_as_its_class(norm)
        and layer.activation is keras.activations.linear
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and norm.axis in (-1, len(made.shape) - 1)
        # In a shorter format, folding would round the kernel once more.
        and {layer.dtype_policy.name, norm.dtype_policy.name} == {"float32"}
    )


def _folded(layer: Any, norm: layers.BatchNormalization, features: Any) -> Any:
    """A copy of `layer` whose weights include `norm`."""
    factor = 1 / np.sqrt(_values(norm.moving_variance, 1) + norm.epsilon)
    factor *= _values(norm.gamma if norm.scale else None, 1)
    bias = _values(layer.bias, 0) - _values(norm.moving_mean, 0)
    bias = bias * factor + _values(norm.beta if norm.center else None, 0)
    kernel = _values(layer.kernel, 0)
    if type(layer) in _LAST_TWO:
        kernel *= factor.reshape(kernel.shape[-2:])
    else:
        kernel *= factor

    config = layer.get_config() | {"use_bias": True, "name": norm.name}
    # `kernel` already includes the LoRA update.
    config |= {"lora_rank": None, "lora_alpha": None} if "lora_rank" in config else {}
    fresh = type(layer).from_config(config)
    fresh.build(features.shape)
    fresh.set_weights([kernel, bias])
    return fresh


def _values(variable: Any, otherwise: float) -> np.ndarray:
    if variable is None:
        return np.float64(otherwise)
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def _unchanged(tensor: Any, **_: Any) -> Any:
    return tensor

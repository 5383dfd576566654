"""Batch norm as part of the layer before it, while weights can still be changed.

TensorFlow folds a batch norm's factor into a constant filter by itself. Its offset
stays an addition, which in a residual block is merged with that of the shortcut:
convolution, sum, sum and ReLU go over memory four times. As the convolution's own
bias it belongs to one fused kernel (oneDNN's, with the sum and the ReLU).
"""

from __future__ import annotations

import collections
from typing import Any

import keras
import numpy as np
from keras import layers

from branchy_tf import graphs

# The channels that they make are the last axis of their kernel ...
_LAST_AXIS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)
# ... or its last two.
_LAST_TWO = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """The same model with each batch norm in the layer before it, for inference.

    Folded is what normalises the channels of a convolution or dense layer that has no
    activation and that nothing else reads. Everything else stays, batch norms that are
    called several times among it.

    Args:
        model: a functional model; it is not changed.

    Returns:
        A model with the same inputs and outputs, equal up to rounding. A folded layer
        is named like the batch norm; all other layers are shared with `model`, which
        is given back as it is where there is nothing to fold.
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
        # Told to, it normalises by the batch in inference as well.
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
        # In a short format, a folded kernel would be rounded once more.
        and {layer.dtype_policy.name, norm.dtype_policy.name} == {"float32"}
    )


def _folded(layer: Any, norm: layers.BatchNormalization, features: Any) -> Any:
    """`layer` with the weights that do what it and `norm` do."""
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
    # `kernel` has LoRA's part in it already.
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

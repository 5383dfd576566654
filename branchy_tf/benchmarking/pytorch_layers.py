"""A functional Keras model as native PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from branchy_tf import graphs


class Network(nn.Module):
    """A flat list of modules from the model's inputs to its outputs, channels first.

    Args:
        model: with supported layers.

    Raises:
        NotImplementedError: a layer is not supported.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._inputs = [id(tensor) for tensor in keras.tree.flatten(model.inputs)]
        self._outputs = [id(tensor) for tensor in keras.tree.flatten(model.outputs)]
        self._steps = []
        for number, node in enumerate(graphs.nodes_in_order(model)):
            module = translate(node.operation)
            self.add_module(f"step_{number}", module)
            (made,) = node.outputs
            self._steps.append((module, [id(t) for t in node.input_tensors], id(made)))
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the modules in order."""
        value = dict(zip(self._inputs, tensors, strict=True))
        for module, given, made in self._steps:
            value[made] = module(*(value[key] for key in given))
        return [value[key] for key in self._outputs]


def translate(layer: Any) -> nn.Module:
    """The module equivalent to a Keras layer at inference."""
    kind = type(layer).__name__
    if kind not in _TRANSLATIONS:
        raise NotImplementedError(
            f"{layer.name} is a {kind}; known: {', '.join(sorted(_TRANSLATIONS))}"
        )
    # `+` is keras.ops.add, an operation with the layer's name and function.
    if isinstance(layer, keras.Layer) and not graphs.computes_as_its_class(layer):
        raise NotImplementedError(
            f"{layer.name} is quantised, or does not compute what Keras's {kind} does"
        )
    module = _TRANSLATIONS[kind](layer)
    activation = getattr(layer, "activation", keras.activations.linear)
    if activation is keras.activations.relu:
        return nn.Sequential(module, nn.ReLU())
    if activation is not keras.activations.linear:
        name = getattr(activation, "__name__", activation)
        raise NotImplementedError(f"{layer.name} has the activation {name}")
    return module


def _tensor(variable: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(keras.ops.convert_to_numpy(variable)))


def _put(parameter: Any, value: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


class _Same(nn.Module):
    """Keras's "same" padding, uneven where strides do not divide the size."""

    def __init__(self, module: nn.Module, layer: Any, size: Any, fill: float) -> None:
        super().__init__()
        self.module = module
        self._size, self._strides, self._fill = size, layer.strides, fill

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for length, size, stride in zip(
            reversed(x.shape[2:]), reversed(self._size), reversed(self._strides),
            strict=True,
        ):  # fmt: skip
            missing = max((-(-length // stride) - 1) * stride + size - length, 0)
            pads += [missing // 2, missing - missing // 2]
        if any(pads):
            x = nn.functional.pad(x, pads, value=self._fill)
        return self.module(x)


def _conv(layer: Any) -> nn.Module:
    if layer.groups != 1 or set(layer.dilation_rate) != {1}:
        raise NotImplementedError(f"{layer.name} is grouped or dilated")
    kernel = _tensor(layer.kernel).permute(3, 2, 0, 1)
    size = layer.kernel_size
    # Where the padding is the same on both sides the convolution does it itself.
    even = layer.padding == "same" and set(layer.strides) == {1}
    even = even and all(length % 2 for length in size)
    module = nn.Conv2d(
        kernel.shape[1],
        kernel.shape[0],
        size,
        layer.strides,
        padding=tuple(length // 2 for length in size) if even else 0,
        bias=layer.use_bias,
    )
    _put(module.weight, kernel)
    if layer.use_bias:
        _put(module.bias, _tensor(layer.bias))
    return module if even or layer.padding == "valid" else _Same(module, layer, size, 0.0)


def _batch_norm(layer: Any) -> nn.Module:
    mean = _tensor(layer.moving_mean)
    kind = nn.BatchNorm2d if layer.input_spec.ndim == 4 else nn.BatchNorm1d
    module = kind(len(mean), eps=layer.epsilon)
    _put(module.running_mean, mean)
    _put(module.running_var, _tensor(layer.moving_variance))
    if layer.scale:
        _put(module.weight, _tensor(layer.gamma))
    if layer.center:
        _put(module.bias, _tensor(layer.beta))
    return module


def _dense(layer: Any) -> nn.Module:
    kernel = _tensor(layer.kernel).T
    module = nn.Linear(kernel.shape[1], kernel.shape[0], bias=layer.use_bias)
    _put(module.weight, kernel)
    if layer.use_bias:
        _put(module.bias, _tensor(layer.bias))
    return module


def _pool(layer: Any, make: Callable) -> nn.Module:
    module = make(layer.pool_size, layer.strides)
    if layer.padding == "valid":
        return module
    return _Same(module, layer, layer.pool_size, -np.inf)


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors)


def _relu(layer: Any) -> nn.Module:
    if (layer.max_value, layer.negative_slope, layer.threshold) != (None, 0, 0):
        raise NotImplementedError(f"{layer.name} is not a plain ReLU")
    return nn.ReLU()


def _rescaling(layer: Any) -> nn.Module:
    return _Call(lambda x: x * layer.scale + layer.offset)


def _flatten(x: torch.Tensor) -> torch.Tensor:
    # In Keras's order, channels last.
    return x.movedim(1, -1).flatten(1) if x.ndim > 2 else x


def _concatenate(layer: Any) -> nn.Module:
    rank = len(layer.output.shape)
    if layer.axis not in (-1, rank - 1):
        raise NotImplementedError(f"{layer.name} does not concatenate channels")
    return _Call(lambda *tensors: torch.cat(tensors, dim=1 if rank > 2 else -1))


def _zero_padding(layer: Any) -> nn.Module:
    (top, bottom), (left, right) = layer.padding
    return nn.ZeroPad2d((left, right, top, bottom))


_TRANSLATIONS: dict[str, Callable[[Any], nn.Module]] = {
    "Activation": lambda layer: nn.Identity(),
    "Add": lambda layer: _Call(lambda *tensors: sum(tensors[1:], tensors[0])),
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Conv2D": _conv,
    "Dense": _dense,
    "Dropout": lambda layer: nn.Identity(),
    "Flatten": lambda layer: _Call(_flatten),
    "GlobalAveragePooling2D": lambda layer: _Call(lambda x: x.mean((2, 3))),
    "Identity": lambda layer: nn.Identity(),
    "MaxPooling2D": lambda layer: _pool(layer, nn.MaxPool2d),
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "ZeroPadding2D": _zero_padding,
}

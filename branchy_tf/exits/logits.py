"""Checks that outputs are logits, from the graph and on random features.

Training and routing apply softmax themselves. Given probabilities they would still run,
and every score would be wrong. The graph shows a softmax or sigmoid at the end of a
model. A hidden one (in an average of several networks, a Lambda, a custom layer) shows
when the end of the model, from its last weights on, runs on random features: logits take
any value, probabilities do not.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from branchy_tf import graphs
from branchy_tf.errors import BranchyError

_ROWS = 8
_DRAWS = 2
# The size to use for an axis of unknown size.
_OPEN = 8
# The rounding error of a softmax in a 16-bit format.
_TOLERANCE = 1e-2


def check_logits(tensors: Mapping[str, keras.KerasTensor]) -> None:
    """Checks that exits return logits, not probabilities.

    Runs the last layers on a few rows without changing any of their state.

    Args:
        tensors: `{"exit_1": symbolic tensor, ..., "exit_N": ...}`, each [B, classes].

    Raises:
        BranchyError: an exit returns probabilities.

    Example:

    ```python
    check_logits(exit_tensors(branchy_lenet()))
    ```
    """
    for name, tensor in tensors.items():
        activation = activation_of(last_change(tensor).operation)
        if activation in (keras.activations.softmax, keras.activations.sigmoid):
            raise BranchyError(
                f"{name} ends in {activation.__name__}; expected logits. Drop the "
                "activation: training and routing apply softmax themselves."
            )
        bounded = looks_bounded(tensor)
        if bounded:
            raise BranchyError(
                f"{name} gives {bounded}; expected logits. Drop the softmax or sigmoid, "
                "maybe inside another layer: training and routing apply softmax "
                "themselves."
            )


def looks_bounded(tensor: keras.KerasTensor) -> str:
    """Says what a symbolic tensor [B, classes] holds; empty if it may hold logits."""
    verdicts = {_verdict(values) for (values,) in _probe([tensor])}
    return verdicts.pop() if len(verdicts) == 1 else ""


def is_softmax_of(tensor: keras.KerasTensor, logits: keras.KerasTensor) -> bool:
    """Whether `tensor` is the softmax of `logits`; true if they cannot be computed."""
    for probabilities, values in _probe([tensor, logits]):
        shifted = np.exp(values - values.max(axis=-1, keepdims=True))
        expected = shifted / shifted.sum(axis=-1, keepdims=True)
        if not np.allclose(probabilities, expected, rtol=0, atol=_TOLERANCE):
            return False
    return True


def last_change(tensor: keras.KerasTensor) -> Any:
    """The last node that changes the values of `tensor`.

    It sees a softmax before the Activation that casts to float32 in mixed precision.
    """
    node = graphs.producer(tensor)
    passing = (layers.Identity, layers.Dropout, layers.Flatten, layers.Reshape)
    while isinstance(node.operation, passing) or (
        isinstance(node.operation, layers.Activation)
        and node.operation.activation is keras.activations.linear
    ):
        node = graphs.producer(node.input_tensors[0])
    return node


def activation_of(operation: Any) -> Any:
    """The activation at the end of `operation`, one of `keras.activations`."""
    # A subclassed model has no graph to read.
    if isinstance(operation, keras.Model) and len(_ends(operation)) == 1:
        return activation_of(last_change(_ends(operation)[0]).operation)
    if isinstance(operation, layers.Wrapper):
        return activation_of(operation.layer)
    if hasattr(operation, "activation"):
        return operation.activation
    # Layers (ReLU) and operations (keras.ops.relu) that are activations themselves.
    kind = type(operation).__name__.lower()
    known = {name.replace("_", ""): name for name in dir(keras.activations)}
    return getattr(keras.activations, known.get(kind, "linear"))


def _verdict(values: np.ndarray) -> str:
    """Says why values [rows, classes] cannot be logits; empty if they can."""
    # Constant values (of a zeroed exit) show nothing.
    if not np.isfinite(values).all() or np.ptp(values, axis=0).max() == 0:
        return ""
    if values.min() < 0:
        return ""
    sums = values.sum(axis=-1)
    if np.ptp(sums) <= _TOLERANCE * sums.max():
        return "probabilities (non-negative, with the same sum in each row)"
    if values.max() <= 1 + _TOLERANCE:
        return "values between 0 and 1"
    return ""


def _probe(tensors: Sequence[keras.KerasTensor]) -> list[tuple[np.ndarray, ...]]:
    """The values of tensors on random features, one tuple for each draw."""
    end = _End(tensors)
    draws = []
    # A layer may raise anything on features it was not made for (an unknown token, an
    # odd size, ...). Then the graph alone decides.
    with contextlib.suppress(Exception), _preserved_random_state():
        for seed in range(_DRAWS):
            values = end.run(np.random.default_rng(seed))
            arrays = (keras.ops.convert_to_numpy(values[id(t)]) for t in tensors)
            draws.append(tuple(np.asarray(array, np.float64) for array in arrays))
    return draws


class _End:
    """The part of a graph that computes tensors from the input of its last weights.

    For a model inside the model, that part is its own end.

    Args:
        tensors: symbolic.
    """

    def __init__(self, tensors: Sequence[keras.KerasTensor]) -> None:
        self._sources: dict[int, Any] = {}
        self._steps: list[Any] = []
        self._inner: dict[int, Any] = {}
        seen: set[int] = set()
        for tensor in tensors:
            self._visit(tensor, seen)

    def _visit(self, tensor: Any, seen: set[int]) -> None:
        if id(tensor) in seen:
            return
        seen.add(id(tensor))
        node = graphs.producer(tensor)
        operation = node.operation
        if node.is_input:
            self._sources[id(tensor)] = tensor
            return
        weights = getattr(operation, "weights", [])
        if weights and isinstance(operation, keras.Model) and _ends(operation):
            inner = _ends(operation)[tensor._keras_history.tensor_index]
            self._visit(inner, seen)
            self._inner[id(tensor)] = inner
            self._steps.append(tensor)
            return
        for read in node.input_tensors:
            if weights:
                self._sources[id(read)] = read
            else:
                self._visit(read, seen)
        self._steps.append(tensor)

    def run(self, generator: np.random.Generator) -> dict[int, Any]:
        """`{id(tensor): value}` for random features and perturbed weights."""
        value = {
            id(source): _features(source, generator) for source in self._sources.values()
        }
        nodes = [graphs.producer(step) for step in self._steps]
        variables = {
            id(variable): variable
            for step, node in zip(self._steps, nodes, strict=True)
            if id(step) not in self._inner
            for variable in getattr(node.operation, "variables", [])
        }
        perturbed = [(v, _perturbed(v, generator)) for v in variables.values()]
        # Layers read the perturbed weights, and their assignments stay in this scope.
        with keras.StatelessScope(state_mapping=perturbed):
            for step, node in zip(self._steps, nodes, strict=True):
                made = dict(value)
                if id(step) in self._inner:
                    made[id(step)] = made[id(self._inner[id(step)])]
                else:
                    graphs.replay([node], made)
                # A tensor may be a step for one output and a source for another.
                value = made | value
        return value


def _ends(model: keras.Model) -> list[Any]:
    """The output tensors of a model's graph; none for a subclassed model."""
    return keras.tree.flatten(getattr(model, "outputs", None) or [])


def _features(source: Any, generator: np.random.Generator) -> Any:
    shape = (_ROWS, *(_OPEN if size is None else size for size in source.shape[1:]))
    values: np.ndarray
    if keras.backend.is_float_dtype(source.dtype):
        scale = np.geomspace(0.1, 100, _ROWS).reshape(-1, *[1] * (len(shape) - 1))
        values = generator.normal(size=shape) * scale
    elif source.dtype == "uint8":
        values = generator.integers(0, 256, shape)
    else:
        # Booleans, or tokens of an unknown vocabulary.
        values = generator.integers(0, 2, shape)
    return keras.ops.convert_to_tensor(values.astype(np.float32), dtype=source.dtype)


def _perturbed(variable: Any, generator: np.random.Generator) -> Any:
    """A kernel plus noise, since a zeroed kernel would hide what follows it."""
    value = variable.value
    if len(variable.shape) < 2 or not keras.backend.is_float_dtype(variable.dtype):
        return value
    noise = generator.standard_normal(variable.shape, dtype=np.float32)
    # Scaled as in He's initialisation, so that features keep their magnitude.
    noise *= np.sqrt(2 / math.prod(variable.shape[:-1]))
    return value + keras.ops.convert_to_tensor(noise, dtype=variable.dtype)


@contextlib.contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restores Python's and NumPy's random state, which layers may advance."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

"""Whether outputs are logits: read from the graph, and tried on random features.

Training and routing apply softmax themselves. Given probabilities they would still
run, and every score would be wrong. The graph tells a softmax or sigmoid that stands
at the end. What hides one (an average of several networks, a Lambda, a layer of one's
own) is found by running the end of the model, from its last weights on, on random
features: logits take any value, probabilities do not.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from branchy_tf import graphs
from branchy_tf.errors import BranchyError

_ROWS = 8
_DRAWS = 2
# Axes that a model leaves open.
_OPEN = 8
# Softmax in a 16-bit format rounds by this much.
_TOLERANCE = 1e-2


def check_logits(tensors: dict[str, Any]) -> None:
    """Refuses exits that give probabilities.

    The layers of the model are run on a few rows, but none of their state changes.

    Args:
        tensors: `{"exit_1": symbolic tensor, ..., "exit_N": ...}`, each [B, classes].

    Raises:
        BranchyError: one gives no logits.
    """
    for name, tensor in tensors.items():
        activation = activation_of(last_change(tensor).operation)
        if activation in (keras.activations.softmax, keras.activations.sigmoid):
            raise BranchyError(
                f"{name} ends in {activation.__name__}; expected logits. Leave the "
                "activation out: training and routing apply softmax themselves."
            )
        bounded = looks_bounded(tensor)
        if bounded:
            raise BranchyError(
                f"{name} gives {bounded}; expected logits. Leave out what makes "
                "probabilities of them (softmax or sigmoid, maybe inside another "
                "layer): training and routing apply softmax themselves."
            )


def looks_bounded(tensor: Any) -> str:
    """What `tensor` gives instead of logits, in words; empty if it may well be logits.

    Args:
        tensor: symbolic, [B, classes].
    """
    draws = _probe([tensor])
    verdicts = {_verdict(values) for (values,) in draws}
    return verdicts.pop() if len(verdicts) == 1 else ""


def is_softmax_of(tensor: Any, logits: Any) -> bool:
    """Whether `tensor` gives the softmax of `logits`; true where it cannot be tried."""
    for probabilities, values in _probe([tensor, logits]):
        shifted = np.exp(values - values.max(axis=-1, keepdims=True))
        expected = shifted / shifted.sum(axis=-1, keepdims=True)
        if not np.allclose(probabilities, expected, rtol=0, atol=_TOLERANCE):
            return False
    return True


def last_change(tensor: Any) -> Any:
    """The node that `tensor` has its values from, behind what only passes them on.

    So a softmax is seen behind the Activation that gives float32 in mixed precision.
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
    """The activation that `operation` ends in, one of `keras.activations`."""
    # A subclassed model does not show how it ends.
    if isinstance(operation, keras.Model) and len(_ends(operation)) == 1:
        return activation_of(last_change(_ends(operation)[0]).operation)
    if isinstance(operation, layers.Wrapper):
        return activation_of(operation.layer)
    if hasattr(operation, "activation"):
        return operation.activation
    # Layers (ReLU) and operations (keras.ops.relu) that are an activation.
    kind = type(operation).__name__.lower()
    known = {name.replace("_", ""): name for name in dir(keras.activations)}
    return getattr(keras.activations, known.get(kind, "linear"))


def _verdict(values: np.ndarray) -> str:
    """What is wrong with these values [rows, classes] as logits, in words, or nothing."""
    # Constant logits (an exit that was zeroed) say nothing.
    if not np.isfinite(values).all() or np.ptp(values, axis=0).max() == 0:
        return ""
    if values.min() < 0:
        return ""
    sums = values.sum(axis=-1)
    if np.ptp(sums) <= _TOLERANCE * sums.max():
        return "probabilities (rows of the same sum, none negative)"
    if values.max() <= 1 + _TOLERANCE:
        return "values between 0 and 1"
    return ""


def _probe(tensors: Sequence[Any]) -> list[tuple[np.ndarray, ...]]:
    """Values of tensors that are computed from the same random features, some draws."""
    end = _End(tensors)
    draws = []
    # Whatever a layer raises on features that it was not made for (no such token, a
    # size that must be even, ...): then the graph alone has to do.
    with contextlib.suppress(Exception), _random_state_kept():
        for seed in range(_DRAWS):
            values = end.run(np.random.default_rng(seed))
            arrays = (keras.ops.convert_to_numpy(values[id(t)]) for t in tensors)
            draws.append(tuple(np.asarray(array, np.float64) for array in arrays))
    return draws


class _End:
    """What computes some tensors from the features that the last weights read.

    Of a model inside the model, that is its own end.

    Args:
        tensors: symbolic.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
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
        """`{id(tensor): value}` from random features, with the weights moved."""
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
        moved = [(v, _moved(v, generator)) for v in variables.values()]
        # Layers read the moved weights, and what they assign stays in this scope.
        with keras.StatelessScope(state_mapping=moved):
            for step, node in zip(self._steps, nodes, strict=True):
                made = dict(value)
                if id(step) in self._inner:
                    made[id(step)] = made[id(self._inner[id(step)])]
                else:
                    graphs.replay([node], made)
                # What one tensor is computed by may be a source of another; it stays.
                value = made | value
        return value


def _ends(model: keras.Model) -> list[Any]:
    """The output tensors of a model's graph; a subclassed model has none."""
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
        # Tokens, whose vocabulary is not known, or booleans.
        values = generator.integers(0, 2, shape)
    return keras.ops.convert_to_tensor(values.astype(np.float32), dtype=source.dtype)


def _moved(variable: Any, generator: np.random.Generator) -> Any:
    """Another value for a kernel: one that was zeroed would hide what follows."""
    value = variable.value
    if len(variable.shape) < 2 or not keras.backend.is_float_dtype(variable.dtype):
        return value
    noise = generator.standard_normal(variable.shape, dtype=np.float32)
    # As He's initialisation: through many layers, features keep their size.
    noise *= np.sqrt(2 / math.prod(variable.shape[:-1]))
    return value + keras.ops.convert_to_tensor(noise, dtype=variable.dtype)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Layers with random numbers of their own may move Python's and NumPy's."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

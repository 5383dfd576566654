"""The same network in bfloat16: half the bytes, and faster where a CPU knows it.

bfloat16 has float32's range and 8 bits for the digits. oneDNN multiplies it on CPUs
with AVX512_BF16 or AMX and adds up in float32; elsewhere it is emulated, and slow.
Scores near a threshold and labels near a tie can turn out differently, so a network is
compared with itself in float32 before it is exported: see `agreement`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from branchy_tf import checks, exits, graphs
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.saved_model import folding

BFLOAT16 = "bfloat16"
PRECISIONS = ("float32", BFLOAT16)


def check_precision(precision: str) -> None:
    """Raises `BranchyError` unless it is one of `PRECISIONS`."""
    checks.one_of("precision", precision, PRECISIONS)


def in_bfloat16(model: keras.Model) -> keras.Model:
    """A copy that stores its weights and computes in bfloat16.

    In float32 stay: what comes before the first weights (scaled pixels have more than
    8 bits), the layers that make the logits, and Sequential or subclassed models
    inside. Batch norm is folded first, from the exact weights. Inputs and outputs keep
    their dtypes.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`; it is not changed.

    Raises:
        BranchyError: a layer cannot be made again from its configuration.
    """
    folded = folding.fold_batch_norm(model)
    return _shortened(folded, _logits_layers(folded), {})


def _logits_layers(model: keras.Model) -> set[int]:
    """The ids of the layers that make logits, back to one with weights each."""
    found = set()
    for tensor in exits.exit_tensors(model).values():
        node = graphs.producer(tensor)
        while not node.operation.weights and len(node.input_tensors) == 1:
            found.add(id(node.operation))
            node = graphs.producer(node.input_tensors[0])
        found.add(id(node.operation))
    return found


def _shortened(
    model: keras.Model, kept: set[int], made: dict[int, Any], inputs: Any = None
) -> keras.Model:
    instead = {
        id(node): _when_needed(node.operation, made)
        for node in graphs.nodes_in_order(model)
        if isinstance(node.operation, keras.Layer) and id(node.operation) not in kept
    }
    return graphs.rebuild(model, instead, inputs)


def _when_needed(layer: keras.Layer, made: dict[int, Any]) -> Callable[..., Any]:
    """Calls a copy of `layer` where it has weights or is given bfloat16."""

    def call(*args, **kwargs):
        given = keras.tree.flatten((args, kwargs))
        short = any(getattr(tensor, "dtype", None) == BFLOAT16 for tensor in given)
        if not (layer.weights or short):
            return layer(*args, **kwargs)
        if id(layer) in made:
            return made[id(layer)](*args, **kwargs)
        fresh = made[id(layer)] = _copied(layer, made)
        outputs = fresh(*args, **kwargs)
        if fresh is not layer and not isinstance(fresh, keras.Model):
            graphs.copy_weights(layer, fresh)
        return outputs

    return call


def _copied(layer: keras.Layer, made: dict[int, Any]) -> keras.Layer:
    if layer.dtype_policy.name != "float32":
        return layer
    if isinstance(layer, keras.Model):
        if not graphs.has_nodes(layer):
            return layer
        inputs = keras.tree.map_structure(_input, layer.input)
        return _shortened(layer, set(), made, inputs)
    try:
        return type(layer).from_config(layer.get_config() | {"dtype": BFLOAT16})
    except (NotImplementedError, TypeError, ValueError) as error:
        raise BranchyError(
            f"Layer {layer.name} cannot be made again in bfloat16: {first_line(error)} "
            "Give it a get_config that its constructor takes, or export in float32."
        ) from None


def _input(tensor: Any) -> Any:
    short = BFLOAT16 if "float" in tensor.dtype else tensor.dtype
    return keras.Input(batch_shape=tensor.shape, dtype=short, name=tensor.name)

"""Converts a network to bfloat16: half the bytes, and faster on CPUs that support it.

bfloat16 has the range of float32 and 8 bits of precision. On CPUs with AVX512_BF16 or
AMX, oneDNN multiplies it natively and accumulates in float32; elsewhere it is emulated
and slow. Scores near a threshold and labels near a tie can change, so a network is
compared with its float32 original before it is exported: see `agreement`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.saved_model import folding

BFLOAT16 = "bfloat16"
PRECISIONS = ("float32", BFLOAT16)


def in_bfloat16(model: keras.Model) -> keras.Model:
    """A copy of the model with weights and computations in bfloat16.

    The operations before the first weights (scaled pixels have more than 8 bits), the
    layers that compute the logits, and nested Sequential or subclassed models stay in
    float32. Batch norm is folded first, from the exact weights. Inputs and outputs keep
    their dtypes.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`; it is not changed.

    Raises:
        BranchyError: a layer cannot be recreated from its configuration.
    """
    folded = folding.fold_batch_norm(model)
    return _shortened(folded, _logits_layers(folded), {})


def _logits_layers(model: keras.Model) -> set[int]:
    """The ids of the layers from each exit back to the first one with weights."""
    found = set()
    for tensor in exits.exit_tensors(model).values():
        node = graphs.producer(tensor)
        while not node.operation.weights and len(node.input_tensors) == 1:
            found.add(id(node.operation))
            node = graphs.producer(node.input_tensors[0])
        found.add(id(node.operation))
    return found


def _shortened(
    model: keras.Model, unchanged: set[int], made: dict[int, Any], inputs: Any = None
) -> keras.Model:
    instead = {
        id(node): _when_needed(node.operation, made)
        for node in graphs.nodes_in_order(model)
        if isinstance(node.operation, keras.Layer) and id(node.operation) not in unchanged
    }
    return graphs.rebuild(model, instead, inputs)


def _when_needed(layer: keras.Layer, made: dict[int, Any]) -> Callable[..., Any]:
    """Calls a copy of `layer` if it has weights or receives bfloat16."""

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
            f"Layer {layer.name} cannot be recreated in bfloat16: {first_line(error)} "
            "Give it a get_config that matches its constructor, or export in float32."
        ) from None


def _input(tensor: Any) -> Any:
    short = BFLOAT16 if "float" in tensor.dtype else tensor.dtype
    return keras.Input(batch_shape=tensor.shape, dtype=short, name=tensor.name)

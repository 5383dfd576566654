"""Counts the multiply-adds of a model in its TensorFlow graph for one example."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from branchy_tf import graphs
from branchy_tf.errors import BranchyError
from branchy_tf.multiply_adds.declared import declared_macs, uncountable, unknown_size
from branchy_tf.multiply_adds.known import KnownValues, upstream
from branchy_tf.multiply_adds.operations import (
    UncountableError,
    UnknownSizeError,
    count,
)


def macs_by_node(model: keras.Model) -> dict[int, int]:
    """The multiply-adds of each node for one example: `{id(node): macs}`.

    The model is traced for a fixed number of rows, so that sizes are known wherever they
    follow from the input. The cost of one example is what one more row adds: products of
    weights alone, which a frozen graph computes once, add nothing.

    Raises:
        BranchyError: a layer has inputs of unknown size, or does what cannot be counted.
    """
    rows = model.inputs[0].shape[0]
    if rows is not None:
        return {key: macs // rows for key, macs in _traced(model, rows).items()}
    # Not 1 row, which a layer may squeeze.
    fewer, more = _traced(model, 2), _traced(model, 3)
    return {key: more[key] - fewer[key] for key in more}


def _traced(model: keras.Model, rows: int) -> dict[int, int]:
    """The multiply-adds of each node for `rows` examples."""
    macs: dict[int, int] = {}

    def trace(*tensors: Any) -> None:
        value = {id(old): new for old, new in zip(model.inputs, tensors, strict=True)}
        known = KnownValues()
        seen: set[str] = set()
        for node in graphs.nodes_in_order(model):
            graphs.replay([node], value)
            written = [value[id(tensor)] for tensor in node.outputs]
            # Not all that the layer added: some only told it the shape of its output.
            operations = upstream(tf.nest.flatten(written, expand_composites=True), seen)
            seen |= {operation.name for operation in operations}
            declared = declared_macs(node.operation)
            macs[id(node)] = (
                _count(node.operation, operations, known)
                if declared is None
                else rows * declared
            )

    # The state of random layers stays as it is.
    with keras.StatelessScope():
        tf.function(trace, autograph=False).get_concrete_function(
            *(
                (tf.SparseTensorSpec if tensor.sparse else tf.TensorSpec)(
                    (rows, *tensor.shape[1:]), tensor.dtype
                )
                for tensor in model.inputs
            )
        )
    return macs


def _count(layer: Any, operations: list[Any], known: KnownValues) -> int:
    try:
        return count(operations, known)
    except UnknownSizeError:
        error: BranchyError = unknown_size(layer)
    except UncountableError as reason:
        error = uncountable(layer, str(reason))
    raise error

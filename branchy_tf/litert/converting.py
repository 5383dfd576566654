"""Converts stages and answers to .tflite parts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import checks, graphs
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.litert.quiet import quiet
from branchy_tf.policy import ExitPolicy, exits_early
from branchy_tf.saved_model import freezing
from branchy_tf.stages import Stage

QUANTIZE = ("none", "dynamic", "int8")

_HUGE = 1e30

# Maps tensors to a list of tensors.
_Function = Callable[..., Sequence[Any]]


def check_quantize(quantize: str) -> str:
    """Returns `quantize`, or raises `BranchyError` if it is unknown."""
    return checks.one_of("quantize", quantize, QUANTIZE)


def check_size(model: keras.Model) -> None:
    """Raises `BranchyError` for weights that no .tflite file can hold."""
    size = freezing.weight_bytes(model)
    if size > freezing.LARGEST_GRAPH:
        raise BranchyError(
            f"{model.name} has {size:,} bytes of weights, but LiteRT's converter takes "
            f"at most {freezing.LARGEST_GRAPH:,}. Export it as a SavedModel: "
            "--format=saved_model."
        )


def convert_stage(
    stage: Stage,
    function: freezing.StageFunction,
    quantize: str,
    examples: Sequence[np.ndarray] | None = None,
    rows: int | None = None,
) -> bytes:
    """A stage as a part from its inputs to [logits, *carried].

    Args:
        stage: one stage of a model.
        function: the same stage as a function, frozen.
        quantize: `none`, `dynamic` (weights in int8) or `int8` (activations too). Inputs
            and outputs keep their dtypes.
        examples: for int8, arrays for the stage's inputs, each [n, ...].
        rows: the number of rows; None for any.

    Raises:
        BranchyError: a layer cannot be expressed in LiteRT's built-in operators; the
            message names it.
    """

    def run(*tensors: Any) -> list[Any]:
        logits, carried = function(list(tensors))
        return [tf.cast(logits, tf.float32), *carried]

    specs = _specs(stage.model, rows)
    try:
        return _convert(run, specs, quantize, examples)
    except BranchyError:
        raise
    except Exception as error:  # the converter documents no types
        raise _explained(stage, error) from error


@functools.lru_cache(maxsize=64)
def answer_part(
    criterion: str, temperature: float, classes: int, rows: int | None = None
) -> bytes:
    """The answer of an exit: from logits to [probabilities, score], in float32.

    Args:
        criterion: the name of the score.
        temperature: of the exit.
        classes: the number of classes.
        rows: the number of rows; None for any.
    """
    policy = ExitPolicy(criterion=criterion, thresholds=[], temperatures=[temperature])

    def run(logits: Any) -> list[Any]:
        probabilities, scores = exit_answer(logits, policy, 0)
        # LiteRT's kernels clamp infinity to the largest float32, and some NaN too. As
        # elsewhere, such a row has no score and takes no early exit.
        known = tf.abs(tf.reduce_max(logits, axis=-1)) < _HUGE
        return [probabilities, tf.where(known, scores, float("nan"))]

    return _convert(run, [tf.TensorSpec([rows, classes], tf.float32)])


@functools.lru_cache(maxsize=1)
def leaving_part() -> bytes:
    """One row's decision: from [score, threshold] to [leaves]."""

    def run(score: Any, threshold: Any) -> list[Any]:
        return [exits_early(score, threshold)]

    return _convert(run, [tf.TensorSpec([1], tf.float32)] * 2)


def thresholds_part(count: int, inputs: Sequence[tf.TensorSpec]) -> bytes:
    """One row's thresholds: from [thresholds, *inputs] to each early exit's.

    They are NaN if an input holds NaN or infinity, so that no early exit takes the row.

    Args:
        count: the number of thresholds.
        inputs: the specs of the model's float inputs.
    """

    def run(thresholds: Any, *tensors: Any) -> list[Any]:
        for tensor in tensors:
            # LiteRT has no is_finite. NaN and infinity times 0 are NaN.
            nothing = tf.cast(tensor, tf.float32) * 0.0
            thresholds = thresholds + tf.reduce_sum(nothing)
        return tf.unstack(thresholds, axis=1)

    specs = [tf.TensorSpec([1, count], tf.float32)]
    specs += [tf.TensorSpec([1, *spec.shape[1:]], spec.dtype) for spec in inputs]
    return _convert(run, specs)


def _specs(model: keras.Model, rows: int | None) -> list[tf.TensorSpec]:
    return [
        tf.TensorSpec([rows, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs
    ]


def _convert(
    function: _Function,
    specs: Sequence[tf.TensorSpec],
    quantize: str = "none",
    examples: Sequence[np.ndarray] | None = None,
) -> bytes:
    named = [
        tf.TensorSpec(spec.shape, spec.dtype, f"x_{i}") for i, spec in enumerate(specs)
    ]

    def run(*tensors: Any) -> dict[str, Any]:
        return {
            # An output that is an input, or twice an output, needs a name of its own.
            f"y_{i}": tf.identity(tensor)
            for i, tensor in enumerate(function(*tensors))
        }

    module = tf.Module()
    module.run = tf.function(run, input_signature=named, autograph=False)
    with quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.run.get_concrete_function()], module
        )
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "int8":
            assert examples is not None
            converter.representative_dataset = lambda: _rows(named, examples)
            # An operator without an int8 kernel stays in float32.
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
                tf.lite.OpsSet.TFLITE_BUILTINS,
            ]
        return converter.convert()


def _rows(
    specs: Sequence[tf.TensorSpec], examples: Sequence[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    for i in range(len(examples[0])):
        yield {
            spec.name: array[i : i + 1]
            for spec, array in zip(specs, examples, strict=True)
        }


def _explained(stage: Stage, error: Exception) -> BranchyError:
    """Names the layer that cannot be converted."""
    for node in graphs.nodes_in_order(stage.model):
        reason = _failure(node)
        if reason:
            return BranchyError(
                f"Layer {node.operation.name!r} ({type(node.operation).__name__}) of "
                f"{stage.name} cannot be expressed in LiteRT's built-in operators: "
                f"{reason} Replace the layer, or export with --format=saved_model."
            )
    return BranchyError(
        f"The stage of {stage.name} cannot be converted to LiteRT: "
        f"{_reason(error)} Export with --format=saved_model."
    )


def _failure(node: Any) -> str:
    """Why a node alone cannot be converted; "" if it can."""
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        for tensor in node.input_tensors
    ]
    if not inputs:
        return ""
    value = {
        id(tensor): fresh
        for tensor, fresh in zip(node.input_tensors, inputs, strict=True)
    }
    graphs.replay([node], value)
    outputs = [value[id(tensor)] for tensor in node.outputs]
    alone = keras.Model(inputs, outputs)
    try:
        _convert(
            lambda *tensors: keras.tree.flatten(alone(list(tensors), training=False)),
            _specs(alone, 1),
        )
    except Exception as error:  # the converter documents no types
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """The operators that the converter misses, or its first line."""
    lines = str(error).splitlines()
    found = list(
        itertools.chain.from_iterable(
            line.partition(":")[2].split(",")
            for line in lines
            if line.startswith(("Flex ops:", "Custom ops:"))
        )
    )
    if found:
        return f"it needs {', '.join(sorted(name.strip() for name in found))}."
    return f"{first_line(error).rstrip('.')}."

"""Stages as TensorFlow functions, with weights as constants or variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from branchy_tf import checks, stages
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import folding

# Maps tensors to (logits, carried tensors).
StageFunction = Callable[[list], tuple[Any, list]]

FREEZE = ("auto", "true", "false")
# Each of three signatures may hold a copy of the constants, and a GraphDef is limited
# to 2 GB.
_MOST_FROZEN_BYTES = 500_000_000
LARGEST_GRAPH = 1_900_000_000
# Keras opens a TensorFlow scope with the name of each layer.
_SCOPE = re.compile(r"[A-Za-z0-9_.>-]*")


def should_freeze(model: keras.Model, freeze: str) -> bool:
    """Whether to freeze; auto freezes models well below the limit of a GraphDef.

    Raises:
        BranchyError: `freeze` is not one of auto, true and false, or the model is too
            large to freeze.
    """
    checks.one_of("freeze", freeze, FREEZE)
    weights = weight_bytes(model)
    if freeze == "true" and weights > LARGEST_GRAPH:
        raise BranchyError(
            f"{model.name} has {weights:,} bytes of weights, but a graph can hold at "
            f"most {LARGEST_GRAPH:,} as constants. Pass --freeze=false."
        )
    if freeze == "auto":
        return 3 * weights <= _MOST_FROZEN_BYTES
    return freeze == "true"


def weight_bytes(model: keras.Model) -> int:
    """The size of all weights in memory."""
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in model.variables)


def stage_functions(model: keras.Model, frozen: bool) -> list[StageFunction]:
    """The stages of `model` as functions to call inside a graph.

    A frozen stage is a separate function that holds its weights. Called inside a branch
    of `tf.cond`, it becomes part of that branch with its filters as constants, so that
    TensorFlow can fuse conv, bias, sum and relu. Constants captured from outside a
    branch do not allow this. The SavedModel stores each function once, however many
    signatures call it.

    Raises:
        BranchyError: a tensor between stages does not have the batch first, a layer
            has a name that TensorFlow refuses, or Keras runs on another backend.
    """
    if keras.backend.backend() != "tensorflow":
        raise BranchyError(
            f"Keras runs on {keras.backend.backend()}; early exit and export need "
            "TensorFlow. Set KERAS_BACKEND=tensorflow; a .keras file trained on another "
            "backend loads there."
        )
    check_layer_names(model)
    return as_functions(stages.split(model), frozen)


def as_functions(parts: Sequence[stages.Stage], frozen: bool) -> list[StageFunction]:
    """Stages that follow each other as functions; see `stage_functions`."""
    for part in parts:
        for tensor in part.model.inputs:
            if not len(tensor.shape) or tensor.shape[0] is not None:
                raise BranchyError(
                    f"A tensor of shape {tuple(tensor.shape)} crosses into the stage of "
                    f"{part.name}; expected (None, ...), with the batch first and of any "
                    "size, so that each row can exit on its own."
                )
    return [freeze(part) if frozen else part for part in parts]


def freeze(stage: stages.Stage) -> StageFunction:
    """The stage as a function with constant weights and folded batch norm."""
    stage = stages.Stage(stage.name, folding.fold_batch_norm(stage.model))
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in stage.model.inputs]
    traced = tf.function(lambda *tensors: stage(list(tensors)))
    concrete = traced.get_concrete_function(*specs)
    constant = convert_variables_to_constants_v2(concrete)
    # Lookup tables are not constants: their handles remain inputs, after the stage's.
    captured = {inside.name: outside for outside, inside in concrete.graph.captures}
    handles = [captured[tensor.name] for tensor in constant.inputs[len(specs) :]]

    def call(tensors: list) -> tuple[Any, list]:
        logits, *carried = tf.nest.flatten(constant(*tensors, *handles))
        return logits, carried

    return call


def tables(model: keras.Model) -> list[Any]:
    """The lookup tables in the layers of `model`, which a SavedModel must track."""
    return [
        value
        for layer in _all_layers(model)
        for value in vars(layer).values()
        if isinstance(value, tf.saved_model.experimental.TrackableResource)
    ]


def _all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    # Includes nested layers, for which Keras has no public API.
    return list(model._flatten_layers(include_self=False))


def check_layer_names(model: keras.Model) -> None:
    """Raises `BranchyError` if TensorFlow refuses the name of a layer."""
    for layer in _all_layers(model):
        if not _SCOPE.fullmatch(layer.name):
            raise BranchyError(
                f"Layer {layer.name!r} of {model.name!r} has a name that TensorFlow "
                "refuses in a graph; expected ASCII letters, digits, '_', '.' and '-'. "
                "Rename the layer."
            )

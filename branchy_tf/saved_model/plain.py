"""Exports models without early exit, to compare with."""

from __future__ import annotations

import pathlib

import keras
import tensorflow as tf

from branchy_tf import graphs, stages
from branchy_tf.saved_model import early_exit, freezing

SIGNATURE = "serving_default"


def write_keras_export(model: keras.Model, path: pathlib.Path) -> None:
    """Writes what plain Keras exports, with `model.export` and our names of inputs."""
    specs = [
        keras.InputSpec(tensor.dtype, tensor.shape, name=name)
        for tensor, name in zip(model.inputs, graphs.input_names(model), strict=True)
    ]
    signature = [keras.tree.pack_sequence_as(model.input, specs)]
    model.export(str(path), verbose=False, input_signature=signature)


def write_frozen(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a model or a stage, frozen like the stages of an export.

    The signature is serving_default, with inputs x_0, x_1, ... and outputs y_0, y_1, ...
    """
    function = freezing.freeze(stages.Stage("whole", model))
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, f"x_{i}")
        for i, tensor in enumerate(model.inputs)
    ]

    def run(*tensors):
        logits, carried = function(list(tensors))
        return {f"y_{i}": tensor for i, tensor in enumerate([logits, *carried])}

    signature = tf.function(run, input_signature=specs, autograph=False)
    module = tf.Module()
    module.tables = freezing.tables(model)
    early_exit.save(module, path, {SIGNATURE: signature})

"""LiteRT files with every exit's logits."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from branchy_tf import exits, files, graphs
from branchy_tf.data import Split

_SIGNATURE = "serving_default"


def convert(
    model: Any,
    inputs: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    quantize: bool = True,
    representative: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """A LiteRT file of one signature, from a batch of rows to every exit's logits.

    Args:
        model: of Keras 3 or tf_keras, with the outputs `{exit: logits}`.
        inputs: "name", "shape" without the batch and "dtype" of each input.
        names: the names of the exits.
        quantize: whether kernels become int8; activations become int8 too if the model
            was trained for that or `representative` is given.
        representative: rows of each input by name, which show the range of each tensor.
    """
    specs = [
        tf.TensorSpec([None, *given["shape"]], given["dtype"], given["name"])
        for given in inputs
    ]

    def every_exit(*tensors: tf.Tensor) -> list[tf.Tensor]:
        given = tf.nest.pack_sequence_as(model.input, tensors)
        outputs = model(given, training=False)
        return [outputs[name] for name in names]

    live = tf.function(every_exit, input_signature=specs).get_concrete_function()
    # Finding the range of each tensor fails where there are variables.
    frozen = convert_to_constants.convert_variables_to_constants_v2(live)
    module = tf.Module()
    module.frozen = frozen
    module.every_exit = tf.function(
        lambda *tensors: dict(zip(names, frozen(*tensors), strict=True)),
        input_signature=specs,
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={_SIGNATURE: module.every_exit})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if representative is not None:
            converter.representative_dataset = lambda: _one_by_one(representative)
        return converter.convert()


def _one_by_one(rows: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for i in range(len(next(iter(rows.values())))):
        yield {name: array[i : i + 1] for name, array in rows.items()}


def every_exit(
    path: files.Path, model: keras.Model, split: Split, batch_size: int = 256
) -> np.ndarray:
    """Every exit's logits by a file of `convert`, float32 [n, N, classes].

    Args:
        path: the .tflite file.
        model: the model that it was converted from, which names inputs and exits.
        split: the rows.
        batch_size: rows per batch.
    """
    run, names = runner(path), exits.exit_names(model)
    parts = []
    for inputs, _ in split.batches(batch_size):
        outputs = run(**graphs.cast_inputs(model, inputs))
        parts.append(np.stack([outputs[name] for name in names], axis=1))
    return np.concatenate(parts)


def runner(path: files.Path, threads: int = 1) -> Any:
    """A function from a batch to `{exit: logits}`, by the LiteRT interpreter."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        # TensorFlow's copy of the same interpreter.
        Interpreter = tf.lite.Interpreter
    interpreter = Interpreter(
        model_content=pathlib.Path(path).read_bytes(), num_threads=threads
    )
    return interpreter.get_signature_runner(_SIGNATURE)

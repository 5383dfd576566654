"""LiteRT files with every exit's logits."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from branchy_tf import files

_SIGNATURE = "serving_default"


def convert(
    model: Any,
    inputs: Mapping[str, Any],
    names: Sequence[str],
    quantize: bool = True,
    representative: np.ndarray | None = None,
) -> bytes:
    """A LiteRT file of one signature, from a batch of rows to every exit's logits.

    Args:
        model: of Keras 3 or tf_keras, with the outputs `{exit: logits}`.
        inputs: "name", "shape" without the batch and "dtype" of its input.
        names: the names of the exits.
        quantize: whether kernels become int8; activations become int8 too if the model
            was trained for that or `representative` is given.
        representative: rows that show the range of each tensor.
    """
    spec = tf.TensorSpec([None, *inputs["shape"]], inputs["dtype"], inputs["name"])

    def every_exit(tensor: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(tensor, training=False)
        return [outputs[name] for name in names]

    live = tf.function(every_exit, input_signature=[spec]).get_concrete_function()
    # Finding the range of each tensor fails where there are variables.
    frozen = convert_to_constants.convert_variables_to_constants_v2(live)
    module = tf.Module()
    module.frozen = frozen
    module.every_exit = tf.function(
        lambda tensor: dict(zip(names, frozen(tensor), strict=True)),
        input_signature=[spec],
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={_SIGNATURE: module.every_exit})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if representative is not None:
            converter.representative_dataset = lambda: _one_by_one(
                inputs["name"], representative
            )
        return converter.convert()


def _one_by_one(name: str, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for row in range(len(rows)):
        yield {name: rows[row : row + 1]}


def every_exit(
    path: files.Path, inputs: Any, names: Sequence[str], batch_size: int = 256
) -> np.ndarray:
    """Every exit's logits by a file of `convert`, float32 [n, N, classes].

    Args:
        path: the .tflite file.
        inputs: [n, ...].
        names: the names of the exits.
        batch_size: rows per batch.
    """
    run = runner(path)
    (name,) = run.get_input_details()
    parts = []
    for start in range(0, len(inputs), batch_size):
        outputs = run(**{name: np.ascontiguousarray(inputs[start : start + batch_size])})
        parts.append(np.stack([outputs[exit_] for exit_ in names], axis=1))
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

"""Warm-up requests, which a server runs before it declares a version ready.

The first request of each kind builds an executor (60 to 90 ms), and the first batch of
a new size allocates memory. TF Serving replays this file when it loads a version, so
that no client has to wait for either.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)

from branchy_tf.policy import forcing
from branchy_tf.saved_model.early_exit import EarlyExitModule

FILE_NAME = "tf_serving_warmup_requests"
# Sizes of batches that reach each exit as a whole. What remains of mixed batches in
# later stages has similar sizes.
BATCH_SIZES = (1, 2, 8, 32)


def requests(module: EarlyExitModule) -> list[tuple[str, dict[str, np.ndarray]]]:
    """`[(signature, inputs), ...]` that reach every signature and exit."""
    num_exits = len(module.exit_names)
    found = []
    for rows in BATCH_SIZES:
        if module.max_rows is not None and rows > module.max_rows:
            break
        inputs = example_inputs(module, rows)
        for k in range(num_exits):
            # [B, N-1], because batching needs the batch as the first dimension of every
            # input.
            limits = np.tile(forcing(k, num_exits), (rows, 1))
            found.append(("early_exit", inputs | {"thresholds": limits}))
        found.append(("serving_default", inputs))
        found.append(("all_exits", inputs))
    return found


def example_inputs(module: EarlyExitModule, rows: int) -> dict[str, np.ndarray]:
    """A reproducible batch of noise that fits the signatures."""
    return examples(module.specs, module.model_dtypes, rows)


def examples(
    specs: Sequence[tf.TensorSpec], model_dtypes: Sequence[str], rows: int
) -> dict[str, np.ndarray]:
    """A reproducible batch of noise.

    Args:
        specs: of the inputs.
        model_dtypes: the dtypes that the inputs are cast to.
        rows: of the batch.
    """
    random = np.random.default_rng(0)
    return {
        spec.name: _example(spec, dtype, rows, random)
        for spec, dtype in zip(specs, model_dtypes, strict=True)
    }


def write(module: EarlyExitModule, version: pathlib.Path, model_name: str) -> None:
    """Writes assets.extra/tf_serving_warmup_requests of a version."""
    write_requests(requests(module), version, model_name)


def write_requests(
    requests: Iterable[tuple[str, dict[str, np.ndarray]]],
    version: pathlib.Path,
    model_name: str,
) -> None:
    """Writes `(signature, inputs)` as the warm-up requests of a version."""
    with tf.io.TFRecordWriter(str(version / "assets.extra" / FILE_NAME)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=model_name, signature_name=signature)
            )
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def read(version: pathlib.Path) -> list[predict_pb2.PredictRequest]:
    """The requests in a version's warm-up file; an empty list without the file."""
    path = version / "assets.extra" / FILE_NAME
    if not path.exists():
        return []
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(path))
    ]


def replay(model: Any, version: pathlib.Path) -> None:
    """Runs a version's warm-up requests, as a server does before it is ready.

    Args:
        model: the loaded version, a `SessionModel` or an object with the same `run`.
        version: the folder of the version.
    """
    for request in read(version):
        arrays = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        model.run(request.model_spec.signature_name, arrays)


def _example(
    spec: tf.TensorSpec, model_dtype: str, rows: int, random: np.random.Generator
) -> np.ndarray:
    shape = [rows, *(size or 32 for size in spec.shape[1:])]
    values: np.ndarray
    if model_dtype == "uint8":
        values = random.integers(0, 256, shape)
    elif spec.dtype.is_floating:
        values = random.random(shape)
    else:
        values = np.zeros(shape)
    return values.astype(spec.dtype.as_numpy_dtype)

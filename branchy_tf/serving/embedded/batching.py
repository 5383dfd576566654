"""Merges requests into batches with TensorFlow's own batch scheduler.

TF Serving wraps a session in a queue that merges requests. `BatchFunction` is the same
scheduler as an operation: the graph gets one per signature in use, and requests that run
it at the same time share a batch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving import configs
from branchy_tf.serving.embedded.statuses import invalid


class BatchedModel:
    """A `SessionModel` that batches requests as TF Serving does.

    TF Serving hangs on an empty batch, and fails all requests that it merged with one of
    a wrong shape. Here such requests run alone.

    Args:
        model: runs the batches.
        parameters: BatchingParameters.

    Attributes:
        signatures: the model's.
    """

    def __init__(self, model: SessionModel, parameters: Any) -> None:
        self.signatures = model.signatures
        self._model = model
        self._most = configs.whole(parameters, "max_batch_size", configs.MAX_BATCH_SIZE)
        self._batching = tf.nondifferentiable_batch_function(
            num_batch_threads=configs.whole(
                parameters, "num_batch_threads", os.cpu_count() or 1
            ),
            max_batch_size=self._most,
            batch_timeout_micros=configs.whole(parameters, "batch_timeout_micros", 0),
            allowed_batch_sizes=list(parameters.allowed_batch_sizes) or None,
            max_enqueued_batches=configs.whole(
                parameters, "max_enqueued_batches", configs.MAX_ENQUEUED_BATCHES
            ),
            enable_large_batch_splitting=False,
        )
        if parameters.pad_variable_length_inputs:
            logging.warning(
                "pad_variable_length_inputs: rows are not padded here; requests whose "
                "shapes differ run one by one."
            )
        self._queues: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs a signature in a batch with other requests; see `SessionModel.run`.

        Raises:
            Refusal: INVALID_ARGUMENT for inputs without a common batch size.
            tf.errors.OpError: an error of the engine, e.g. UnavailableError if the queue
                is full.
        """
        definition = self.signatures[signature]
        feeds = self._model.defaults[signature] | dict(inputs)
        rows = _rows(feeds)
        if not rows or not _fit(definition, feeds):
            return self._model.run(signature, inputs)
        if rows > self._most:
            raise invalid(
                f"Task size {rows} is larger than maximum input batch size {self._most}"
            )
        values = self._queue(signature)(*(feeds[name] for name in sorted(feeds)))
        return dict(zip(sorted(definition.outputs), values, strict=True))

    def close(self) -> None:
        """Frees the model. No run may be pending or follow."""
        self._queues.clear()
        self._model.close()

    def _queue(self, signature: str) -> Any:
        if signature not in self._queues:
            with self._lock:
                if signature not in self._queues:
                    self._queues[signature] = self._build(self.signatures[signature])
        return self._queues[signature]

    def _build(self, definition: Any) -> Any:
        """A function that runs arrays through a new queue."""
        names = [info.name for _, info in sorted(definition.inputs.items())]
        fetches = [info.name for _, info in sorted(definition.outputs.items())]
        graph = self._model.graph
        # Variables are copied as handles, which refer to the values that the session
        # restored.
        part = tf.compat.v1.graph_util.extract_sub_graph(
            graph.as_graph_def(), [name.partition(":")[0] for name in fetches]
        )

        @self._batching
        def batched(*arguments):
            return tf.graph_util.import_graph_def(
                part,
                input_map=dict(zip(names, arguments, strict=True)),
                return_elements=fetches,
                name="",
            )

        with graph.as_default():
            feeds = [
                tf.compat.v1.placeholder(tf.as_dtype(info.dtype), name=f"batched_{name}")
                for name, info in sorted(definition.inputs.items())
            ]
            results = batched(*feeds)
        return self._model.call(
            tuple(tensor.name for tensor in feeds),
            tuple(tensor.name for tensor in results),
        )


def _rows(arrays: Mapping[str, np.ndarray]) -> int:
    """The common batch size."""
    if any(not array.ndim for array in arrays.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in arrays.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop() if sizes else 0


def _fit(definition: Any, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether each row has the fixed shape of the signature."""
    return all(
        not (shape := definition.inputs[name].tensor_shape).unknown_rank
        and array.shape[1:] == tuple(dim.size for dim in shape.dim[1:])
        and len(shape.dim) > 0
        for name, array in arrays.items()
    )

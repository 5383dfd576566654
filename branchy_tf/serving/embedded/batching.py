"""Rows of several requests as one run, by TensorFlow's own batch scheduler.

TF Serving wraps a session in a queue that merges requests. `BatchFunction` is the
same scheduler as an operation: the graph gets one for each signature that is asked
for, and requests that run it at the same time share a batch.
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
    """Runs like the `SessionModel` it is given, under TF Serving's rules of batching.

    Two cases differ from TF Serving, which hangs on an empty batch, and fails all
    that a request of wrong shape was merged with: such requests run alone here.

    Args:
        model: what runs the batches.
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
        """Runs one signature, together with other requests; see `SessionModel.run`.

        Raises:
            Refusal: INVALID_ARGUMENT, for inputs that have no common batch.
            tf.errors.OpError: what the engine answers, e.g. UnavailableError where
                the queue is full.
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
        """Frees the model. No run may be under way or follow."""
        self._queues.clear()
        self._model.close()

    def _queue(self, signature: str) -> Any:
        if signature not in self._queues:
            with self._lock:
                if signature not in self._queues:
                    self._queues[signature] = self._build(self.signatures[signature])
        return self._queues[signature]

    def _build(self, definition: Any) -> Any:
        """A function from arrays to arrays that runs them through a queue."""
        names = [info.name for _, info in sorted(definition.inputs.items())]
        fetches = [info.name for _, info in sorted(definition.outputs.items())]
        graph = self._model.graph
        # Weights that are variables come along as their handles, which name the
        # values that the session has restored.
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
    """The batch size that all have in common."""
    if any(not array.ndim for array in arrays.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in arrays.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop() if sizes else 0


def _fit(definition: Any, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether each row has the one shape that the signature allows."""
    return all(
        not (shape := definition.inputs[name].tensor_shape).unknown_rank
        and array.shape[1:] == tuple(dim.size for dim in shape.dim[1:])
        and len(shape.dim) > 0
        for name, array in arrays.items()
    )

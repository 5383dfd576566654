"""The full network in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

from branchy_tf.benchmarking.rows import Arrays


class OnnxRuntimeEngine:
    """Runs .onnx files with ONNX Runtime's default settings, except for threads.

    Args:
        programs: `{contender: {"path"}}`.
        threads: per operation, and parallel operations.
    """

    def __init__(self, programs: dict[str, dict[str, Any]], threads: int) -> None:
        self._programs = programs
        self._threads = threads

    def prepare(self, contender: str, batches: list[Arrays]) -> Callable[[int], Any]:
        """See `worker.Engine`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = self._threads
        session = onnxruntime.InferenceSession(
            self._programs[contender]["path"], options, ["CPUExecutionProvider"]
        )
        return lambda i: session.run(None, batches[i])

    def answer(self, contender: str, inputs: Arrays) -> tuple[Any, Any]:
        """See `worker.Engine`."""
        (logits,) = self.prepare(contender, [inputs])(0)
        return logits.argmax(axis=-1), None


load = OnnxRuntimeEngine

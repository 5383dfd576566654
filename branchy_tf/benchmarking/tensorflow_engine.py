"""SavedModels in a Session, TF Serving's engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf.benchmarking.rows import Arrays, count
from branchy_tf.saved_model.session import SessionModel


class TensorFlowEngine:
    """Runs signatures of SavedModels.

    Args:
        programs: `{contender: {"path", "signature", "thresholds": rows to repeat over
            the batch (optional), "behind": paths of the earlier stages (optional)}}`.
        threads: per operation; operations run one at a time in the calling thread, as
            in serving/.
    """

    def __init__(self, programs: dict[str, dict[str, Any]], threads: int) -> None:
        self._programs = programs
        self._threads = threads
        self._loaded: dict[str, SessionModel] = {}

    def prepare(self, contender: str, batches: list[Arrays]) -> Callable[[int], Any]:
        """See `worker.Engine`."""
        program = self._programs[contender]
        session, signature = self._session(program["path"]), program["signature"]
        feeds = [self._feeds(program, batch) for batch in batches]
        return lambda i: session.run(signature, feeds[i])

    def answer(self, contender: str, inputs: Arrays) -> tuple[Any, Any]:
        """See `worker.Engine`."""
        values = self.prepare(contender, [inputs])(0)
        if "exit" in values:
            return values["probabilities"].argmax(axis=-1), values["exit"]
        return next(iter(values.values())).argmax(axis=-1), None

    def _session(self, path: str) -> SessionModel:
        if path not in self._loaded:
            self._loaded[path] = SessionModel(path, self._threads)
        return self._loaded[path]

    def _feeds(self, program: dict[str, Any], inputs: Arrays) -> dict[str, Any]:
        live = list(inputs.values())
        for path in program.get("behind", ()):
            values = self._run_in_order(path, live)
            live = values[1:]
        definition = self._session(program["path"]).signatures[program["signature"]]
        names = list(inputs)
        if set(names) != definition.inputs.keys() - {"thresholds"}:
            # Those of a stage are numbered.
            names = [f"x_{i}" for i in range(len(live))]
        feeds = {}
        if "thresholds" in program:
            rows = np.asarray(program["thresholds"], np.float32)
            feeds["thresholds"] = rows[np.arange(count(inputs)) % len(rows)]
        for name, tensor in zip(names, live, strict=True):
            dtype = tf.as_dtype(definition.inputs[name].dtype).as_numpy_dtype
            feeds[name] = tensor.astype(dtype)
        return feeds

    def _run_in_order(self, path: str, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Inputs x_0, x_1, ... to outputs y_0, y_1, ..."""
        values = self._session(path).run(
            "serving_default", {f"x_{i}": tensor for i, tensor in enumerate(tensors)}
        )
        return [values[f"y_{i}"] for i in range(len(values))]


load = TensorFlowEngine

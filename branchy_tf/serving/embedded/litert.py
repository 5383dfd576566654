"""Serves LiteRT versions as if they were SavedModels: same signatures and statuses."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from branchy_tf import checks
from branchy_tf.litert import LiteRTEngine
from branchy_tf.policy import forcing
from branchy_tf.serving.embedded.statuses import invalid


class LiteRTModel:
    """A LiteRT version with the signatures of an exported SavedModel.

    A SavedModel checks shapes in its graph; here they are checked in `run`.

    Args:
        path: the folder of the version.
        threads: the threads inside one operation; 0 means one per core.

    Attributes:
        signatures: `{name: SignatureDef}` of the served signatures.

    Raises:
        BranchyError: the version does not load.
    """

    def __init__(self, path: str | pathlib.Path, threads: int = 0) -> None:
        self._engine = LiteRTEngine(path, threads or None)
        found = self._engine.description
        self._most, self._policy = found.max_rows, found.policy
        number, classes = self._policy.num_exits, found.classes
        self._limits = checks.TensorSpec((None, number - 1), np.float32)
        answer = {
            "probabilities": checks.TensorSpec((None, classes), np.float32),
            "exit": checks.TensorSpec((None,), np.int32),
            "score": checks.TensorSpec((None,), np.float32),
        }
        every = {
            "probabilities": checks.TensorSpec((None, number, classes), np.float32),
            "scores": checks.TensorSpec((None, number), np.float32),
        }
        asked = {**found.inputs, "thresholds": self._limits}
        self.signatures = {
            "early_exit": _signature("early_exit", asked, answer),
            "serving_default": _signature("serving_default", found.inputs, answer),
            "all_exits": _signature("all_exits", found.inputs, every),
        }
        self.signatures["early_exit"].defaults["thresholds"].CopyFrom(
            tf.make_tensor_proto(self._policy.limits)
        )

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs a signature; see `SessionModel.run`.

        Raises:
            Refusal: INVALID_ARGUMENT for inputs of a wrong shape.
        """
        arrays = {
            name: _checked(name, inputs[name], spec)
            for name, spec in self._engine.inputs.items()
        }
        rows = len(next(iter(arrays.values())))
        for name, array in arrays.items():
            if len(array) != rows:
                raise invalid(f"The inputs differ in their rows: {name}: {len(array)}")
        if self._most is not None and rows > self._most:
            raise invalid(
                f"A request holds at most {self._most} rows; split it. Received: {rows}"
            )
        if signature == "all_exits":
            return self._engine.all_exits(arrays)
        limits = self._policy.limits
        if signature == "early_exit" and "thresholds" in inputs:
            limits = _checked("thresholds", inputs["thresholds"], self._limits)
            if len(limits) not in (1, rows):
                raise invalid(
                    "thresholds must have 1 row, or one for each row of the inputs. "
                    f"Received rows of thresholds and of inputs: {len(limits)} {rows}"
                )
        return self._engine.early_exit(arrays | {"thresholds": limits})

    def warm_up(self) -> None:
        """Runs one row through every exit and signature."""
        rows = {
            name: np.zeros([1, *(size or 1 for size in spec.shape[1:])], spec.dtype)
            for name, spec in self._engine.inputs.items()
        }
        number = self._policy.num_exits
        for k in range(number):
            limits = forcing(k, number)[None]
            self.run("early_exit", rows | {"thresholds": limits})
        self.run("all_exits", rows)

    def close(self) -> None:
        """Frees nothing: the interpreters go with the object."""


def _checked(name: str, array: np.ndarray, spec: checks.TensorSpec) -> np.ndarray:
    fits = array.ndim == len(spec.shape) and all(
        want in (None, got) for got, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise invalid(f"{name}: expected {spec}, but received shape {list(array.shape)}")
    return np.ascontiguousarray(array)


def _signature(
    name: str,
    inputs: Mapping[str, checks.TensorSpec],
    outputs: Mapping[str, checks.TensorSpec],
) -> Any:
    definition = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for fields, specs in ((definition.inputs, inputs), (definition.outputs, outputs)):
        for key, spec in specs.items():
            info = fields[key]
            info.name = f"{name}/{key}"
            info.dtype = tf.as_dtype(spec.dtype).as_datatype_enum
            info.tensor_shape.CopyFrom(tf.TensorShape(spec.shape).as_proto())
    return definition

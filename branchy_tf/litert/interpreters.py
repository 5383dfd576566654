"""Runs .tflite files, from any number of threads."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError, first_line
from branchy_tf.litert.quiet import quiet

# LiteRT announces its kernels, once in a process.
_NEWS = b"INFO: "
_MEND = "Export the model again."


class TFLiteFile:
    """A .tflite file; `run` may be called from several threads.

    An interpreter runs one call at a time, so there is one for each concurrent call.

    Args:
        path: the file.
        threads: the threads inside one operation; None lets LiteRT choose, which is 1.
        content: the bytes of the file, if they are already read.

    Attributes:
        input_names: the names of the inputs, in order.
        output_names: the names of the outputs, in order.

    Raises:
        BranchyError: LiteRT is not installed, or the file cannot be loaded.
    """

    def __init__(
        self,
        path: pathlib.Path,
        threads: int | None = None,
        content: bytes | None = None,
    ) -> None:
        self._path = path
        self._threads = threads
        # Kept, as files may be replaced while further interpreters are made.
        self._content = path.read_bytes() if content is None else content
        self._free: collections.deque[_Interpreter] = collections.deque()
        with quiet(_NEWS):
            first = self._new()
        self.input_names, self.output_names = first.input_names, first.output_names
        self._free.append(first)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs the file on arrays in the order of `input_names`.

        Returns:
            Arrays in the order of `output_names`.
        """
        try:
            # Popping and appending are atomic.
            interpreter = self._free.pop()
        except IndexError:
            interpreter = self._new()
        try:
            return interpreter.run(inputs)
        finally:
            self._free.append(interpreter)

    def _new(self) -> _Interpreter:
        interpreter = _interpreter_class()
        try:
            return _Interpreter(
                interpreter(model_content=self._content, num_threads=self._threads)
            )
        except Exception as error:  # whatever LiteRT raises for a damaged file
            raise BranchyError(
                f"{self._path} cannot be loaded by LiteRT: {first_line(error)} {_MEND}"
            ) from error


class _Interpreter:
    def __init__(self, interpreter: Any) -> None:
        interpreter.allocate_tensors()
        inputs, outputs = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        self.input_names = [entry["name"] for entry in inputs]
        self.output_names = [entry["name"] for entry in outputs]
        self._inputs = [entry["index"] for entry in inputs]
        self._outputs = [entry["index"] for entry in outputs]
        self._shapes = [tuple(entry["shape"]) for entry in inputs]
        self._interpreter = interpreter

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        interpreter = self._interpreter
        shapes = [array.shape for array in inputs]
        if shapes != self._shapes:
            for index, shape in zip(self._inputs, shapes, strict=True):
                interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
            self._shapes = shapes
        for index, array in zip(self._inputs, inputs, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]


def check_installed() -> None:
    """Raises `BranchyError` if LiteRT is not installed."""
    _interpreter_class()


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise BranchyError(
            "LiteRT is not installed: pip install ai-edge-litert, or branchy_tf[litert]."
        ) from None
    return Interpreter

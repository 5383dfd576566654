"""Runs a SavedModel through TensorFlow's C API, in a process without Python's.

What Python checks on the way hides what a server meets. Called as a program,
it reads a pickled job from its input and writes the pickled answers.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import numpy.random

# DataType of the dtypes that the tests feed and fetch.
_NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9}
_NAMES = {number: name for name, number in _NUMBERS.items()}


class Output(ctypes.Structure):
    """TF_Output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def run(version: pathlib.Path, signature, requests: list, onednn: bool) -> list:
    """Feeds requests to one signature in a fresh process.

    Args:
        version: folder of the SavedModel.
        signature: its SignatureDef.
        requests: dicts of arrays by input name.
        onednn: whether oneDNN's kernels are used.

    Returns:
        For each request `(0, {output: array})` or `(error code, message)`. Fewer
        than requests if the process died.
    """
    import tensorflow as tf

    names = {key: value.name for key, value in signature.inputs.items()}
    job = {
        "library": str(pathlib.Path(tf.__file__).parent / "libtensorflow_cc.so.2"),
        "version": str(version),
        "requests": [{names[k]: v for k, v in r.items()} for r in requests],
        "outputs": {key: value.name for key, value in signature.outputs.items()},
    }
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": str(int(onednn))}
    done = subprocess.run(
        [sys.executable, __file__],
        input=pickle.dumps(job),
        capture_output=True,
        env=environment,
        timeout=120,
        check=False,
    )
    answers, rest = [], done.stdout
    while rest:
        size = int.from_bytes(rest[:8], "little")
        answers.append(pickle.loads(rest[8 : 8 + size]))
        rest = rest[8 + size :]
    return answers


class _Api:
    def __init__(self, library: str) -> None:
        self._lib = ctypes.CDLL(library)
        for name in (
            "TF_NewStatus",
            "TF_NewGraph",
            "TF_NewSessionOptions",
            "TF_LoadSessionFromSavedModel",
            "TF_GraphOperationByName",
            "TF_AllocateTensor",
            "TF_TensorData",
        ):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.TF_Message.restype = ctypes.c_char_p
        self._lib.TF_Dim.restype = ctypes.c_int64
        self._status = ctypes.c_void_p(self._lib.TF_NewStatus())
        self._graph = ctypes.c_void_p(self._lib.TF_NewGraph())
        self._session = ctypes.c_void_p()

    def _error(self) -> tuple[int, str] | None:
        code = self._lib.TF_GetCode(self._status)
        return (code, self._lib.TF_Message(self._status).decode()) if code else None

    def load(self, version: str) -> None:
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            self._lib.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self._lib.TF_NewSessionOptions()),
                None,
                version.encode(),
                tags,
                1,
                self._graph,
                None,
                self._status,
            )
        )
        if self._error():
            raise RuntimeError(self._error())

    def _place(self, name: str) -> Output:
        operation, _, index = name.partition(":")
        found = self._lib.TF_GraphOperationByName(self._graph, operation.encode())
        return Output(found, int(index))

    def _tensor(self, array: np.ndarray):
        array = np.ascontiguousarray(array).reshape(array.shape)
        sizes = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
        tensor = self._lib.TF_AllocateTensor(
            _NUMBERS[array.dtype.name], sizes, array.ndim, ctypes.c_size_t(array.nbytes)
        )
        data = self._lib.TF_TensorData(ctypes.c_void_p(tensor))
        ctypes.memmove(data, array.tobytes(), array.nbytes)
        return tensor

    def _array(self, tensor: int) -> np.ndarray:
        pointer = ctypes.c_void_p(tensor)
        shape = [
            self._lib.TF_Dim(pointer, i) for i in range(self._lib.TF_NumDims(pointer))
        ]
        dtype = np.dtype(_NAMES[self._lib.TF_TensorType(pointer)])
        size = int(np.prod(shape)) * dtype.itemsize
        content = ctypes.string_at(self._lib.TF_TensorData(pointer), size)
        return np.frombuffer(content, dtype).reshape(shape)

    def answer(self, feeds: dict[str, np.ndarray], fetches: dict[str, str]) -> tuple:
        places = [self._place(name) for name in feeds]
        wanted = [self._place(name) for name in fetches.values()]
        values = (ctypes.c_void_p * len(wanted))()
        self._lib.TF_SessionRun(
            self._session,
            None,
            (Output * len(places))(*places),
            (ctypes.c_void_p * len(places))(*map(self._tensor, feeds.values())),
            len(places),
            (Output * len(wanted))(*wanted),
            values,
            len(wanted),
            None,
            0,
            None,
            self._status,
        )
        error = self._error()
        if error:
            return error
        return 0, dict(zip(fetches, map(self._array, values), strict=True))


def _main() -> None:
    job = pickle.load(sys.stdin.buffer)
    api = _Api(job["library"])
    api.load(job["version"])
    for request in job["requests"]:
        answer = pickle.dumps(api.answer(request, job["outputs"]))
        sys.stdout.buffer.write(len(answer).to_bytes(8, "little") + answer)
        sys.stdout.buffer.flush()
    # TensorFlow's threads need no orderly end here.
    os._exit(0)


if __name__ == "__main__":
    _main()

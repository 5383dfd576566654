"""Servers to test with: `branchy_tf.serve` in its own process, and a fake."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

MODEL = "branchy_lenet"


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Asks again and again; gives what `condition` gives once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def add_version(exported: pathlib.Path, folder: pathlib.Path, number: int) -> None:
    """Copies version 1 of `exported` as another one, whole at once."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".coming-{number}"
    shutil.copytree(exported / "1", beside)
    os.rename(beside, folder / str(number))


class ServeProcess:
    """`python -m branchy_tf.serve --backend=embedded` on any free port."""

    def __init__(
        self, base_path: pathlib.Path, log: pathlib.Path, flags: Sequence[str] = ()
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "branchy_tf.serve", "--backend=embedded",
                    f"--model_base_path={base_path}", "--port=0", *flags,
                ],
                stdout=output, stderr=output,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def address(self) -> str:
        """Where it serves, as soon as it does."""

        def found():
            assert self.alive, self.log
            return re.search(r"Serving .* on ([\d.]+:\d+)", self.log)

        return until(found, 120)[1]

    def stop(self) -> int:
        """Ends it as a container's engine does; gives its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def respond(rows: int, classes: int = 10, version: int = 1) -> Any:
    """An answer of the right form."""
    response = predict_pb2.PredictResponse()
    response.model_spec.version.value = version
    for name, value in {
        "probabilities": np.full((rows, classes), 1 / classes, np.float32),
        "exit": np.zeros(rows, np.int32),
        "score": np.zeros(rows, np.float32),
    }.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return response


class FakeServer(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Describes a model and answers as a test wants.

    Attributes:
        inputs: `{name: (dtype, shape)}` of the model, less thresholds.
        version: the version it claims to have loaded.
        state: of that version.
        answer: called with a PredictRequest and its context.
        requests: the PredictRequests that came.
        status_calls: how often its model's status was asked for.
        over: set when the test is, for answers that wait.
    """

    def __init__(self) -> None:
        self.inputs: dict = {"images": (tf.uint8, [None, 28, 28, 1])}
        self.version = 1
        self.state = 30
        self.answer: Callable = lambda request, _: respond(
            request.inputs["images"].tensor_shape.dim[0].size, version=self.version
        )
        self.requests: list = []
        self.status_calls = 0
        self.over = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            self, self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self._server.stop(0).wait()

    def Predict(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return self.answer(request, context)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        served = get_model_metadata_pb2.SignatureDefMap()
        described = served.signature_def["early_exit"].inputs
        for name, (dtype, shape) in (
            self.inputs | {"thresholds": (tf.float32, [None, 1])}
        ).items():
            described[name].dtype = dtype.as_datatype_enum
            described[name].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.version
        response.metadata["signature_def"].Pack(served)
        return response

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        self.status_calls += 1
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=self.version, state=self.state)
        return response

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

import commands
import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import backends

MODEL = "branchy_lenet"


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Polls `condition` and returns its value once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
    return found


def failure(call: Callable, *arguments: Any, **keywords: Any) -> tuple[str, float]:
    """`(status, seconds)` of a failing call."""
    start = time.monotonic()
    with pytest.raises(ServerError) as caught:
        call(*arguments, **keywords)
    assert str(caught.value).startswith(caught.value.code)
    assert "\n" not in str(caught.value)
    return caught.value.code, time.monotonic() - start


def assert_same(answer: Any, expected: Any) -> None:
    np.testing.assert_array_equal(answer.exits, expected.exits)
    np.testing.assert_array_equal(answer.labels, expected.labels)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_ipv6() -> bool:
    """Whether this machine has the address ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def add_version(exported: pathlib.Path, folder: pathlib.Path, number: int) -> None:
    """Copies version 1 of `exported` to another version atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".coming-{number}"
    shutil.copytree(exported / "1", beside)
    os.rename(beside, folder / str(number))


def skip_without(backend: str) -> None:
    """Skips a test with a reason if this machine lacks the backend."""
    try:
        backends.choose(backend)
    except BranchyError as error:
        pytest.skip(str(error))


class ServeProcess:
    """`python -m branchy_tf.serve` on any free port.

    Args:
        base_path: folder of a model; None: `flags` name what to serve.
        log: where its output goes.
        flags: more flags.
        backend: what serves.
        forked: the embedded server is forked, which is faster to start; otherwise it is
            a Python of its own, with this process's environment.
        at: begins the command line, e.g. of another network namespace.
    """

    def __init__(
        self,
        base_path: pathlib.Path | None,
        log: pathlib.Path,
        flags: Sequence[str] = (),
        backend: str = backends.EMBEDDED,
        forked: bool = True,
        at: Sequence[str] = (),
    ) -> None:
        self._log = log
        # The others cannot choose a port themselves.
        self._port = 0 if backend == backends.EMBEDDED else free_port()
        model = [] if base_path is None else [f"--model_base_path={base_path}"]
        given = [f"--backend={backend}", *model, f"--port={self._port}", *flags]
        self.process: commands.Forked | subprocess.Popen
        if forked and not at and backend == backends.EMBEDDED:
            self.process = commands.Forked("serve", given, log)
            return
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*at, sys.executable, "-m", "branchy_tf.serve", *given],
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
        """Its address, once it serves."""

        def found():
            assert self.alive, self.log
            return re.search(r"Serving .* on ([\d.]+:\d+)", self.log)

        if not self._port:
            return until(found, 120)[1]
        address = f"127.0.0.1:{self._port}"
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(120)
        return address

    def stop(self) -> int:
        """Stops it as a container engine does; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def respond(rows: int, classes: int = 10, version: int = 1, scores: Any = None) -> Any:
    """A valid answer; `scores` are 0 by default."""
    return _response(
        version,
        {
            "probabilities": np.full((rows, classes), 1 / classes, np.float32),
            "exit": np.zeros(rows, np.int32),
            "score": np.zeros(rows, np.float32) if scores is None else scores,
        },
    )


def respond_all_exits(
    rows: int, exits: int = 2, classes: int = 10, version: int = 1
) -> Any:
    """A valid answer of `all_exits`."""
    return _response(
        version,
        {
            "probabilities": np.full((rows, exits, classes), 1 / classes, np.float32),
            "scores": np.zeros((rows, exits), np.float32),
        },
    )


def _response(version: int, outputs: dict) -> Any:
    response = predict_pb2.PredictResponse()
    response.model_spec.version.value = version
    for name, value in outputs.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return response


def rows_of(request: Any) -> int:
    return next(iter(request.inputs.values())).tensor_shape.dim[0].size


def first_pixels(request: Any) -> np.ndarray:
    """The first pixel of every image, float32, which identifies rows."""
    images = tf.make_ndarray(request.inputs["images"])
    return images.reshape(len(images), -1)[:, 0].astype(np.float32)


class FakeServer(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Describes a model and answers as a test specifies.

    Args:
        port: to listen on; 0: any free one.
        credentials: of grpc.ssl_server_credentials; default: no TLS.
        listen: where to, instead of a port, e.g. unix:PATH.

    Attributes:
        inputs: `{name: (dtype, shape)}` of the model, less thresholds.
        exits: of the model.
        signatures: their names.
        version: the version it claims to have loaded.
        state: of that version.
        labels: `{label: version}` that it knows; None: any one is overlooked.
        answer: called with a PredictRequest and its context.
        requests: the PredictRequests that came.
        metadata_calls: how often its model's signatures were asked for.
        status_calls: how often its model's status was asked for.
        over: set when the test is, for answers that wait.
    """

    def __init__(
        self, port: int = 0, credentials: Any = None, listen: str | None = None
    ) -> None:
        self.inputs: dict = {"images": (tf.uint8, [None, 28, 28, 1])}
        self.exits = 2
        self.signatures = ["early_exit", "serving_default", "all_exits"]
        self.version = 1
        self.state = 30
        self.labels: dict[str, int] | None = None
        self.answer: Callable = lambda request, _: (
            respond_all_exits(rows_of(request), self.exits, version=self.version)
            if request.model_spec.signature_name == "all_exits"
            else respond(rows_of(request), version=self.version)
        )
        self.requests: list = []
        self.metadata_calls = 0
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
        where = listen or f"127.0.0.1:{port}"
        self.port = (
            self._server.add_insecure_port(where)
            if credentials is None
            else self._server.add_secure_port(where, credentials)
        )
        self.address = listen or f"127.0.0.1:{self.port}"

    def fail(self, times: int, code: str = "UNAVAILABLE") -> None:
        """Refuses the next requests, then answers again."""
        answer, first = self.answer, len(self.requests)

        def refuse(request: Any, context: Any) -> Any:
            if len(self.requests) <= first + times:
                context.abort(grpc.StatusCode[code], "two\nlines")
            return answer(request, context)

        self.answer = refuse

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
        self.metadata_calls += 1
        label = request.model_spec.version_label
        if label and self.labels is not None and label not in self.labels:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Unrecognized servable version label: {label}",
            )
        served = get_model_metadata_pb2.SignatureDefMap()
        for name in self.signatures:
            described = served.signature_def[name].inputs
            for key, (dtype, shape) in (
                self.inputs | {"thresholds": (tf.float32, [None, self.exits - 1])}
            ).items():
                described[key].dtype = dtype.as_datatype_enum
                described[key].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = (
            self.labels[label] if label and self.labels else self.version
        )
        response.metadata["signature_def"].Pack(served)
        return response

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        self.status_calls += 1
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=self.version, state=self.state)
        return response

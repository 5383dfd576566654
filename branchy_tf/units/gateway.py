"""The gateway: serves a cascade over gRPC as if it were one model of TF Serving.

It speaks PredictionService (Predict, GetModelMetadata), ModelService.GetModelStatus and
the gRPC health service. It keeps no state, so any number of gateways can serve one
cascade. Imports no TensorFlow unless a unit runs in its process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import numpy as np
from absl import logging
from google.protobuf import struct_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError, ServerError, first_line
from branchy_tf.results import Predictions
from branchy_tf.serving import addresses, wire
from branchy_tf.serving.messages import CALIBRATED, DEGRADED, EARLY_EXIT, UNITS
from branchy_tf.units.metrics import CascadeMetrics
from branchy_tf.units.network import Model, Network
from branchy_tf.units.running import RunningCascade

# Seconds for a request that comes without a deadline.
_DEFAULT_SECONDS = 60.0
# Requests beyond that are refused before they are read.
_MOST_REQUESTS = 1024
_GRACE_SECONDS = 30.0
_READY_SECONDS = 0.1
_LOADING = 20  # ModelVersionStatus.State
_THRESHOLDS = "thresholds"


class Gateway:
    """Serves a cascade.yaml; create and use it in one event loop.

    Args:
        config: path of the cascade.yaml.
        port: to listen on; 0 picks a free one.
        host: address to listen on.
        credentials: of `grpc.ssl_server_credentials`; default: no TLS.
        metrics: of the cascade; default: its own.

    Attributes:
        port: the actual port.
        metrics: the metrics.

    Raises:
        BranchyError: the file is invalid, or the port is in use.

    Example:

    ```python
    gateway = Gateway("exports/cascade.yaml", port=8500)
    await gateway.start()
    await gateway.stop()
    ```
    """

    def __init__(
        self,
        config: files.Path,
        port: int = 8500,
        host: str = "127.0.0.1",
        credentials: grpc.ServerCredentials | None = None,
        metrics: CascadeMetrics | None = None,
    ) -> None:
        self.metrics = CascadeMetrics() if metrics is None else metrics
        self._running = RunningCascade(config, self.metrics)
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=_MOST_REQUESTS,
            options=[
                # Otherwise a second server could silently share the port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self.port = _listen(self._server, addresses.join(host, port), credentials)
        self._health = health.aio.HealthServicer()
        self._watching: asyncio.Task | None = None
        service = _Service(self._running, self.metrics)
        self._server.add_generic_rpc_handlers(service.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> None:
        """Opens the units and starts to serve; requests wait until all are reached.

        Raises:
            BranchyError: units do not fit, or one in this process does not load.
        """
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._running.start()
        await self._server.start()
        self._watching = asyncio.ensure_future(self._report_health())

    async def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Refuses new requests, waits for pending ones, closes the units.

        Args:
            grace: seconds until pending requests fail.
        """
        if self._watching is not None:
            self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        await self._running.stop()

    async def _report_health(self) -> None:
        while not self._running.is_ready:
            await asyncio.sleep(_READY_SECONDS)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)


class _Service:
    """The methods of the gRPC services, from bytes to bytes."""

    def __init__(self, running: RunningCascade, metrics: CascadeMetrics) -> None:
        self._running = running
        self._metrics = metrics

    def handlers(self) -> tuple[Any, ...]:
        """The handlers of all services."""
        services = {
            "tensorflow.serving.PredictionService": {
                "Predict": self._predict,
                "GetModelMetadata": self._metadata,
            },
            "tensorflow.serving.ModelService": {"GetModelStatus": self._status},
        }
        return tuple(
            grpc.method_handlers_generic_handler(
                service,
                {
                    name: grpc.unary_unary_rpc_method_handler(_answering(method))
                    for name, method in methods.items()
                },
            )
            for service, methods in services.items()
        )

    async def _predict(self, data: bytes, deadline: float) -> bytes:
        name, code = "", "OK"
        try:
            request = _parse(wire.PredictRequest, data)
            network = await self._running.network(deadline)
            model = _model_of(network, request.model_spec)
            name = model.name
            return await self._answer(network, model, request, deadline)
        except ServerError as error:
            code = error.code
            raise
        except BranchyError:
            code = "INVALID_ARGUMENT"
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            # Names of unknown models would create unlimited series.
            self._metrics.count_request(name, code)

    async def _answer(
        self, network: Network, model: Model, request: Any, deadline: float
    ) -> bytes:
        signature = request.model_spec.signature_name or CALIBRATED
        if signature not in (CALIBRATED, EARLY_EXIT):
            raise ServerError(
                "FAILED_PRECONDITION",
                f'Serving signature key "{signature}" not found: a cascade has '
                f"{EARLY_EXIT} and {CALIBRATED}.",
            )
        arrays = _arrays(request.inputs)
        limits = None
        if signature == EARLY_EXIT:
            limits = arrays.pop(_THRESHOLDS, None)
        rows = _check(arrays, model.inputs)
        if limits is not None:
            _check_thresholds(limits, model, rows)
        if rows:
            answer = await network.answer(
                model.name, arrays, limits, deadline, _version_of(request.model_spec)
            )
        else:
            answer = _nothing(model)
        response = wire.PredictResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = answer.model_version or 0
        response.model_spec.signature_name = signature
        outputs = {
            "probabilities": answer.probabilities,
            "exit": answer.exits,
            "score": answer.scores,
            DEGRADED: np.asarray(answer.degraded),
        }
        for output in request.output_filter or outputs:
            if output not in outputs:
                raise BranchyError(
                    f"output tensor alias not found in signature: {output}. Known: "
                    f"{', '.join(outputs)}."
                )
            wire.fill(response.outputs[output], outputs[output])
        return response.SerializeToString()

    async def _metadata(self, data: bytes, deadline: float) -> bytes:
        request = _parse(wire.GetModelMetadataRequest, data)
        if list(request.metadata_field) != ["signature_def"]:
            raise BranchyError("`metadata_field` must be signature_def.")
        network = await self._running.network(deadline)
        model = _model_of(network, request.model_spec)
        _check_version(model, request.model_spec)
        signatures = wire.SignatureDefMap()
        for name in (CALIBRATED, EARLY_EXIT):
            definition = signatures.signature_def[name]
            definition.method_name = "tensorflow/serving/predict"
            for key, spec in model.inputs.items():
                _describe(definition.inputs[key], spec.shape, spec.dtype)
            if name == EARLY_EXIT:
                limits = (None, model.exits - 1)
                _describe(definition.inputs[_THRESHOLDS], limits, np.float32)
                wire.fill(definition.defaults[_THRESHOLDS], model.thresholds[None])
            for key, shape, dtype in (
                ("probabilities", (None, model.classes), np.float32),
                ("exit", (None,), np.int32),
                ("score", (None,), np.float32),
                (DEGRADED, (None,), np.bool_),
            ):
                _describe(definition.outputs[key], shape, dtype)
        response = wire.GetModelMetadataResponse()
        response.model_spec.name = model.name
        response.model_spec.version.value = model.version
        _pack(response.metadata["signature_def"], signatures)
        by_exit = struct_pb2.ListValue()
        by_exit.extend(model.units)
        _pack(response.metadata[UNITS], by_exit)
        return response.SerializeToString()

    async def _status(self, data: bytes, deadline: float) -> bytes:
        request = _parse(wire.GetModelStatusRequest, data)
        response = wire.GetModelStatusResponse()
        if not self._running.is_ready:
            response.model_version_status.add(version=0, state=_LOADING)
            return response.SerializeToString()
        network = await self._running.network(deadline)
        model = _model_of(network, request.model_spec)
        _check_version(model, request.model_spec)
        response.model_version_status.add(version=model.version, state=wire.AVAILABLE)
        return response.SerializeToString()


def _answering(method: Callable[[bytes, float], Awaitable[bytes]]) -> Callable:
    """Turns the exceptions of a method into gRPC statuses."""

    async def answer(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        left = context.time_remaining()
        seconds = _DEFAULT_SECONDS if left is None else min(left, 10**8)
        try:
            return await method(data, time.monotonic() + seconds)
        except ServerError as error:
            code, text = grpc.StatusCode[error.code], str(error).partition(": ")[2]
        except BranchyError as error:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception as error:
            logging.exception("A request failed")
            code, text = grpc.StatusCode.INTERNAL, first_line(error)
        await context.abort(code, text[:1000])
        raise AssertionError("abort raises")

    return answer


def _parse(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except Exception as error:  # protobuf's DecodeError
        raise ServerError(
            "INTERNAL", f"The request cannot be parsed: {first_line(error)}"
        ) from None


def _model_of(network: Network, spec: Any) -> Model:
    if not spec.name:
        raise BranchyError("ModelSpec has no name specified.")
    if spec.version_label:
        raise BranchyError(
            f"Unrecognized servable version label: {spec.version_label}. Labels are for "
            "the units; cascade.yaml names them."
        )
    try:
        return network.model(spec.name)
    except BranchyError as error:
        raise ServerError(
            "NOT_FOUND", f"Servable not found for request: {error}"
        ) from None


def _version_of(spec: Any) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _check_version(model: Model, spec: Any) -> None:
    version = _version_of(spec)
    if version not in (None, model.version):
        raise ServerError(
            "NOT_FOUND",
            f"The first unit of {model.name} has version {model.version}, not {version}.",
        )


def _arrays(inputs: Any) -> dict[str, np.ndarray]:
    found = {}
    for name, proto in inputs.items():
        try:
            found[name] = wire.to_array(proto)
        except ValueError as error:
            raise BranchyError(
                f"tensor parsing error: {name}: {first_line(error)}"
            ) from None
    return found


def _check(arrays: Mapping[str, np.ndarray], specs: Mapping[str, Any]) -> int:
    """The number of rows; NaN is allowed, as in an export: such rows never exit early."""
    if set(arrays) != set(specs):
        raise BranchyError(
            f"input size does not match signature: received {', '.join(sorted(arrays))}; "
            f"expected {', '.join(specs)}."
        )
    rows = set()
    for name, spec in specs.items():
        array = arrays[name]
        fits = array.ndim == len(spec.shape) and all(
            want is None or got == want
            for got, want in zip(array.shape[1:], spec.shape[1:], strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            raise BranchyError(
                f"{name} is {array.dtype.name} {list(array.shape)}; expected {spec}."
            )
        rows.add(len(array))
    if len(rows) > 1:
        raise BranchyError(f"The inputs differ in their rows: {sorted(rows)}.")
    return rows.pop()


def _check_thresholds(limits: np.ndarray, model: Model, rows: int) -> None:
    fits = limits.ndim == 2 and limits.shape[1] == model.exits - 1
    if limits.dtype != np.float32 or not fits or len(limits) not in (1, rows):
        expected = checks.TensorSpec((None, model.exits - 1), np.float32)
        raise BranchyError(
            f"thresholds are {limits.dtype.name} {list(limits.shape)}; expected "
            f"{expected}, with 1 row or {rows}."
        )


def _nothing(model: Model) -> Predictions:
    return Predictions(
        np.zeros((0, model.classes), np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        model.version,
        np.zeros(0, bool),
    )


def _pack(packed: Any, message: Any) -> None:
    """Writes a message into an empty Any."""
    packed.type_url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
    packed.value = message.SerializeToString()


def _describe(info: Any, shape: tuple[int | None, ...], dtype: Any) -> None:
    """Writes a shape and dtype into an empty TensorInfo."""
    info.dtype = wire.number_of(dtype)
    for side in shape:
        info.tensor_shape.dim.add(size=-1 if side is None else side)


def _listen(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise BranchyError(
            f"Cannot listen on {address}: it is in use, or not this machine's. Pass "
            "another --port."
        )
    return port

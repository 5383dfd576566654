"""Asks a server for early-exit answers over gRPC.

Imports numpy, grpc and protobuf, no TensorFlow. Works with TF Serving and with
the embedded server alike.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import grpc
import numpy as np

from branchy_tf import inputs, thresholds
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import Predictions
from branchy_tf.serving import wire

_SIGNATURE = "early_exit"
# Only what certainly did not reach a model is tried again.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_retries", 1),
    # gRPC alone would refuse answers over 4 MB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is noticed within a second.
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_MOST_BYTES = 2**31 - 1  # what one protobuf message can hold


@dataclasses.dataclass(frozen=True)
class _Signature:
    """What a server says of a model's early_exit signature."""

    version: int
    inputs: dict[str, inputs.Expected]
    num_exits: int


class EarlyExitClient:
    """Asks one model on one server; may be shared between threads.

    Args:
        server: "host:port" of its gRPC endpoint.
        model: name of the model.
        version: which version to ask; default: the newest.
        timeout: seconds after which a call is given up.

    Example:

    ```python
    with EarlyExitClient("localhost:8500", model="branchy_lenet") as client:
        answer = client.predict(images)                   # calibrated thresholds
        answer = client.predict(images, thresholds=[0.1])
        answer.labels, answer.exits, answer.model_version
    ```
    """

    def __init__(
        self, server: str, model: str, version: int | None = None, timeout: float = 10.0
    ) -> None:
        if not timeout > 0:
            raise BranchyError(f"`timeout` must be positive seconds. Received {timeout}.")
        self._server = server
        self._model = model
        self._version = version
        self._timeout = timeout
        self._channel = grpc.insecure_channel(server, options=_OPTIONS)
        self._signature: _Signature | None = None

    def __enter__(self) -> EarlyExitClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._channel.close()

    def predict(
        self, images: Any, thresholds: Any = None, timeout: float | None = None
    ) -> Predictions:
        """Asks for each row's answer, at the first exit that is sure enough.

        Args:
            images: [B, ...], B > 0, of the shape and dtype that the served model
                takes (zoo models: raw pixels, uint8); for several inputs a dict.
            thresholds: N-1 numbers or [B, N-1]; default: the calibrated ones that
                the model was exported with.
            timeout: seconds; default: the client's.

        Returns:
            `Predictions` of B rows.

        Raises:
            BranchyError: images or thresholds do not fit; nothing was sent.
            ServerError: no server, a refusal, or no answer in time.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        known = self._signature
        try:
            request, rows = self._request(
                images, thresholds, known or self._ask_signature(deadline)
            )
        except BranchyError:
            if known is None:
                raise
            # It may fit the version that is served by now.
            request, rows = self._request(
                images, thresholds, self._ask_signature(deadline)
            )
        response = self._call(
            wire.PREDICT, request, wire.PredictResponse, deadline - time.monotonic()
        )
        return self._predictions(response, rows)

    def describe(self, timeout: float | None = None) -> tuple[dict, int]:
        """Asks what the served model takes.

        Returns:
            `({input: inputs.Expected}, number of exits)`.

        Raises:
            BranchyError: the model is no early-exit export.
            ServerError: as for `predict`.
        """
        limit = self._timeout if timeout is None else timeout
        signature = self._ask_signature(time.monotonic() + limit)
        return dict(signature.inputs), signature.num_exits

    def wait_until_ready(self, timeout: float = 60.0) -> int:
        """Waits until the server has the model loaded.

        Returns:
            The newest version that is ready.

        Raises:
            ServerError: it is not, after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        request = wire.GetModelStatusRequest()
        self._specify(request.model_spec)
        while True:
            problem = ServerError("UNAVAILABLE", f"{self._model} is still loading.")
            try:
                left = max(end - time.monotonic(), 0.1)
                response = self._call(
                    wire.GET_MODEL_STATUS,
                    request,
                    wire.GetModelStatusResponse,
                    min(left, 2),
                )
                ready = [
                    status.version
                    for status in response.model_version_status
                    if status.state == wire.AVAILABLE
                ]
                if ready:
                    return max(ready)
            except ServerError as error:
                problem = error
            if time.monotonic() > end:
                raise problem
            time.sleep(0.05)

    def _request(
        self, images: Any, thresholds: Any, signature: _Signature
    ) -> tuple[Any, int]:
        """A PredictRequest, checked against what the model takes, and its rows."""
        arrays, rows = inputs.check(images, signature.inputs)
        if not rows:
            raise BranchyError(
                "The batch is empty; expected at least one row. Make no call where "
                "there is no image. (Some servers hang on an empty batch.)"
            )
        request = wire.PredictRequest()
        self._specify(request.model_spec)
        request.model_spec.signature_name = "serving_default"
        if thresholds is not None:
            request.model_spec.signature_name = _SIGNATURE
            arrays["thresholds"] = _rows_of_thresholds(thresholds, signature, rows)
        size = sum(array.nbytes for array in arrays.values())
        if size > _MOST_BYTES:
            raise BranchyError(
                f"The batch has {size:,} bytes; one request holds at most "
                f"{_MOST_BYTES:,}. Send fewer rows at a time."
            )
        for name, array in arrays.items():
            wire.fill(request.inputs[name], array)
        return request, rows

    def _predictions(self, response: Any, rows: int) -> Predictions:
        version = response.model_spec.version.value
        signature = self._signature  # another thread may drop it
        if signature is not None and version != signature.version:
            # Another version may take other inputs: ask before the next call.
            self._signature = None
        try:
            probabilities, exit_index, score = (
                wire.to_array(response.outputs[name])
                for name in ("probabilities", "exit", "score")
            )
            answer = Predictions(probabilities, exit_index, score, version)
            shapes_fit = answer.probabilities.ndim == 2 and {
                len(answer.probabilities),
                answer.exits.size,
                answer.scores.size,
            } == {rows}
        except ValueError:
            shapes_fit = False
        if not shapes_fit:
            raise ServerError(
                "INTERNAL",
                f"{self._server} answered {rows} rows with something else than that many "
                f"predictions. Is {self._model} an early-exit export?",
            )
        return answer

    def _ask_signature(self, deadline: float) -> _Signature:
        request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._specify(request.model_spec)
        response = self._call(
            wire.GET_MODEL_METADATA,
            request,
            wire.GetModelMetadataResponse,
            deadline - time.monotonic(),
        )
        packed = response.metadata["signature_def"].value
        served = wire.SignatureDefMap.FromString(packed).signature_def
        if _SIGNATURE not in served or "thresholds" not in served[_SIGNATURE].inputs:
            raise BranchyError(
                f"Model {self._model!r} on {self._server} has no {_SIGNATURE} signature "
                f"with thresholds; it has {', '.join(sorted(served)) or 'none'}. Ask for "
                "a model that branchy_tf.export wrote."
            )
        definition = served[_SIGNATURE]
        expected = {
            name: inputs.Expected(
                wire.shape_of(info.tensor_shape), wire.dtype_of(info.dtype)
            )
            for name, info in sorted(definition.inputs.items())
        }
        gates = expected.pop("thresholds").shape[-1] or 0
        self._signature = _Signature(
            response.model_spec.version.value, expected, gates + 1
        )
        return self._signature

    def _specify(self, spec: Any) -> None:
        spec.name = self._model
        if self._version is not None:
            spec.version.value = self._version

    def _call(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        call = self._channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return call(request, timeout=max(timeout, 1e-3))
        except grpc.RpcError as error:
            # What the server is like may have changed.
            self._signature = None
            raise self._explained(error) from None

    def _explained(self, error: Any) -> ServerError:
        code = error.code().name
        details = " ".join((error.details() or "").split())
        hints = {
            "UNAVAILABLE": f"No server answers at {self._server}; start one (python -m "
            "branchy_tf.serve) or mend host:port.",
            "DEADLINE_EXCEEDED": f"{self._server} did not answer in time; pass a longer "
            "timeout or send fewer rows.",
            "NOT_FOUND": f"{self._server} does not serve model {self._model!r}"
            + (f" version {self._version}" if self._version is not None else "")
            + "; mend the name, or wait until it is loaded.",
            "RESOURCE_EXHAUSTED": f"{self._server} has no room for the request; send "
            "fewer rows at a time, or later.",
        }
        return ServerError(
            code, f"{hints[code]} ({details})" if code in hints else details
        )


def _rows_of_thresholds(given: Any, signature: _Signature, rows: int) -> np.ndarray:
    limits = thresholds.check(given, signature.num_exits, rows)
    # A row of its own for each image: a batching server wants every input to have
    # the batch as first dimension.
    return np.broadcast_to(limits, (rows, limits.shape[1]))

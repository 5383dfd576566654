"""The gRPC services: prediction, model status."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving.embedded.requests import Refusal, read_inputs, read_outputs
from branchy_tf.serving.embedded.versions import Versions

_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


def _answering(method: Callable) -> Callable:
    """Turns refusals and the engine's errors into gRPC statuses."""

    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except Refusal as refusal:
            code, message = refusal.code, str(refusal)
        except tf.errors.OpError as error:
            code, message = _STATUS[error.error_code], error.message
        except Exception as error:
            # Never UNKNOWN with a traceback: the client gets a status to act on.
            logging.exception("%s failed", method.__name__)
            code, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        context.abort(code, message[:1000])

    return answer


class Models:
    """The one model that is served, by name."""

    def __init__(self, name: str, versions: Versions) -> None:
        self.name = name
        self.versions = versions

    @contextlib.contextmanager
    def use(self, request: Any) -> Iterator[tuple[int, SessionModel]]:
        """The version that a request's model_spec asks for.

        Raises:
            Refusal: INVALID_ARGUMENT without a model's name or with a label,
                NOT_FOUND for a model or version that is not served.
        """
        if not request.HasField("model_spec"):
            raise Refusal(_INVALID, "Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise Refusal(_INVALID, "ModelSpec has no name specified.")
        if spec.version_label:
            raise Refusal(
                _INVALID, f"Unrecognized servable version label: {spec.version_label}"
            )
        number = spec.version.value if spec.HasField("version") else None
        with self.versions.use(number) as found:
            if spec.name != self.name or found is None:
                wanted = (
                    f"Latest({spec.name})"
                    if number is None
                    else f"Specific({spec.name}, {number})"
                )
                raise Refusal(_NOT_FOUND, f"Servable not found for request: {wanted}")
            yield found


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the rest is UNIMPLEMENTED."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @_answering
    def Predict(self, request: Any) -> Any:
        with self._models.use(request) as (number, model):
            name = request.model_spec.signature_name or "serving_default"
            if name not in model.signatures:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f'Serving signature key "{name}" not found.',
                )
            signature = model.signatures[name]
            arrays = read_inputs(request, signature)
            values = model.run(name, arrays, read_outputs(request, signature))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        response.model_spec.signature_name = name
        for output, value in values.items():
            response.outputs[output].CopyFrom(tf.make_tensor_proto(value))
        return response

    @_answering
    def GetModelMetadata(self, request: Any) -> Any:
        if not request.metadata_field:
            raise Refusal(
                _INVALID,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for field in request.metadata_field:
            if field != "signature_def":
                raise Refusal(_INVALID, f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._models.use(request) as (number, model):
            for name, signature in model.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        response.metadata["signature_def"].Pack(signatures)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; reloading a config is UNIMPLEMENTED."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @_answering
    def GetModelStatus(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise Refusal(_INVALID, "Missing ModelSpec")
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self._models.versions.statuses():
            if number in (None, version.number) and spec.name == self._models.name:
                status = response.model_version_status.add(
                    version=version.number, state=version.state
                )
                if version.error:
                    status.status.error_code = tf.errors.UNKNOWN
                    status.status.error_message = version.error
        if not response.model_version_status:
            wanted = f"any versions of model {spec.name}"
            if number is not None:
                wanted = f"version {number} of model {spec.name}"
            raise Refusal(_NOT_FOUND, f"Could not find {wanted}")
        return response

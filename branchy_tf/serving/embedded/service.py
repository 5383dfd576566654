"""The gRPC services for predictions and for the state of models."""

from __future__ import annotations

import time
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from branchy_tf.serving.embedded.admission import Admission
from branchy_tf.serving.embedded.metrics import Metrics
from branchy_tf.serving.embedded.models import Models
from branchy_tf.serving.embedded.requests import (
    read_inputs,
    read_outputs,
    write_output,
)
from branchy_tf.serving.embedded.statuses import answering, invalid, status_of, unmet

# TF Serving lists this loading step among the signatures of every export.
_LOADERS_OWN = "__saved_model_init_op"


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; refuses the rest.

    Classify and Regress read tf.Examples, which no early-exit signature takes, and are
    INVALID_ARGUMENT, as in TF Serving. Other methods are UNIMPLEMENTED.

    Args:
        models: the served models.
        metrics: counts requests and exits.
        admission: limits concurrent predictions.
    """

    def __init__(self, models: Models, metrics: Metrics, admission: Admission) -> None:
        self._models = models
        self._metrics = metrics
        self._admission = admission

    @answering
    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        began, status = time.perf_counter(), "OK"
        try:
            with self._admission.turn(context):
                return self._predict(request)
        except Exception as error:
            status = status_of(error)[0].name
            raise
        finally:
            name = request.model_spec.name
            self._metrics.count_request(
                # Names of unknown models would create unlimited series.
                name if name in self._models else "",
                status,
                1e6 * (time.perf_counter() - began),
            )

    def _predict(self, request: Any) -> Any:
        spec = request.model_spec
        with self._models.use(request) as (number, model):
            signature = spec.signature_name or "serving_default"
            if signature == _LOADERS_OWN:
                raise invalid(f"{signature} has no outputs to ask for.")
            if signature not in model.signatures:
                raise unmet(f'Serving signature key "{signature}" not found.')
            definition = model.signatures[signature]
            arrays = read_inputs(request, definition)
            outputs = read_outputs(request, definition)
            values = model.run(signature, arrays)
        if "exit" in values:
            self._metrics.count_exits(spec.name, values["exit"])
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = number
        response.model_spec.signature_name = signature
        for output in outputs:
            write_output(response.outputs[output], values[output])
        return response

    @answering
    def Classify(self, request: Any, _: grpc.ServicerContext) -> Any:
        self._refuse_examples(request, "classification")

    @answering
    def Regress(self, request: Any, _: grpc.ServicerContext) -> Any:
        self._refuse_examples(request, "regression")

    def _refuse_examples(self, request: Any, task: str) -> None:
        with self._models.use(request) as (_, model):
            signature = request.model_spec.signature_name or "serving_default"
            if signature not in model.signatures:
                raise invalid(f"No signature was found with the name: {signature}")
            raise invalid(
                f"{signature} is no {task} signature: it takes "
                f"{', '.join(sorted(model.signatures[signature].inputs))}. Ask Predict."
            )

    @answering
    def GetModelMetadata(self, request: Any, _: grpc.ServicerContext) -> Any:
        if not request.metadata_field:
            raise invalid(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
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
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        models: the served models.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    @answering
    def GetModelStatus(self, request: Any, _: grpc.ServicerContext) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self._models.statuses(request):
            status = response.model_version_status.add(
                version=version.number, state=version.state
            )
            if version.error:
                status.status.error_code = tf.errors.UNKNOWN
                status.status.error_message = version.error
        return response

    @answering
    def HandleReloadConfigRequest(self, request: Any, _: grpc.ServicerContext) -> Any:
        self._models.reload(request.config)
        return model_management_pb2.ReloadConfigResponse()

"""Starts and stops the embedded server."""

from __future__ import annotations

import os
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.serving import addresses
from branchy_tf.serving.embedded.admission import Admission
from branchy_tf.serving.embedded.metrics import Metrics, MetricsServer
from branchy_tf.serving.embedded.models import Models
from branchy_tf.serving.embedded.service import ModelService, PredictionService
from branchy_tf.serving.embedded.statuses import Refusal, handlers
from branchy_tf.serving.options import ServerOptions

# Concurrent requests per core, as in TF Serving. More would only slow each other down.
RUNNING_PER_CORE = 4
# Requests that may queue; with batching also those that run, as they fill a batch.
HELD = 64
# For short work: probes and refusals.
SPARE_THREADS = 8


class EmbeddedServer:
    """Serves models over gRPC, for development and tests.

    Args:
        model_base_path: folder whose numbered folders are versions.
        model_name: the name that clients use; default: the folder's name.
        port: port to listen on; 0 picks a free one.
        **options: other options of `ServerOptions`, e.g. `host="::1"`.

    Attributes:
        port: the actual port.

    Raises:
        BranchyError: invalid options, a missing folder, or a port in use.

    Example:

    ```python
    with EmbeddedServer("exports/branchy_lenet", "branchy_lenet", port=0) as server:
        client = EarlyExitClient(f"localhost:{server.port}", model="branchy_lenet")
    ```
    """

    def __init__(
        self,
        model_base_path: files.Path,
        model_name: str | None = None,
        port: int = 8500,
        **options: Any,
    ) -> None:
        self._set_up(ServerOptions(model_base_path, model_name, port, **options))

    @classmethod
    def of(cls, options: ServerOptions) -> EmbeddedServer:
        """A server with these options, e.g. for several models."""
        server = cls.__new__(cls)
        server._set_up(options)
        return server

    def _set_up(self, options: ServerOptions) -> None:
        options.check()
        for model in options.models().model_config_list.config:
            files.path(model.base_path)  # only TF Serving reads URLs
        admission = _admission(options)
        threads = admission.places + SPARE_THREADS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="request"),
            # Beyond that grpc refuses before it reads the message, uncounted, for when
            # even refusals take all threads.
            maximum_concurrent_rpcs=threads,
            options=[
                # Otherwise a second server could silently share the port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", options.max_message_bytes or -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self.port = _listen(self._server, options)
        metrics = Metrics()
        self._http = None
        if options.rest_api_port:
            self._http = MetricsServer(
                metrics, options.host, options.rest_api_port, options.metrics_path()
            )
        self._health = health.HealthServicer()
        self._models = Models(options)
        predictions = PredictionService(self._models, metrics, admission)
        for file, servicer in (
            (prediction_service_pb2, predictions),
            (model_service_pb2, ModelService(self._models)),
        ):
            (service,) = file.DESCRIPTOR.services_by_name.values()
            self._server.add_generic_rpc_handlers((handlers(service, servicer),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def start(self) -> None:
        """Loads the models and starts to serve."""
        try:
            self._models.start()
        except Refusal as refusal:
            raise BranchyError(str(refusal)) from None
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        if self._http is not None:
            self._http.start()
        self._server.start()

    def stop(self, grace: float = 30.0) -> None:
        """Refuses new requests, waits for pending ones, frees the models.

        Args:
            grace: seconds until pending requests fail.
        """
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        if self._http is not None:
            self._http.stop()
        self._models.stop()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _admission(options: ServerOptions) -> Admission:
    if options.grpc_max_threads:
        return Admission(options.grpc_max_threads, options.grpc_max_threads)
    if options.enable_batching:
        return Admission(HELD, HELD)
    return Admission(RUNNING_PER_CORE * (os.cpu_count() or 1), HELD)


def _listen(server: grpc.Server, options: ServerOptions) -> int:
    """Binds the port, with TLS if the options say so."""
    address = addresses.join(options.host, options.port)
    ssl = options.ssl()
    try:
        if ssl is None:
            port = server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials(
                [(ssl.server_key.encode(), ssl.server_cert.encode())],
                root_certificates=ssl.custom_ca.encode() or None,
                require_client_auth=ssl.client_verify,
            )
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        reasons = "it is in use, or not this machine's"
        if ssl is not None:
            reasons += (
                f", or {options.ssl_config_file} holds no valid key and certificate"
            )
        raise BranchyError(f"Cannot listen on {address}: {reasons}. Pass another --port.")
    return port

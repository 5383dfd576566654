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

# Requests that run at a time for each core, as TF Serving has it. More only take turns
# with each other, and all are answered late.
RUNNING_PER_CORE = 4
# With batching those at a time, because a batch is made of requests that run; and those
# that wait for their turn, with or without.
HELD = 64
# For what is short: probes, and telling requests that there is no place for them.
SPARE_THREADS = 8


class EmbeddedServer:
    """Serves models over gRPC, for development and tests.

    Args:
        model_base_path: folder whose numbered folders are versions.
        model_name: what clients ask for; default: the folder's name.
        port: to listen on; 0: any free one.
        **options: others of `ServerOptions`, e.g. `host="::1"`.

    Attributes:
        port: the port that it listens on.

    Raises:
        BranchyError: the options do not fit, a folder is not there, or a port is in
            use.

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
        """A server of these options, e.g. of several models."""
        server = cls.__new__(cls)
        server._set_up(options)
        return server

    def _set_up(self, options: ServerOptions) -> None:
        options.check()
        for model in options.models().model_config_list.config:
            files.path(model.base_path)  # TF Serving alone reads URLs
        admission = _admission(options)
        threads = admission.places + SPARE_THREADS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="request"),
            # Beyond, grpc refuses by itself, before it has read a message: cheaper, when
            # even refusing takes all threads, but not counted.
            maximum_concurrent_rpcs=threads,
            options=[
                # Otherwise a second server would silently share the port.
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
        """Loads the models and begins to answer."""
        try:
            self._models.start()
        except Refusal as refusal:
            raise BranchyError(str(refusal)) from None
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        if self._http is not None:
            self._http.start()
        self._server.start()

    def stop(self, grace: float = 30.0) -> None:
        """Takes no more requests, waits for those under way, frees the models.

        Args:
            grace: seconds to wait for them; then they fail.
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
    """Binds the port, over TLS where the options say so."""
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

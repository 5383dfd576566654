"""Starts and stops the embedded server."""

from __future__ import annotations

import pathlib
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.serving.embedded.service import Models, ModelService, PredictionService
from branchy_tf.serving.embedded.versions import Versions


class EmbeddedServer:
    """Serves the newest version in a folder over gRPC.

    For development and tests. Each request takes a thread of its own, and the
    engine its threads below that.

    Args:
        base_path: folder whose numbered folders are versions.
        model_name: what clients ask for.
        port: to listen on; 0: any free one.
        host: address to listen on; there is no authentication.
        threads: requests at a time; more wait.
        poll_seconds: how often to look for new versions.

    Attributes:
        port: the port that it listens on.

    Raises:
        BranchyError: the folder is not there, or the port is in use.

    Example:

    ```python
    with EmbeddedServer("exports/branchy_lenet", "branchy_lenet", port=0) as server:
        client = EarlyExitClient(f"localhost:{server.port}", model="branchy_lenet")
    ```
    """

    def __init__(
        self,
        base_path: files.Path,
        model_name: str,
        port: int = 8500,
        host: str = "127.0.0.1",
        threads: int = 16,
        poll_seconds: float = 1.0,
    ) -> None:
        folder = pathlib.Path(base_path).expanduser()
        if not folder.is_dir():
            raise BranchyError(
                f"There is no folder {folder}. Pass the folder that holds a model's "
                "versions: <export_dir>/<model_name>."
            )
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="request"),
            options=[
                # Otherwise a second server would silently share the port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise BranchyError(
                f"Cannot listen on {host}:{port}: it is in use, or not this machine's. "
                "Pass another --port."
            )
        self._health = health.HealthServicer()
        self._versions = Versions(folder, poll_seconds)
        models = Models(model_name, self._versions)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(models), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(models), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def start(self) -> None:
        """Loads the newest version and begins to answer."""
        self._versions.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._server.start()

    def stop(self, grace: float = 5.0) -> None:
        """Takes no more requests, waits for those under way, frees the model.

        Args:
            grace: seconds to wait for them.
        """
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._versions.stop()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

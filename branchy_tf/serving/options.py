"""The options of a server, the same for all backends. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import Any

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.serving import addresses, configs

# {option: (smallest, largest)}.
WHOLE_NUMBERS = {
    "port": (0, 65535),
    "rest_api_port": (0, 65535),
    "tensorflow_intra_op_parallelism": (0, 2**31 - 1),
    "tensorflow_inter_op_parallelism": (-1, 2**31 - 1),
    "grpc_max_threads": (0, 2**31 - 1),
    "max_message_bytes": (0, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What to serve and how, under the names of tensorflow_model_server's flags.

    Attributes:
        model_base_path: folder with one model's numbered version folders.
        model_name: the name that clients use; default: the folder's name.
        port: gRPC port; 0 picks a free one (embedded server only).
        host: address that the embedded server and the container listen on, such as
            127.0.0.1, 0.0.0.0, ::1 or ::.
        model_config_file: a ModelServerConfig of several models, instead of
            `model_base_path` and `model_name`.
        model_config_file_poll_wait_seconds: seconds between reads of it; 0: read once.
        file_system_poll_wait_seconds: seconds between looks for versions; 0: look once.
        allow_version_labels_for_unavailable_models: whether a new label may name a
            version that is not loaded yet.
        rest_api_port: port of the metrics, and of REST where available; 0: none.
        monitoring_config_file: a MonitoringConfig.
        enable_batching: whether to merge requests into batches.
        batching_parameters_file: BatchingParameters for `enable_batching`.
        ssl_config_file: an SSLConfig for gRPC.
        tensorflow_intra_op_parallelism: threads per operation; 0: automatic.
        tensorflow_inter_op_parallelism: parallel operations; -1: each request runs in
            its own thread; 0: automatic, one per core in TF Serving and -1 in the
            embedded server.
        grpc_max_threads: concurrent requests; 0: the server's default.
        max_message_bytes: largest request of the embedded server; 0: 2 GiB, protobuf's
            limit.

    Example:

    ```python
    options = ServerOptions("exports/branchy_lenet", port=8500)
    options.check()
    ```
    """

    model_base_path: files.Path | None = None
    model_name: str | None = None
    port: int = 8500
    host: str = "127.0.0.1"
    model_config_file: files.Path | None = None
    model_config_file_poll_wait_seconds: float = 0
    file_system_poll_wait_seconds: float = 1
    allow_version_labels_for_unavailable_models: bool = False
    rest_api_port: int = 0
    monitoring_config_file: files.Path | None = None
    enable_batching: bool = False
    batching_parameters_file: files.Path | None = None
    ssl_config_file: files.Path | None = None
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0
    grpc_max_threads: int = 0
    max_message_bytes: int = 0

    def __post_init__(self) -> None:
        """Raises `BranchyError` for values of a wrong type or out of range."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in WHOLE_NUMBERS:
                value = checks.whole_number(field.name, value, *WHOLE_NUMBERS[field.name])
            elif field.name.endswith("_seconds"):
                value = checks.real_number(field.name, value, at_least=0)
            elif isinstance(field.default, bool):
                value = checks.switch(field.name, value)
            elif field.name == "host":
                value = addresses.check_host(value)
            elif value is not None and field.name == "model_name":
                value = checks.text(field.name, value)
            elif value is not None and not (isinstance(value, str) and value == ""):
                value = checks.path(field.name, value)
            # Frozen, so this is the way to convert a NumPy number.
            object.__setattr__(self, field.name, value)

    def models(self) -> Any:
        """The ModelServerConfig: the file's, or one with a single model.

        Raises:
            BranchyError: the file is missing or invalid.
        """
        if self.model_config_file:
            return configs.read(self.model_config_file, "ModelServerConfig")
        config = configs.ModelServerConfig()
        base = self.model_base_path or ""
        # TF Serving reads s3:// and gs:// itself.
        folder = os.fspath(base if files.is_url(base) else files.absolute(base))
        config.model_config_list.config.add(
            name=self.model_name or os.path.basename(folder.rstrip("/")),
            base_path=folder,
            model_platform="tensorflow",
        )
        return config

    def batching(self) -> Any:
        """The BatchingParameters, or None where batching is off."""
        if not self.enable_batching:
            return None
        if self.batching_parameters_file:
            return configs.read(self.batching_parameters_file, "BatchingParameters")
        return configs.BatchingParameters()

    def ssl(self) -> Any:
        """The SSLConfig, or None."""
        if not self.ssl_config_file:
            return None
        return configs.read(self.ssl_config_file, "SSLConfig")

    def metrics_path(self) -> str | None:
        """The URL path of the metrics, or None."""
        if not self.monitoring_config_file:
            return None
        config = configs.read(self.monitoring_config_file, "MonitoringConfig")
        if not config.prometheus_config.enable:
            return None
        return config.prometheus_config.path or configs.METRICS_PATH

    def check(self) -> None:
        """Checks what every backend needs, before anything starts.

        Raises:
            BranchyError: contradictory options, a missing or invalid file, a folder
                without a model, a port in use.
        """
        self._check_flags()
        for model in self.models().model_config_list.config:
            _check_folder(model)
        self.batching()
        self.ssl()
        self.metrics_path()
        _check_port("port", self.host, self.port)
        if self.rest_api_port:
            _check_port("rest_api_port", self.host, self.rest_api_port)

    def _check_flags(self) -> None:
        if self.model_config_file and (self.model_base_path or self.model_name):
            raise BranchyError(
                "--model_config_file names models and their folders itself; pass it "
                "without --model_base_path and --model_name."
            )
        if not self.model_config_file and not self.model_base_path:
            raise BranchyError(
                "--model_base_path is missing: the folder that holds a model's versions. "
                "(Or --model_config_file, for several models.)"
            )
        for flag, needs in {
            "batching_parameters_file": "enable_batching",
            "model_config_file_poll_wait_seconds": "model_config_file",
            "monitoring_config_file": "rest_api_port",
        }.items():
            if getattr(self, flag) and not getattr(self, needs):
                raise BranchyError(
                    f"--{flag} has no effect without --{needs}: pass both."
                )
        if self.rest_api_port and self.rest_api_port == self.port:
            raise BranchyError(
                f"--port and --rest_api_port are both {self.port}; pass different ones."
            )
        labelled = [
            model.name
            for model in self.models().model_config_list.config
            if model.version_labels
        ]
        if labelled and not self.allow_version_labels_for_unavailable_models:
            raise BranchyError(
                f"{self.model_config_file} gives {labelled[0]} version_labels, but no "
                "version is loaded at the start. Pass "
                "--allow_version_labels_for_unavailable_models."
            )


def _check_folder(model: Any) -> None:
    if files.is_url(model.base_path):
        return
    folder = files.path(model.base_path)
    if (folder / "saved_model.pb").is_file():
        raise BranchyError(
            f"{folder} is a version; expected the folder of a model's versions. Pass its "
            f"parent: {folder.parent}."
        )
    if folder.exists() and not folder.is_dir():
        raise BranchyError(
            f"{folder} is a file; expected the folder that holds the versions of model "
            f"{model.name}: <export_dir>/<model_name>."
        )
    if not folder.is_dir():
        raise BranchyError(
            f"There is no folder {folder} for model {model.name}. Pass the folder that "
            "holds a model's versions: <export_dir>/<model_name>."
        )
    inside = [child for child in sorted(folder.iterdir()) if files.version_folders(child)]
    if inside and not files.version_folders(folder):
        raise BranchyError(
            f"{folder} holds no versions, but {inside[0]} does. Pass the folder of one "
            f"model: --model_base_path={inside[0]}."
        )


def _check_port(flag: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # TF Serving listens on every interface.
            probe.bind(("", port))
        except OSError as error:
            raise BranchyError(
                f"Cannot listen on port {port}: {error.strerror}. Pass another --{flag}."
            ) from None

"""TF Serving's config files: text protos, read without TensorFlow."""

from __future__ import annotations

import pathlib
from typing import Any

from google.protobuf import text_format

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.serving import wire

# TF Serving's defaults.
MAX_BATCH_SIZE, MAX_ENQUEUED_BATCHES = 1000, 10
METRICS_PATH = "/monitoring/prometheus/metrics"

ModelServerConfig = wire.message_class("tensorflow.serving.ModelServerConfig")
BatchingParameters = wire.message_class("tensorflow.serving.BatchingParameters")


def read(path: files.Path, kind: str) -> Any:
    """Reads and checks a config file.

    Args:
        path: a text proto.
        kind: ModelServerConfig, BatchingParameters, SSLConfig or MonitoringConfig.

    Raises:
        BranchyError: the file is missing, is not such a text proto, or has values that
            servers reject.

    Example:

    ```python
    configs.read("batching.config", "BatchingParameters").max_batch_size.value
    ```
    """
    path = files.path(path)
    message = wire.message_class(f"tensorflow.serving.{kind}")()
    with files.reading(path, f"a {kind}", "Write it as a text proto."):
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    try:
        _CHECKS[kind](message)
    except BranchyError as error:
        raise BranchyError(f"{path}: {error}") from None
    return message


def check_models(config: Any) -> None:
    """Raises `BranchyError` for a ModelServerConfig that cannot be served."""
    if config.HasField("custom_model_config"):
        raise BranchyError(
            "custom_model_config is not supported; expected a model_config_list."
        )
    names = set()
    for model in config.model_config_list.config:
        if not model.name:
            raise BranchyError("A model has no name. Give each config { } a name.")
        if model.name in names:
            raise BranchyError(
                f"Illegal to list model {model.name} multiple times in config list."
            )
        names.add(model.name)
        if model.model_platform != "tensorflow":
            raise BranchyError(
                f"Model {model.name} has model_platform {model.model_platform!r}; "
                'expected model_platform: "tensorflow".'
            )
        there = model.base_path
        if not (files.is_url(there) or pathlib.PurePosixPath(there).is_absolute()):
            raise BranchyError(
                f"Expected model {model.name} to have an absolute path; got base_path "
                f"{model.base_path!r}."
            )
        _check_policy(model)


def _check_policy(model: Any) -> None:
    policy = model.model_version_policy
    chosen = [field.name for field, _ in policy.ListFields()]
    if len(chosen) > 1:
        raise BranchyError(
            f"Model {model.name} has the version policies {' and '.join(chosen)}; "
            "expected one of latest, all and specific."
        )
    if policy.HasField("specific") and not policy.specific.versions:
        raise BranchyError(
            f"Model {model.name} has a specific version policy that names no version. "
            "Write specific { versions: 1 }."
        )


def _check_batching(parameters: Any) -> None:
    for name, least in {
        "max_batch_size": 1,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 1,
        "num_batch_threads": 1,
    }.items():
        value = getattr(parameters, name).value
        if parameters.HasField(name) and value < least:
            raise BranchyError(f"{name} must be at least {least}. Received {value}.")
    sizes = list(parameters.allowed_batch_sizes)
    most = whole(parameters, "max_batch_size", MAX_BATCH_SIZE)
    if sizes and (sizes != sorted({*sizes}) or sizes[0] < 1 or sizes[-1] != most):
        raise BranchyError(
            f"allowed_batch_sizes must rise and end with max_batch_size, {most}. "
            f"Received {sizes}."
        )


def whole(parameters: Any, name: str, default: int) -> int:
    """A number in BatchingParameters, `default` if it is unset."""
    return getattr(parameters, name).value if parameters.HasField(name) else default


def _check_ssl(config: Any) -> None:
    for name in ("server_key", "server_cert"):
        if "-----BEGIN " not in getattr(config, name):
            raise BranchyError(
                f"{name} must hold the PEM text itself, -----BEGIN ... and all, not a "
                "path."
            )
    if config.client_verify and not config.custom_ca:
        raise BranchyError(
            "client_verify requires a certificate from each client, but no custom_ca to "
            "verify it with. Add custom_ca, as PEM text."
        )


def _check_monitoring(config: Any) -> None:
    path = config.prometheus_config.path
    if path and not path.startswith("/"):
        raise BranchyError(f"path must begin with a slash. Received {path!r}.")


_CHECKS = {
    "ModelServerConfig": check_models,
    "BatchingParameters": _check_batching,
    "SSLConfig": _check_ssl,
    "MonitoringConfig": _check_monitoring,
}

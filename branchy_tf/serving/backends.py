"""The backends: TF Serving, its container, or the embedded server."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import shutil
import subprocess
from collections.abc import Callable

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.serving import addresses
from branchy_tf.serving.options import ServerOptions

TF_SERVING, DOCKER, EMBEDDED = "tensorflow_model_server", "docker", "embedded"
BACKENDS = ("auto", TF_SERVING, DOCKER, EMBEDDED)

_FILES = [
    field.name
    for field in dataclasses.fields(ServerOptions)
    if field.name.endswith("_file")
]
# Options without a flag of the same name.
_ELSEWHERE = {
    "model_base_path", "model_name", "port", "rest_api_port", "host", "max_message_bytes"
}  # fmt: skip


def choose(backend: str) -> str:
    """Resolves `auto`: TF Serving on PATH, else a Docker engine, else embedded.

    Raises:
        BranchyError: the backend is not available on this machine.
    """
    if backend in (TF_SERVING, "auto") and shutil.which(TF_SERVING):
        return TF_SERVING
    if backend in (DOCKER, "auto") and _docker_answers():
        return DOCKER
    if backend in (EMBEDDED, "auto"):
        return EMBEDDED
    missing = (
        "there is no tensorflow_model_server on PATH"
        if backend == TF_SERVING
        else "no docker engine answers (docker info)"
    )
    raise BranchyError(
        f"--backend={backend}: {missing}. Install it, or pass --backend=embedded."
    )


def _docker_answers() -> bool:
    if not shutil.which("docker"):
        return False
    try:
        done = subprocess.run(
            ["docker", "info"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # Without an engine the client still answers, but with an error status.
    return done.returncode == 0


def command(backend: str, options: ServerOptions, image: str | None = None) -> list[str]:
    """The command line that starts TF Serving.

    Args:
        backend: tensorflow_model_server or docker.
        options: what to serve; `check` has passed.
        image: of the container; default: `default_image()`.

    Raises:
        BranchyError: TF Serving does not support an option or its value.
    """
    _check(backend, options)
    if backend == TF_SERVING:
        return [
            TF_SERVING,
            f"--port={options.port}",
            f"--rest_api_port={options.rest_api_port}",
            *_models(options),
            *_flags(options, files.absolute),
        ]
    publish = [f"--publish={addresses.join(options.host, options.port)}:8500"]
    if options.rest_api_port:
        publish.append(
            f"--publish={addresses.join(options.host, options.rest_api_port)}:8501"
        )
    mounts = _mounts(options)
    return [
        "docker", "run", "--rm", "--init", *publish,
        *(f"--volume={host}:{inside}:ro" for host, inside in mounts.items()),
        *_name(options),
        image or default_image(),
        *_flags(options, lambda path: mounts[files.absolute(path)]),
    ]  # fmt: skip


def _check(backend: str, options: ServerOptions) -> None:
    if not options.port:
        raise BranchyError(
            f"--port=0, any free port, works only with --backend=embedded; this is "
            f"{backend}. Pass the port to listen on."
        )
    if options.max_message_bytes:
        raise BranchyError(
            f"--max_message_bytes={options.max_message_bytes}: {backend} has no such "
            "limit and takes requests of up to 2 GiB. Omit it, or set a limit in a "
            "proxy."
        )
    for name in ("file_system", "model_config_file"):
        flag = f"{name}_poll_wait_seconds"
        if not float(getattr(options, flag)).is_integer():
            raise BranchyError(
                f"--{flag}={getattr(options, flag)}: {backend} takes whole seconds."
            )


def _models(options: ServerOptions) -> list[str]:
    """Flags of tensorflow_model_server for one model."""
    if options.model_config_file:
        return []
    (model,) = options.models().model_config_list.config
    return [f"--model_name={model.name}", f"--model_base_path={model.base_path}"]


def _name(options: ServerOptions) -> list[str]:
    """Docker flags for one model, which the container expects in /models."""
    if options.model_config_file:
        return []
    (model,) = options.models().model_config_list.config
    name = f"--env=MODEL_NAME={model.name}"
    if not files.is_url(model.base_path):
        return [name]
    # The image appends the model's name to its base path.
    base, _, last = model.base_path.rstrip("/").rpartition("/")
    if last != model.name:
        raise BranchyError(
            f"--model_base_path={model.base_path}: the container can only serve a URL "
            f"under its last part. Pass --model_name={last}, or a --model_config_file."
        )
    return [name, f"--env=MODEL_BASE_PATH={base}"]


def _flags(options: ServerOptions, place: Callable[[files.Path], object]) -> list[str]:
    """Flags for values other than the defaults, which are TF Serving's.

    Args:
        options: what to serve.
        place: maps a path of this machine to the server's.
    """
    found = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in _ELSEWHERE or value == field.default:
            continue
        if field.name.endswith("_file"):
            value = place(value)
        elif isinstance(value, bool):
            value = str(value).lower()
        elif field.name.endswith("_seconds"):
            value = int(value)
        found.append(f"--{field.name}={value}")
    return found


def _mounts(options: ServerOptions) -> dict[pathlib.Path, str]:
    """`{path on this machine: path in the container}`."""
    mounts = {
        files.absolute(path): f"/config/{flag.removesuffix('_file')}.config"
        for flag in _FILES
        if (path := getattr(options, flag))
    }
    models = options.models().model_config_list.config
    for model in models:
        # A config file names folders and may be read again, so the container mounts
        # them at the same paths.
        if files.is_url(model.base_path):
            continue  # read by the server itself
        inside = model.base_path if options.model_config_file else f"/models/{model.name}"
        mounts[pathlib.Path(model.base_path)] = inside
    return mounts


def default_image() -> str:
    """The image of the installed tensorflow-serving-api's release."""
    release = importlib.metadata.version("tensorflow-serving-api")
    return f"tensorflow/serving:{release}"

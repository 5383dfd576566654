"""Which server runs a model: TF Serving, its container, or the embedded one."""

from __future__ import annotations

import importlib.metadata
import pathlib
import shutil
import socket
import subprocess

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.versions import version_folders

TF_SERVING, DOCKER, EMBEDDED = "tensorflow_model_server", "docker", "embedded"
BACKENDS = ("auto", TF_SERVING, DOCKER, EMBEDDED)


def choose(backend: str) -> str:
    """Resolves `auto`: what is on PATH, else a docker engine, else embedded.

    Raises:
        BranchyError: the backend asked for is not on this machine.
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
    # The client answers without an engine; then it reports an error among the rest.
    return done.returncode == 0


def command(
    backend: str, base_path: files.Path, model_name: str, address: str, image: str | None
) -> list[str]:
    """The command line that starts TF Serving.

    Args:
        backend: tensorflow_model_server or docker.
        base_path: folder whose numbered folders are versions.
        model_name: what clients ask for.
        address: host:port of gRPC; tensorflow_model_server takes the port alone.
        image: of the container; default: `default_image()`.
    """
    folder = files.absolute(base_path)
    if backend == TF_SERVING:
        return [
            TF_SERVING,
            f"--port={address.rpartition(':')[2]}",
            "--rest_api_port=0",
            f"--model_name={model_name}",
            f"--model_base_path={folder}",
        ]
    return [
        "docker", "run", "--rm", "--init",
        f"--publish={address}:8500",
        f"--volume={folder}:/models/{model_name}:ro",
        f"--env=MODEL_NAME={model_name}",
        image or default_image(),
    ]  # fmt: skip


def default_image() -> str:
    """The image of the release whose messages are installed here."""
    release = importlib.metadata.version("tensorflow-serving-api")
    return f"tensorflow/serving:{release}"


def check(base_path: files.Path, port: int) -> None:
    """Raises `BranchyError` for a folder that holds no model, or a port in use."""
    folder = pathlib.Path(base_path).expanduser()
    if not folder.is_dir():
        raise BranchyError(
            f"There is no folder {folder}. Pass the folder that holds a model's "
            "versions: <export_dir>/<model_name>."
        )
    inside = [child for child in sorted(folder.iterdir()) if version_folders(child)]
    if inside and not version_folders(folder):
        raise BranchyError(
            f"{folder} holds no versions, but {inside[0]} does. Pass the folder of one "
            f"model: --model_base_path={inside[0]}."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise BranchyError(
                f"Cannot listen on port {port}: {error.strerror}. Pass another --port."
            ) from None

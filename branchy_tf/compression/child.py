"""Runs the worker process, and ends it in any case."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Generator
from typing import Any

import branchy_tf
from branchy_tf.errors import BranchyError, one_line

# {module: the package to install}.
_NEEDED = {
    "tensorflow_model_optimization": "tensorflow-model-optimization",
    "tf_keras": "tf_keras",
}


def check_installed() -> None:
    """Raises `BranchyError` unless the extra `compression` is installed."""
    missing = [
        package
        for module, package in _NEEDED.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise BranchyError(
            f"Compression needs {' and '.join(missing)}, which is not installed. Install "
            "it: pip install 'branchy_tf[compression]'."
        )


def messages(folder: pathlib.Path) -> Generator[dict[str, Any], None, None]:
    """Runs `worker` on a folder and yields its messages as they come.

    Closing the iterator ends the process, and so does the end of this process, however
    it ends: the worker watches the pipe that this process holds open.

    Args:
        folder: with the files that `worker` describes.

    Raises:
        BranchyError: the worker reported an error, or died.
    """
    log = folder / "worker.log"
    root = pathlib.Path(branchy_tf.__file__).parent.parent
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # For tf.keras, before anything imports it.
        "TF_USE_LEGACY_KERAS": "1",
    }
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "branchy_tf.compression.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | environment,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise BranchyError(message["error"])
            yield message
        if process.wait() != 0:
            lines = log.read_text(errors="replace").strip().splitlines()
            last = one_line(lines[-1]) if lines else "it left no message"
            raise BranchyError(
                f"The process that compresses ended with status {process.returncode}: "
                f"{last}"
            )
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()

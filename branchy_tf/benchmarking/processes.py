"""Worker processes, each with one program, and requests to them.

Not `concurrent.futures`: its spawned processes import the command that started them,
and so TensorFlow, which PyTorch's process must do without and memory figures would
include; and all share one environment, where each needs its `KERAS_BACKEND`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import branchy_tf
from branchy_tf.errors import BranchyError

_PACKAGE = pathlib.Path(branchy_tf.__file__).parent


class Process:
    """A `worker` process; close it when done.

    Args:
        name: its name in messages.
        spec: {"engine", "programs", "inputs", "threads"}, see `worker`.
        folder: for its files.
        environment: variables to set in it.
    """

    def __init__(
        self,
        name: str,
        spec: dict[str, Any],
        folder: pathlib.Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        path, self._log = folder / f"{name}.json", folder / f"{name}.log"
        path.write_text(json.dumps(spec), encoding="utf-8")
        # The package of this process, wherever it lies.
        paths = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        set_here = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "branchy_tf.benchmarking.worker", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | set_here | (environment or {}),
                text=True,
            )
        self._tell({"do": "load"})
        self._loading = True

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Raises:
            BranchyError: the request failed, or the process has ended.
        """
        self.wait()
        self._tell({"do": do, **request})
        return self._hear()

    def wait(self) -> None:
        """Waits until its program is loaded.

        Raises:
            BranchyError: loading failed.
        """
        if self._loading:
            self._hear()
            self._loading = False

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _tell(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        reply = json.loads(line)
        if "error" in reply:
            raise BranchyError(f"{self.name} failed: {reply['error']}")
        return reply

    def _ended(self) -> BranchyError:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it left no message"
        return BranchyError(f"The process of {self.name} has ended: {last}")

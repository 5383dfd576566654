"""Runs `python -m branchy_tf.X`, or `zoo.X`, quickly and often.

A command defines absl flags, so only one fits into a process; and TensorFlow
takes seconds to import. A server process imports it once and forks a child for
each command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["branchy_tf.saved_model", "branchy_tf.scoring", "branchy_tf.training"]
)


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    status: int | None
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """Its error line; fails unless there is exactly one."""
        assert self.status not in (0, None), f"it succeeded: {self.stdout}{self.stderr}"
        assert "Traceback" not in self.stderr, self.stderr
        lines = [x for x in self.stderr.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0]


def run(
    command: str,
    *flags: str,
    cwd: str | os.PathLike = ".",
    seconds: float = 300,
    prepare: Callable[[], object] | None = None,
) -> Done:
    """Runs one command to its end, e.g. `run("evaluate", "--run_dir=x")`.

    A command outside branchy_tf is given by its whole name: `run("zoo.publish")`.

    Args:
        command: its name.
        flags: its flags.
        cwd: the working directory.
        seconds: a command that takes longer is killed.
        prepare: a function of a module, called in the process before the command.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = pathlib.Path(folder, "out"), pathlib.Path(folder, "err")
        process = start(command, *flags, cwd=cwd, out=out, err=err, prepare=prepare)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        return Done(process.exitcode, out.read_text(), err.read_text())


def start(
    command: str,
    *flags: str,
    cwd: str | os.PathLike = ".",
    out: pathlib.Path,
    err: pathlib.Path,
    daemon: bool = False,
    prepare: Callable[[], object] | None = None,
) -> multiprocessing.process.BaseProcess:
    """Starts one command, which writes to the files `out` and `err`.

    One that starts processes with `multiprocessing` itself cannot be a daemon.
    """
    process = CONTEXT.Process(
        target=_child,
        args=(command, flags, str(cwd), str(out), str(err), prepare),
        daemon=daemon,
    )
    process.start()
    return process


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own.

    It may define flags there, or run what else one process does once.
    """
    with futures.ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(function, *arguments).result()


class Forked:
    """A command in a process of its own, with the methods of a `subprocess.Popen`.

    It ends with the tests at the latest.

    Args:
        command: its name.
        flags: its flags.
        cwd: the working directory.
        log: the file that gets its output.
    """

    def __init__(
        self,
        command: str,
        flags: Sequence[str],
        log: pathlib.Path,
        cwd: str | os.PathLike = ".",
    ) -> None:
        log.write_bytes(b"")
        self._process = start(command, *flags, cwd=cwd, out=log, err=log, daemon=True)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


def _child(
    command: str,
    flags: tuple,
    cwd: str,
    out: str,
    err: str,
    prepare: Callable[[], object] | None,
) -> None:
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
    status: object = 1
    try:
        name = command if "." in command else f"branchy_tf.{command}"
        module = importlib.import_module(name)
        os.chdir(cwd)
        if prepare is not None:
            prepare()
        sys.argv = [name, *flags]
        importlib.import_module("branchy_tf.command_line").run(module.main)
    except SystemExit as exit_:
        status = exit_.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)

"""Runs what a page of Markdown shows: its Python blocks and its commands."""

from __future__ import annotations

import contextlib
import pathlib
import re
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence

import commands

from branchy_tf.serving import EarlyExitClient

# Commands that go on until they are stopped, and one that needs a browser.
_SERVERS = {"serve"}
_INTERACTIVE = {"play"}
# How lines begin that install something, which no test does.
_INSTALLING = ("python3 -m venv", "pip install")
_PORT = "8500"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def lines(block: str) -> list[str]:
    """The commands of a block, one each, without comments and installations."""
    joined = block.replace("\\\n", " ")
    skipped = ("#", *_INSTALLING)
    return [x for x in joined.splitlines() if x.strip() and not x.startswith(skipped)]


def walkthrough(readme: str) -> list[str]:
    """The commands of the README from `train` to `benchmark`."""
    (block,) = (x for x in blocks(readme, "sh") if "branchy_tf.calibrate" in x)
    return lines(block)


class Walk:
    """Runs commands and Python blocks in a folder, as a reader would.

    Args:
        folder: the working directory.
        port: the port used instead of 8500.
        shorter: `{command: flags that make it shorter}`.

    Attributes:
        ran: the names of the commands that ran.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        port: int,
        shorter: Mapping[str, Sequence[str]],
    ) -> None:
        self.ran: list[str] = []
        self._folder = folder
        self._port = str(port)
        self._shorter = shorter
        self._servers: list[commands.Forked] = []
        self._names: dict[str, object] = {"__name__": "guide"}

    def command(self, line: str) -> None:
        """Runs `python -m branchy_tf.X ...` and checks that it succeeds."""
        python, m, module, *flags = shlex.split(line.replace(_PORT, self._port))
        assert (python, m) == ("python", "-m"), line
        name = module.removeprefix("branchy_tf.")
        flags = [flag for flag in flags if flag != "&"]
        if name in _INTERACTIVE:
            return
        if name in _SERVERS:
            self._serve(name, flags)
        else:
            given = [*flags, *self._shorter.get(name, [])]
            done = commands.run(name, *given, cwd=self._folder)
            assert done.status == 0, f"{line}\n{done.stderr}"
        self.ran.append(name)

    def python(self, code: str, source: str) -> None:
        """Runs a block of Python, which knows the names of the blocks before."""
        code = code.replace(f"localhost:{_PORT}", f"localhost:{self._port}")
        exec(compile(code, source, "exec"), self._names)

    def _serve(self, name: str, flags: Sequence[str]) -> None:
        log = self._folder / f"{name}.log"
        self._servers.append(commands.Forked(name, flags, log, self._folder))
        (model,) = (x.partition("=")[2] for x in flags if x.startswith("--model_name="))
        with EarlyExitClient(f"localhost:{self._port}", model) as client:
            client.wait_until_ready(timeout=120)

    def stop(self) -> None:
        """Stops the servers."""
        for server in self._servers:
            server.terminate()
            server.wait(30)


@contextlib.contextmanager
def walk(folder: pathlib.Path, shorter: Mapping[str, Sequence[str]]) -> Iterator[Walk]:
    """A walk through a page, whose servers stop at its end."""
    walker = Walk(folder, free_port(), shorter)
    try:
        yield walker
    finally:
        walker.stop()

"""What the README shows works as written: every Python block and every command."""

from __future__ import annotations

import pathlib
import re
import shlex
import socket
import subprocess
import sys

import commands
import pytest

from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# What `benchmark` would do for minutes.
SHORT = ["--seconds=0.1", "--batch_sizes=1,32", "--threads=1"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def walkthrough() -> list[list[str]]:
    """The commands from `train` to `benchmark`, each as a list of arguments."""
    (block,) = (text for text in blocks("sh") if "branchy_tf.train" in text)
    lines = (line for line in block.splitlines() if line and not line.startswith("#"))
    return [shlex.split(line) for line in lines]


PYTHON = blocks("python")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run_as_they_stand(number, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = PYTHON[number]
    if "localhost:8500" not in code:
        exec(compile(code, f"README.md, Python block {number}", "exec"), {})
        return
    with EmbeddedServer(exported, "branchy_lenet", port=0) as server:
        code = code.replace("localhost:8500", f"localhost:{server.port}")
        exec(compile(code, f"README.md, Python block {number}", "exec"), {})


def test_the_commands_run_as_they_stand(tmp_path):
    """In order, in a folder like a checkout; only shorter than they would be."""
    for name in ("zoo", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shorter = {"train": ["--epochs=2", "--baseline_epochs=1"], "benchmark": SHORT}
    port = free_port()
    servers, ran = [], []
    try:
        for line in walkthrough():
            assert line[:2] == ["python", "-m"], line
            name = line[2].removeprefix("branchy_tf.")
            flags = [part.replace("8500", str(port)) for part in line[3:]]
            if flags[-1] == "&":
                command = [sys.executable, "-m", line[2], *flags[:-1]]
                servers.append(subprocess.Popen(command, cwd=tmp_path))
                with EarlyExitClient(f"localhost:{port}", "branchy_lenet") as client:
                    client.wait_until_ready(timeout=60)
            else:
                flags += shorter.get(name, [])
                done = commands.run(name, *flags, cwd=tmp_path)
                assert done.status == 0, done.stderr
            ran.append(name)
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
    assert ran == [
        "train", "calibrate", "evaluate", "export", "serve", "predict", "benchmark",
    ]  # fmt: skip
    assert (tmp_path / "runs/lenet/report.html").is_file()


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import commands
import numpy as np
import pytest
import servers

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient, backends
from branchy_tf.serving.options import ServerOptions

TF_SERVING = "tensorflow_model_server"
# Prints its own name and arguments, a line each; `docker info` as told.
FAKE = """#!/bin/sh
if [ "$1" = info ]; then exit {info}; fi
printf '%s\\n' "${{0##*/}}" "$@"
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A PATH with nothing on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(path, name, info=0):
    path.joinpath(name).write_text(FAKE.format(info=info))
    path.joinpath(name).chmod(0o755)


def serve(*flags, cwd=None):
    done = subprocess.run(
        [sys.executable, "-m", "branchy_tf.serve", *flags],
        capture_output=True, text=True, timeout=60, cwd=cwd,
    )  # fmt: skip
    return commands.Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, "embedded"),
        ({TF_SERVING: 0}, TF_SERVING),
        ({"docker": 0}, "docker"),
        # The client without an engine.
        ({"docker": 1}, "embedded"),
        ({TF_SERVING: 0, "docker": 0}, TF_SERVING),
    ],
)
def test_auto_chooses_the_best_available_backend(path, installed, expected):
    for name, info in installed.items():
        install(path, name, info)
    assert backends.choose("auto") == expected


def test_uses_the_given_backend(path):
    install(path, TF_SERVING)
    install(path, "docker")
    for backend in (TF_SERVING, "docker", "embedded"):
        assert backends.choose(backend) == backend


@pytest.mark.parametrize("info", [None, 1])
def test_docker_without_an_engine_is_an_error(path, info):
    install(path, TF_SERVING)
    if info is not None:
        install(path, "docker", info)
    with pytest.raises(BranchyError, match="no docker engine answers"):
        backends.choose("docker")


def test_starts_tensorflow_model_server(path, tmp_path):
    install(path, TF_SERVING)
    install(path, "docker")
    (tmp_path / "lenet").mkdir()
    port = servers.free_port()
    # A relative folder would be another one to a server that moves elsewhere.
    done = serve("--model_base_path=lenet", f"--port={port}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    name, *arguments = done.stdout.splitlines()
    assert name == TF_SERVING
    assert set(arguments) == {
        f"--port={port}",
        "--rest_api_port=0",
        "--model_name=lenet",
        f"--model_base_path={tmp_path}/lenet",
    }


def test_starts_the_container(path, tmp_path):
    install(path, "docker")
    port = servers.free_port()
    flags = [f"--model_base_path={tmp_path}", "--model_name=digits", f"--port={port}"]
    done = serve(*flags)
    assert done.status == 0, done.stderr
    name, *arguments, image = done.stdout.splitlines()
    assert name == "docker"
    assert arguments[:2] == ["run", "--rm"]
    assert {
        f"--publish=127.0.0.1:{port}:8500",
        f"--volume={tmp_path}:/models/digits:ro",
        "--env=MODEL_NAME=digits",
    } <= set(arguments)
    release = importlib.metadata.version("tensorflow-serving-api")
    assert image == f"tensorflow/serving:{release}"

    done = serve(*flags, "--docker_image=mine:1")
    assert done.stdout.splitlines()[-1] == "mine:1"


def test_a_missing_backend_is_one_line(path, tmp_path):
    done = serve(f"--model_base_path={tmp_path}", f"--backend={TF_SERVING}", "--port=0")
    assert "no tensorflow_model_server on PATH" in done.error
    assert "--backend=embedded" in done.error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--model_base_path is missing"),
        (["--model_base_path=missing"], "/missing for model missing"),
        (["--model_base_path=.", "--backend=triton"], "triton"),
        (["--model_base_path=.", "--port=70000"], "70000"),
        (["--model_base_path=.", "--backend=embedded", "lenet"], "argument 'lenet'"),
    ],
)
def test_rejects_bad_flags(tmp_path, flags, expected):
    assert expected in commands.run("serve", *flags, cwd=tmp_path).error


def test_a_port_in_use_is_one_line(served, exported):
    port = served.address.rpartition(":")[2]
    done = commands.run("serve", f"--model_base_path={exported}", f"--port={port}")
    assert f"Cannot listen on port {port}" in done.error


def test_sigterm_stops_it_cleanly(exported, tmp_path, digits):
    server = servers.ServeProcess(exported, tmp_path / "log", forked=False)
    try:
        with EarlyExitClient(server.address, servers.MODEL) as client:
            assert client.wait_until_ready() == 1
            before = client.predict(digits)
            assert server.stop() == 0
            with pytest.raises(ServerError):
                client.predict(digits)
    finally:
        if server.alive:
            server.process.kill()
    assert len(np.unique(before.exits)) == 2
    assert server.log.splitlines()[-1] == "Stopped."
    assert "Traceback" not in server.log
    # It does not pass for more than it is.
    assert "not for production" in server.log


def test_expands_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = backends.command(TF_SERVING, ServerOptions("~/models/lenet"))
    assert f"--model_base_path={tmp_path}/models/lenet" in given


def test_tf_serving_logs_as_usual(path, exported, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    program = path / TF_SERVING
    program.write_text("#!/bin/sh\necho level=$TF_CPP_MIN_LOG_LEVEL.\n")
    program.chmod(0o755)
    flags = [f"--model_base_path={exported}", f"--port={servers.free_port()}"]
    done = serve(*flags)
    assert "level=." in done.stdout


def test_rejects_the_folder_of_all_models(exported):
    refused = commands.run("serve", f"--model_base_path={exported.parent}")
    assert f"--model_base_path={exported}" in refused.error

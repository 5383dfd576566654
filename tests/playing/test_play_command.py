"""The command play, over a run folder and over a server."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time

import commands
import pytest

from branchy_tf import files
from branchy_tf.serving.embedded import EmbeddedServer


@contextlib.contextmanager
def playing(tmp_path, *flags):
    """The connection to a page that the command serves; ends with it."""
    out, err = tmp_path / "out", tmp_path / "err"
    process = commands.start("play", *flags, "--port=0", out=out, err=err)
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://(\S+):(\d+)/", err.read_text() if
                                      err.exists() else "")):  # fmt: skip
            assert process.is_alive(), err.read_text()
            assert time.monotonic() < end, err.read_text()
            time.sleep(0.1)
        yield http.client.HTTPConnection(found[1], int(found[2]), timeout=60)
        process.terminate()
        process.join(30)
        assert process.exitcode == 0
        assert "Traceback" not in err.read_text()
    finally:
        process.kill()


def answer(connection, query):
    connection.request("POST", f"/answer?{query}", body="")
    return json.loads(connection.getresponse().read())


def facts(connection):
    connection.request("GET", "/")
    page = connection.getresponse().read().decode("utf-8")
    return json.loads(page.split('id="facts">')[1].split("</script>")[0])


def test_plays_with_a_run(run_dir, tmp_path):
    with playing(tmp_path, f"--run_dir={run_dir}") as connection:
        known = facts(connection)
        calibrated = files.read_json(run_dir / "thresholds.json")
        assert known["thresholds"] == pytest.approx(calibrated["thresholds"])
        assert known["macs"] == [220_150, 1_247_720]
        assert known["samples"] == 1000
        assert answer(connection, "sample=3&thresholds=inf")["exit"] == 0


def test_plays_with_a_server(exported, tmp_path):
    with EmbeddedServer(exported, "net", port=0) as server:
        flags = [f"--server=localhost:{server.port}", "--model_name=net"]
        with playing(
            tmp_path, *flags, f"--version_dir={exported / '1'}", "--dataset=mnist_5k"
        ) as connection:
            known = facts(connection)
            assert known["criterion"] == "entropy"
            assert known["macs"] == [220_150, 1_247_720]
            assert answer(connection, "sample=3&thresholds=0")["exit"] == 1
            assert answer(connection, "sample=3&thresholds=inf")["exit"] == 0
            assert "exit" in answer(connection, "sample=3")

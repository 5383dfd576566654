"""The same flags, the same answers: from each backend that this machine has."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import urllib.request
from concurrent import futures

import commands
import numpy as np
import pytest
import servers

from branchy_tf.serving import EarlyExitClient, backends

MODELS = """
model_config_list {{
  config {{
    name: "digits" base_path: "{folder}" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
  }}
}}
"""


@pytest.fixture(params=[b for b in backends.BACKENDS if b != "auto"])
def running(request, exported, tmp_path):
    """A server that is told much; and the port of its metrics."""
    servers.skip_without(request.param)
    folder, port = tmp_path / "digits", servers.free_port()
    for number in (1, 2):
        servers.add_version(exported, folder, number)
    texts = {
        "model_config": MODELS.format(folder=folder),
        "batching_parameters": "max_batch_size { value: 64 }",
        "monitoring_config": "prometheus_config { enable: true }",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    server = servers.ServeProcess(
        None,
        tmp_path / "log",
        [
            "--enable_batching",
            "--allow_version_labels_for_unavailable_models",
            "--tensorflow_intra_op_parallelism=1",
            f"--rest_api_port={port}",
            *(f"--{name}_file={tmp_path / name}" for name in texts),
        ],
        request.param,
    )
    yield server, port
    server.stop()


def test_rows_labels_and_metrics(running, predictor, digits, halving):
    server, port = running
    expected = predictor.predict(digits, [halving])
    with EarlyExitClient(server.address, "digits", timeout=60) as client:
        assert client.wait_until_ready() == 2

        def ask(i):
            return client.predict(digits[i : i + 4], np.full((4, 1), halving))

        with futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(0, 64, 4)))
    assert [x for answer in answers for x in answer.exits] == expected.exits.tolist()
    assert {answer.model_version for answer in answers} == {2}
    with EarlyExitClient(server.address, "digits", version=1, timeout=60) as client:
        assert client.predict(digits[:1]).model_version == 1
    url = f"http://127.0.0.1:{port}/monitoring/prometheus/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    # In either order of the labels.
    counts = [
        float(line.split()[-1])
        for line in lines
        if line.startswith(":tensorflow:serving:request_count{")
        and 'model_name="digits"' in line
        and 'status="OK"' in line
    ]
    assert counts == [17.0]


def run_tests(*arguments: str) -> tuple[int, str]:
    """The status and the output of pytest; in a process that runs none itself."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "no:xdist"])
    return int(status), out.getvalue()


def test_what_only_the_embedded_server_can_pass_is_skipped_for_others():
    where = pathlib.Path(__file__).with_name("test_embedded_server.py")
    flags = ["--server_backend=docker", "-q", "-rs", "-k", "small_requests"]
    status, text = commands.call(run_tests, str(where), *flags)
    assert status == 0, text
    assert "not for docker: TF Serving takes the memory, or aborts" in text
    assert re.search(r"^\d+ skipped, \d+ deselected", text, flags=re.MULTILINE)

"""The two scripts in serving/, run as they are."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import subprocess
import threading

import deployment
import grpc
import pytest
import servers
from deployment import CONFIG_FOLDER, SERVING

from branchy_tf.serving import configs

MODEL, STABLE = "/v1/models/digits", "/v1/models/digits/labels/stable/metadata"


def status(*states):
    """How TF Serving's REST interface writes a GetModelStatusResponse."""
    versions = [
        {
            "version": str(number),
            "state": state,
            "status": {"error_code": "OK", "error_message": "AVAILABLE"},
        }
        for number, state in enumerate(states, start=1)
    ]
    return json.dumps({"model_version_status": versions}, indent=1)


@contextlib.contextmanager
def rest(answers):
    """A server that answers GET of a path with 200 and a text, else with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or '{"error": "no"}').encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ready(port, *arguments):
    done = subprocess.run(
        ["bash", SERVING / "ready.sh", *arguments, str(port)],
        capture_output=True, timeout=20,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.parametrize(
    ("answers", "some_version", "stable"),
    [
        ({MODEL: status("AVAILABLE"), STABLE: "{}" * 100_000}, True, True),
        # Another version is, the stable one is not.
        ({MODEL: status("LOADING", "AVAILABLE")}, True, False),
        ({MODEL: status("LOADING")}, False, False),
        ({MODEL: status("END")}, False, False),
        ({MODEL: status("UNLOADING", "END"), STABLE: "{}"}, False, False),
        ({}, False, False),
    ],
)
def test_is_ready_when_a_version_is_available(answers, some_version, stable):
    with rest(answers) as port:
        assert ready(port, "digits", "") == some_version
        assert ready(port, "digits", "stable") == stable


def test_a_port_that_is_closed_is_not_ready():
    assert not ready(servers.free_port(), "digits", "")


def test_ready_uses_the_servers_port():
    text = (SERVING / "ready.sh").read_text(encoding="utf-8")
    for where in ("docker-compose.yml", "kubernetes/deployment.yaml"):
        assert f"port=${{3:-{deployment.flags(where)['rest_api_port']}}}" in text


def test_probes_use_the_model_and_an_existing_label():
    probe = deployment.container()["readinessProbe"]["exec"]["command"]
    check = deployment.compose()["services"]["serving"]["healthcheck"]["test"]
    assert check == ["CMD", *probe]
    shell, script, name, label = probe
    assert (shell, script) == ("bash", f"{CONFIG_FOLDER}/ready.sh")
    assert name == deployment.model().name
    assert label in deployment.model().version_labels
    # One version alone has no labels.
    (baked,) = deployment.dockerfile()["HEALTHCHECK"]
    assert baked.endswith(f'CMD {shell} {script} "${{MODEL_NAME}}"')


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not on PATH")
    folder = tmp_path_factory.mktemp("tls")
    command = [SERVING / "make_test_certificates.sh", folder, "serving.test", "10.1.2.3"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


def connect(certificates, port, identity=("client.key", "client.pem"), host=None):
    """A channel that was ready within some seconds, or an exception."""
    read = [(certificates / name).read_bytes() for name in ("ca.pem", *identity)]
    options = [("grpc.ssl_target_name_override", host)] if host else []
    credentials = grpc.ssl_channel_credentials(*read)
    with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
        grpc.channel_ready_future(channel).result(timeout=10 if identity else 1)


@pytest.fixture(scope="module")
def secure_port(certificates):
    """A gRPC server with what TF Serving makes of the ssl.config."""
    ssl = configs.read(certificates / "ssl.config", "SSLConfig")
    assert ssl.client_verify
    pair = (ssl.server_key.encode(), ssl.server_cert.encode())
    server = grpc.server(servers.futures.ThreadPoolExecutor(2))
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials([pair], ssl.custom_ca.encode(), ssl.client_verify),
    )
    server.start()
    yield port
    server.stop(0).wait()


@pytest.mark.parametrize("host", ["localhost", "serving.test", "10.1.2.3"])
def test_test_certificates_connect_a_client(certificates, secure_port, host):
    connect(certificates, secure_port, host=host)


def test_test_certificates_keep_others_out(certificates, secure_port):
    with pytest.raises(grpc.FutureTimeoutError):
        connect(certificates, secure_port, identity=())


def test_only_the_owner_can_read_keys(certificates):
    for path in certificates.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert not list(certificates.glob("*.request"))

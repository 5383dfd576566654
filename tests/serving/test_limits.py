from __future__ import annotations

import gc
import threading
import urllib.error
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import pytest
import servers
import small
import tensorflow as tf
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from branchy_tf import saved_model
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import warmup
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving.embedded import EmbeddedServer, models, service


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    version = saved_model.export(small.model(), tmp_path_factory.mktemp("s"), "s", [0.5])
    (version / "assets.extra" / warmup.FILE_NAME).unlink()
    return version.parent


def request(rows=1, name="s"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    images = np.zeros((rows, 8, 8, 1), np.uint8)
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    return request


def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def connect(server, credentials=None):
    address = f"localhost:{server.port}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def status(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name


@pytest.fixture
def gate(monkeypatch):
    """Holds every Predict back until it is opened; counts those that began."""

    class Gate:
        def __init__(self):
            self.open, self.began = threading.Event(), 0

    gate, predict = Gate(), service.PredictionService._predict

    def waiting(self, request):
        gate.began += 1
        assert gate.open.wait(60)
        return predict(self, request)

    monkeypatch.setattr(service.PredictionService, "_predict", waiting)
    yield gate
    gate.open.set()


def test_rejects_excess_requests_at_once(folder, gate):
    with (
        EmbeddedServer(folder, port=0, grpc_max_threads=1) as server,
        connect(server) as channel,
    ):
        ask = stub(channel).Predict
        held = fill(ask, places=2)
        servers.until(lambda: gate.began == 1)
        excess = ask.future(request(), timeout=60)
        assert excess.exception(30).code().name == "RESOURCE_EXHAUSTED"
        gate.open.set()
        for call in held:
            assert call.result(30).outputs["exit"].tensor_shape.dim[0].size == 1


def test_probes_are_answered_when_the_server_is_full(folder, gate):
    """Or a cluster would take a busy server for a broken one."""
    with (
        EmbeddedServer(folder, port=0, grpc_max_threads=1) as server,
        connect(server) as channel,
    ):
        ask = stub(channel).Predict
        held = fill(ask, places=2)
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        wanted = get_model_status_pb2.GetModelStatusRequest()
        wanted.model_spec.name = "s"
        states = model_service_pb2_grpc.ModelServiceStub(channel)
        (found,) = states.GetModelStatus(wanted, timeout=10).model_version_status
        assert found.version == 1
        gate.open.set()
        assert all(len(call.result(30).outputs) == 3 for call in held)


def fill(ask, places):
    """Takes all places of a server, and asks twice more; the calls that are held."""
    calls = [ask.future(request(), timeout=60) for _ in range(places + 2)]
    servers.until(lambda: sum(call.done() for call in calls) == 2)
    refused = [call for call in calls if call.done()]
    assert {call.code().name for call in refused} == {"RESOURCE_EXHAUSTED"}
    return [call for call in calls if call not in refused]


def test_does_not_run_requests_past_their_deadline(folder, gate):
    with (
        EmbeddedServer(folder, port=0, grpc_max_threads=1) as server,
        connect(server) as channel,
    ):
        ask = stub(channel).Predict
        running = ask.future(request(), timeout=60)
        servers.until(lambda: gate.began == 1)
        late = ask.future(request(), timeout=0.2)
        assert late.exception(30).code().name == "DEADLINE_EXCEEDED"
        gate.open.set()
        running.result(30)
        ask(request(), timeout=30)  # comes after the late one
        assert gate.began == 2


def test_requests_run_in_their_own_threads_by_default(folder, monkeypatch):
    class Recording(SessionModel):
        def __init__(self, path, intra_op_threads, inter_op_threads):
            asked.append((intra_op_threads, inter_op_threads))
            super().__init__(path, intra_op_threads, inter_op_threads)

    asked = []
    monkeypatch.setattr(models, "SessionModel", Recording)
    for options in ({}, {"tensorflow_inter_op_parallelism": 2}):
        with (
            EmbeddedServer(folder, port=0, **options) as server,
            connect(server) as channel,
        ):
            assert len(stub(channel).Predict(request(), timeout=30).outputs) == 3
    assert asked == [(0, -1), (0, 2)]


def test_messages_have_a_limit(folder):
    with (
        EmbeddedServer(folder, port=0, max_message_bytes=1000) as server,
        connect(server) as channel,
    ):
        ask = stub(channel).Predict
        assert status(lambda: ask(request(rows=20))) == "RESOURCE_EXHAUSTED"
        # What counts is what a message unfolds to.
        squeezed = grpc.Compression.Gzip
        assert status(lambda: ask(request(rows=20), compression=squeezed)) == (
            "RESOURCE_EXHAUSTED"
        )
        assert len(ask(request(rows=2), compression=squeezed).outputs) == 3
        assert len(ask(request(rows=2)).outputs) == 3


def test_unparsable_messages_leak_no_memory(folder):
    def states():
        gc.collect()
        return sum(type(found).__name__ == "_RPCState" for found in gc.get_objects())

    with EmbeddedServer(folder, port=0) as server, connect(server) as channel:
        garbage = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        assert status(lambda: garbage(b"\xff" * 9)) == "INTERNAL"
        before = states()
        for _ in range(30):
            assert status(lambda: garbage(b"\xff" * 9)) == "INTERNAL"
        # The last call may still be on its way out.
        servers.until(lambda: states() <= before + 1)


def test_a_stopping_server_finishes_pending_requests(folder, gate):
    server = EmbeddedServer(folder, port=0)
    server.start()
    with connect(server) as channel, connect(server) as watching:
        health = health_pb2_grpc.HealthStub(watching)
        states = health.Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        call = stub(channel).Predict.future(request(), timeout=60)
        servers.until(lambda: gate.began == 1)
        with futures.ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(server.stop)
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            states.cancel()

            def refuses():
                with connect(server) as other:
                    new = stub(other).Predict.future(request(), timeout=1)
                    return new.exception(30).code().name == "UNAVAILABLE"

            servers.until(refuses)
            assert not stopped.done()
            gate.open.set()
            assert len(call.result(30).outputs) == 3
            stopped.result(30)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def ssl_config(path, authority, *, verify):
    served = authority.issue_cert("localhost")
    pem = {
        "server_key": served.private_key_pem.bytes(),
        "server_cert": b"".join(blob.bytes() for blob in served.cert_chain_pems),
        "custom_ca": authority.cert_pem.bytes(),
    }
    lines = [
        f'{name}: "{text.decode()}"'.replace("\n", "\\n") for name, text in pem.items()
    ]
    path.write_text("\n".join([*lines, f"client_verify: {str(verify).lower()}"]))
    return path


@pytest.mark.parametrize("verify", [False, True])
def test_tls_shows_a_certificate_and_may_require_one(folder, tmp_path, authority, verify):
    config = ssl_config(tmp_path / "ssl.config", authority, verify=verify)
    root = authority.cert_pem.bytes()
    mine = authority.issue_cert("client@localhost")
    chain = b"".join(blob.bytes() for blob in mine.cert_chain_pems)
    known = grpc.ssl_channel_credentials(root, mine.private_key_pem.bytes(), chain)
    unknown = grpc.ssl_channel_credentials(root)
    with EmbeddedServer(folder, port=0, ssl_config_file=config) as server:

        def ask(credentials):
            with connect(server, credentials) as channel:
                return stub(channel).Predict(request(), timeout=10)

        assert len(ask(known).outputs) == 3
        if verify:
            assert status(lambda: ask(unknown)) == "UNAVAILABLE"
        else:
            assert len(ask(unknown).outputs) == 3
        assert status(lambda: ask(None)) == "UNAVAILABLE"
        stranger = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        assert status(lambda: ask(stranger)) == "UNAVAILABLE"


def test_rejects_an_invalid_key(folder, tmp_path, authority):
    config = ssl_config(tmp_path / "ssl.config", authority, verify=False)
    config.write_text(
        config.read_text().replace("PRIVATE KEY-----\\n", "PRIVATE KEY-----")
    )
    with pytest.raises(BranchyError, match="no valid key and certificate"):
        EmbeddedServer(folder, port=0, ssl_config_file=config)


@pytest.fixture
def monitored(folder, tmp_path):
    """A server with metrics, and a function that reads one of its paths."""
    config, port = tmp_path / "monitoring.config", servers.free_port()
    config.write_text('prometheus_config { enable: true path: "/metrics" }')
    server = EmbeddedServer(
        folder,
        port=0,
        rest_api_port=port,
        monitoring_config_file=config,
        grpc_max_threads=2,
    )

    def read(path="/metrics", headers=None):
        wanted = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
        for name, value in (headers or {}).items():
            wanted.add_header(name, value)
        with urllib.request.urlopen(wanted, timeout=10) as page:
            return page.read().decode()

    with server:
        yield server, read


def test_metrics_have_tf_servings_names(monitored):
    server, read = monitored
    with connect(server) as channel:
        ask = stub(channel).Predict
        answer = ask(request(rows=3))
        status(lambda: ask(request(name="stranger")))
        status(lambda: ask(predict_pb2.PredictRequest()))
    (left,) = set(tf.make_ndarray(answer.outputs["exit"]).tolist())
    lines = read().splitlines()
    for line in (
        ':tensorflow:serving:request_count{model_name="s",status="OK"} 1.0',
        # Whatever strangers ask for is one name, or they could fill the memory.
        ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 1.0',
        ':tensorflow:serving:request_count{model_name="",status="INVALID_ARGUMENT"} 1.0',
        f':branchy:serving:exit_count{{exit="exit_{left + 1}",model_name="s"}} 3.0',
        ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="GRPC",'
        'model_name="s",status="OK"} 1.0',
    ):
        assert line in lines, "\n".join(lines)
    slowest = [
        float(line.split()[-1])
        for line in lines
        if line.startswith(":tensorflow:serving:request_latency_sum{")
    ]
    assert len(slowest) == 3
    assert all(0 < microseconds < 60e6 for microseconds in slowest)


def test_metrics_count_requests_refused_when_full(monitored, gate):
    server, read = monitored
    with connect(server) as channel:
        ask = stub(channel).Predict
        held = fill(ask, places=4)
        gate.open.set()
        assert all(len(call.result(30).outputs) == 3 for call in held)
    counts = ':tensorflow:serving:request_count{model_name="s",status='
    lines = read().splitlines()
    assert f'{counts}"RESOURCE_EXHAUSTED"}} 2.0' in lines, "\n".join(lines)
    assert f'{counts}"OK"}} 4.0' in lines


@pytest.mark.parametrize("path", ["/v1/models/s", "/", "/metrics/", "/favicon.ico"])
def test_http_serves_only_metrics(monitored, path):
    _, read = monitored
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(path)


@pytest.mark.parametrize(
    "accept",
    [
        # Prometheus 2 and 3, a browser, and one that does not say.
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8,*/*;q=0.1",
        "text/html",
        "",
    ],
)
def test_names_keep_their_colons_whoever_asks(monitored, accept):
    server, read = monitored
    with connect(server) as channel:
        stub(channel).Predict(request())
    lines = read(headers={"Accept": accept}).splitlines()
    assert ':tensorflow:serving:request_count{model_name="s",status="OK"} 1.0' in lines


def test_frees_the_metrics_port(monitored):
    server, read = monitored
    server.stop()
    with pytest.raises(urllib.error.URLError):
        read()

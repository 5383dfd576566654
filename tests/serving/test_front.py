"""The nginx in front of a server, run as it is, between strangers and the real thing."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import signal
import subprocess
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
import servers
import trustme
from deployment import SERVING
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from branchy_tf.errors import ServerError
from branchy_tf.serving import EarlyExitClient, Tls, wire

MODEL = servers.MODEL
CONFIG = (SERVING / "front/nginx.conf").read_text(encoding="utf-8")
TOKEN = "0123456789abcdef" * 4


@dataclasses.dataclass
class Front:
    """A running nginx.

    Attributes:
        address: where it listens.
        folder: of its configuration; certificates lie in secrets/.
        process: nginx itself.
    """

    address: str
    folder: pathlib.Path
    process: subprocess.Popen

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def tls(self, who: str | None = "client") -> Tls:
        pair = (None, None)
        if who is not None:
            pair = tuple(self.folder / f"{who}.{kind}" for kind in ("pem", "key"))
        return Tls(self.folder / "secrets/ca.pem", *pair, server_name="front.test")

    def channel(self, who: str | None = "client") -> grpc.Channel:
        """A connection of its own."""
        options = [
            ("grpc.ssl_target_name_override", "front.test"),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.secure_channel(self.address, self.tls(who).credentials(), options)


def start(folder: pathlib.Path, backend: str, **changes: str) -> Front:
    """Starts the front that serving/ holds, less its addresses, before a server."""
    if not shutil.which("nginx"):
        pytest.skip("nginx is not on PATH (apt-get install nginx)")
    port = servers.free_port()
    replaced = {
        "server branchy-serving:8500;": f"server {backend};",
        "listen 8443 ": f"listen 127.0.0.1:{port} ",
        " /tmp/": f" {folder}/",
        **changes,
    }
    text = CONFIG
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    secrets = folder / "secrets"
    secrets.mkdir()
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(secrets / "ca.pem")
    for issuer, name, path in (
        (authority, "front.test", secrets / "server"),
        (authority, "client.test", folder / "client"),
        (other, "client.test", folder / "stranger"),
    ):
        issued = issuer.issue_cert(name, common_name=name)
        issued.cert_chain_pems[0].write_to_path(path.with_suffix(".pem"))
        issued.private_key_pem.write_to_path(path.with_suffix(".key"))
    (secrets / "tokens.map").write_text(f'"Bearer {TOKEN}" "alice";\n')
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "nginx", "-p", folder, "-c", folder / "nginx.conf",
                "-g", f"daemon off; pid {folder}/pid;",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    front = Front(f"127.0.0.1:{port}", folder, process)
    servers.until(lambda: (folder / "pid").exists() or process.poll() is not None, 20)
    assert process.poll() is None, front.log
    return front


def stop(front: Front) -> None:
    front.process.send_signal(signal.SIGTERM)
    front.process.wait(30)


@pytest.fixture(scope="module")
def front(served, tmp_path_factory):
    """Before the server that all tests share."""
    found = start(tmp_path_factory.mktemp("front"), served.address)
    yield found
    stop(found)


@pytest.fixture
def before_fake(fake, tmp_path):
    """Starts a front before the fake server, with other settings."""
    fronts = []

    def begin(**changes: str) -> Front:
        fronts.append(start(tmp_path, fake.address, **changes))
        return fronts[-1]

    yield begin
    for found in fronts:
        stop(found)


def images_of(rows: int = 2) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["images"].dtype = 4
    for size in (rows, 28, 28, 1):
        request.inputs["images"].tensor_shape.dim.add(size=size)
    request.inputs["images"].tensor_content = bytes(784 * rows)
    return request


def predict(channel: grpc.Channel, request=None, **keywords):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(request or images_of(), timeout=30, **keywords)


def refusal(call, *arguments, **keywords) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    return caught.value.code().name, caught.value.details()


def test_answers_are_the_same_through_the_front(front, client, digits, halving):
    with EarlyExitClient(front.address, MODEL, tls=front.tls(), timeout=60) as through:
        assert through.wait_until_ready() == 1
        for ask in (
            lambda c: c.predict(digits),
            lambda c: c.predict(digits, [halving]),
            lambda c: c.predict(digits[:1], [np.inf]),
        ):
            direct, fronted = ask(client), ask(through)
            for name in ("probabilities", "labels", "exits", "scores"):
                np.testing.assert_array_equal(
                    getattr(fronted, name), getattr(direct, name)
                )
            assert fronted.model_version == direct.model_version
        np.testing.assert_array_equal(
            through.all_exits(digits).scores, client.all_exits(digits).scores
        )


def test_a_certificate_or_a_token_is_needed(front):
    with front.channel() as channel:
        assert len(predict(channel).outputs) == 3
    with front.channel(None) as channel:
        for scheme in ("Bearer", "bearer"):
            metadata = [("authorization", f"{scheme} {TOKEN}")]
            assert len(predict(channel, metadata=metadata).outputs) == 3
        for wrong in (None, "", "Bearer ", f"Bearer {TOKEN}0", f"Basic {TOKEN}", TOKEN):
            metadata = [] if wrong is None else [("authorization", wrong)]
            code, details = refusal(predict, channel, metadata=metadata)
            assert code == "UNAUTHENTICATED"
            assert "No certificate and no token" in details
    # One that somebody else signed is none, whatever it says.
    with front.channel("stranger") as channel:
        assert refusal(predict, channel)[0] == "UNAUTHENTICATED"
    log = servers.until(lambda: front.log if '"alice"' in front.log else None)
    assert '"CN=client.test' in log
    assert TOKEN not in log


def test_without_tls_nothing_is_answered(front):
    with grpc.insecure_channel(front.address) as channel:
        assert refusal(predict, channel)[0] == "UNAVAILABLE"


def test_tokens_stay_at_the_front(fake, before_fake):
    seen = []
    answer = fake.answer
    fake.answer = lambda request, context: (
        seen.append(dict(context.invocation_metadata())),
        answer(request, context),
    )[1]
    front = before_fake()
    with front.channel(None) as channel:
        metadata = [("authorization", f"Bearer {TOKEN}"), ("trace", "7")]
        predict(channel, metadata=metadata)
    (headers,) = seen
    assert headers["trace"] == "7"
    assert TOKEN not in str(headers)


def test_a_client_without_a_certificate_is_told(front, digits):
    with (
        EarlyExitClient(front.address, MODEL, tls=front.tls(None)) as client,
        pytest.raises(ServerError, match="No certificate and no token") as caught,
    ):
        client.predict(digits)
    assert caught.value.code == "UNAUTHENTICATED"


def test_three_methods_are_let_through(front):
    with front.channel() as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        wanted = get_model_status_pb2.GetModelStatusRequest()
        wanted.model_spec.name = MODEL
        (found,) = models.GetModelStatus(wanted, timeout=30).model_version_status
        assert found.state == wire.AVAILABLE
        change = model_management_pb2.ReloadConfigRequest()
        code, details = refusal(models.HandleReloadConfigRequest, change, timeout=30)
        assert code == "UNIMPLEMENTED"
        assert "lets Predict, GetModelMetadata and GetModelStatus through" in details
        for path in (
            "/tensorflow.serving.PredictionService/Classify",
            "/tensorflow.serving.PredictionService/Predict/",
            "/tensorflow.serving.predictionservice/predict",
            "/tensorflow.serving.SessionService/SessionRun",
            "/grpc.health.v1.Health/Check",
            "/tensorflow.ProfilerService/Profile",
            "/v1/models/branchy_lenet",
            "/",
        ):
            call = channel.unary_unary(path)
            assert refusal(call, b"", timeout=30)[0] == "UNIMPLEMENTED", path


@pytest.mark.parametrize("rows", [5_400, 50_000])
def test_a_message_that_is_too_large_is_explained(front, rows):
    images = np.zeros((rows, 28, 28, 1), np.uint8)
    with (
        EarlyExitClient(front.address, MODEL, tls=front.tls(), max_rows=rows) as client,
        pytest.raises(ServerError, match=r"send fewer .*larger than the 4 MB") as caught,
    ):
        client.predict(images)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_the_largest_message_that_is_no_larger_passes(front):
    with EarlyExitClient(front.address, MODEL, tls=front.tls(), timeout=60) as client:
        # More than 4 MB, which the client sends in parts.
        assert len(client.predict(np.zeros((5_400, 28, 28, 1), np.uint8))) == 5_400


def test_compressed_messages_are_refused(front):
    with front.channel() as channel:
        request = images_of(5_000)
        code, details = refusal(
            predict, channel, request, compression=grpc.Compression.Gzip
        )
    assert (code, "no compressed messages" in details) == ("UNIMPLEMENTED", True)


def test_too_many_requests_are_refused(before_fake):
    front = before_fake(**{"rate=100r/s": "rate=1r/m", "burst=100": "burst=4"})
    with front.channel() as channel, front.channel(None) as other:
        for _ in range(5):
            predict(channel)
        code, details = refusal(predict, channel)
        # Each client has its own.
        predict(other, metadata=[("authorization", f"Bearer {TOKEN}")])
    assert code == "RESOURCE_EXHAUSTED"
    assert "More requests than the front takes" in details


def test_too_many_at_once_are_refused(fake, before_fake):
    answer = fake.answer
    fake.answer = lambda *request: (fake.over.wait(10), answer(*request))[1]
    front = before_fake(**{"limit_conn at_once 32": "limit_conn at_once 2"})
    with front.channel() as channel, front.channel() as other:
        stub = prediction_service_pb2_grpc.PredictionServiceStub
        held = [stub(channel).Predict.future(images_of(), timeout=30) for _ in range(2)]
        servers.until(lambda: len(fake.requests) == 2)
        code, details = refusal(predict, other)
        assert (code, "one client" in details) == ("RESOURCE_EXHAUSTED", True)
        fake.over.set()
        assert all(len(call.result(30).outputs) == 3 for call in held)


def test_a_server_that_does_not_answer_is_given_up(fake, before_fake):
    answer = fake.answer
    fake.answer = lambda *request: (fake.over.wait(20), answer(*request))[1]
    front = before_fake(**{"grpc_read_timeout 30s": "grpc_read_timeout 1s"})
    with front.channel() as channel:
        code, details = refusal(predict, channel)
    assert (code, "waited too long" in details) == ("DEADLINE_EXCEEDED", True)


def test_a_client_that_falls_silent_is_given_up(fake, before_fake):
    front = before_fake(**{"client_body_timeout 10s": "client_body_timeout 1s"})
    over = threading.Event()

    def silence():
        over.wait(20)
        yield b""

    try:
        with front.channel() as channel:
            call = channel.stream_unary(wire.PREDICT)
            # nginx ends such a call without a word.
            assert refusal(call, silence(), timeout=15)[0] == "INTERNAL"
    finally:
        over.set()
    assert not fake.requests


def test_a_connection_that_has_served_its_time_loses_no_request(before_fake):
    front = before_fake(**{"keepalive_requests 10000": "keepalive_requests 20"})
    with front.channel() as channel, futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: predict(channel), range(100)))
    assert all(len(answer.outputs) == 3 for answer in answers)


def test_tokens_are_read_again(before_fake):
    front, other = before_fake(), TOKEN[::-1]
    (front.folder / "secrets/tokens.map").write_text(f'"Bearer {other}" "bob";\n')

    def code(token):
        # A worker that is leaving goes on with the connections that it has.
        with front.channel(None) as channel:
            try:
                predict(channel, metadata=[("authorization", f"Bearer {token}")])
            except grpc.RpcError as error:
                return error.code().name
        return "OK"

    assert (code(TOKEN), code(other)) == ("OK", "UNAUTHENTICATED")
    front.process.send_signal(signal.SIGHUP)
    servers.until(lambda: (code(TOKEN), code(other)) == ("UNAUTHENTICATED", "OK"))


def test_a_server_that_has_gone_is_told(tmp_path):
    front = start(tmp_path, f"127.0.0.1:{servers.free_port()}")
    try:
        with front.channel() as channel:
            code, details = refusal(predict, channel)
        assert (code, "reaches no server" in details) == ("UNAVAILABLE", True)
    finally:
        stop(front)


def test_the_servers_own_refusals_come_through(front, digits):
    with front.channel() as channel:
        request = images_of()
        request.model_spec.name = "vgg"
        assert refusal(predict, channel, request)[0] == "NOT_FOUND"
        garbage = channel.unary_unary(wire.PREDICT)
        assert refusal(garbage, b"\xff" * 9, timeout=30)[0] == "INTERNAL"


@pytest.mark.embedded_only("nginx cannot stop them, and they would end TF Serving")
@pytest.mark.parametrize(
    ("name", "dtype", "sizes"),
    [
        ("thresholds", 1, (2**36, 1)),
        ("images", 4, (400_000, 28, 28, 1)),
        ("images", 4, (1_369_568, 28, 28, 1)),
        ("images", 20, (1, 28, 28, 1)),
    ],
)
def test_small_requests_that_hurt_pass_the_front(front, served, name, dtype, sizes):
    """It does not look into messages: what the server says of them comes back."""
    request = images_of()
    request.model_spec.signature_name = "early_exit"
    tensor = request.inputs[name]
    tensor.Clear()
    tensor.dtype = dtype
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    if dtype != 20:
        (tensor.float_val if dtype == 1 else tensor.int_val).append(1)
    with front.channel() as channel:
        code, details = refusal(predict, channel, request)
        assert code == "INVALID_ARGUMENT"
        assert name in details
        assert len(predict(channel).outputs) == 3
    assert served.alive


def test_many_clients_get_their_own_answers(front, predictor, digits, halving):
    expected = predictor.predict(digits, [halving])
    with EarlyExitClient(front.address, MODEL, tls=front.tls(), timeout=60) as client:

        def ask(i: int) -> np.ndarray:
            answer = client.predict(digits[i : i + 2], [halving])
            np.testing.assert_allclose(
                answer.scores, expected.scores[i : i + 2], atol=1e-5
            )
            return answer.exits

        with futures.ThreadPoolExecutor(8) as pool:
            found = np.concatenate(list(pool.map(ask, range(0, 64, 2))))
    np.testing.assert_array_equal(found, expected.exits)

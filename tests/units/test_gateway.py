"""To clients a gateway is one model of TF Serving."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import servers
from grpc_health.v1 import health_pb2, health_pb2_grpc

from branchy_tf import EarlyExitPredictor
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient, compression
from branchy_tf.serving.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def config(exact_dir, device_server, cloud_server, tmp_path_factory):
    """Both units on servers."""
    path = tmp_path_factory.mktemp("config") / "cascade.yaml"
    path.write_text(
        "model: branchy_lenet\n"
        "units:\n"
        f"  device: {{servers: ['localhost:{device_server.port}'], next: cloud}}\n"
        f"  cloud: {{servers: 'localhost:{cloud_server.port}'}}\n"
    )
    return path


@pytest.fixture(scope="module")
def served(config, gateway):
    with gateway(config) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with EarlyExitClient(served.address, "branchy_lenet") as client:
        client.wait_until_ready()
        yield client


@pytest.fixture(scope="module")
def predictor(network, policy):
    return EarlyExitPredictor(network, policy)


@pytest.mark.parametrize("limits", [None, [0.0], [0.3], [np.inf]])
def test_answers_as_the_whole_model(client, predictor, hard, limits):
    answer, expected = client.predict(hard, limits), predictor.predict(hard, limits)
    servers.assert_same(answer, expected)
    assert answer.model_version == 1
    assert answer.degraded is not None
    assert not answer.degraded.any()


def test_each_row_has_its_own_threshold(client, predictor, hard):
    limits = np.linspace(0, 1, len(hard), dtype=np.float32)[:, None]
    servers.assert_same(client.predict(hard, limits), predictor.predict(hard, limits))


def test_describes_one_model(client):
    inputs, exits = client.describe()
    assert {name: str(spec) for name, spec in inputs.items()} == {
        "images": "uint8 [B, 28, 28, 1]"
    }
    assert exits == 2


def test_large_batches_are_answered(client, predictor, mnist_5k):
    images = np.tile(mnist_5k.test.images, (2, 1, 1, 1))
    servers.assert_same(client.predict(images, [0.1]), predictor.predict(images, [0.1]))


def test_confident_rows_cost_no_feature_bytes(served, client, hard):
    def received() -> float:
        return served.metric(
            "branchy_cascade_bytes_total", unit="device", direction="received"
        )

    def cost(limits) -> float:
        before = received()
        client.predict(hard, limits)
        return (received() - before) / len(hard)

    # Ten probabilities, exit, score and onward, and names.
    assert cost([np.inf]) < 64
    assert cost([0.0]) > 14 * 14 * 5 * 4


def test_only_rows_that_go_on_reach_the_next_unit(served, client, predictor, hard):
    before = served.metric("branchy_cascade_rows_total", unit="cloud")
    answer = client.predict(hard, [0.02])
    went_on = int((answer.exits == 1).sum())
    assert 0 < went_on < len(hard)
    after = served.metric("branchy_cascade_rows_total", unit="cloud")
    assert after - before == went_on


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_compressed_requests_get_the_same_answers(cut_dir, hard, gateway, tmp_path, how):
    def run(way: str):
        config = tmp_path / f"{way}.yaml"
        config.write_text(
            "model: net\nunits:\n"
            f"  device: {{path: {cut_dir / 'device'}, next: cloud}}\n"
            f"  cloud: {{servers: 'localhost:{server.port}', compression: {way}}}\n"
        )
        with (
            gateway(config) as served,
            EarlyExitClient(served.address, "net", timeout=30) as client,
        ):
            answer = client.predict(hard, [0.0])
            assert not answer.degraded.any()
            return answer, served.metric(
                "branchy_cascade_bytes_total", unit="cloud", direction="sent"
            )

    with EmbeddedServer(cut_dir / "cloud", port=0) as server:
        plain, plain_bytes = run("none")
        packed, packed_bytes = run(how)
    np.testing.assert_array_equal(plain.probabilities, packed.probabilities)
    if how == "zstd":
        assert packed_bytes < 0.8 * plain_bytes


def test_a_damaged_zstd_message_is_refused(cloud_server):
    with grpc.insecure_channel(f"localhost:{cloud_server.port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for content in (b"", b"no zstd", compression.prepare("zstd", bytes(2**27))[0]):
            with pytest.raises(grpc.RpcError) as caught:
                call(content, metadata=(("branchy-encoding", "zstd"),))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_version_that_the_first_unit_lacks_is_not_found(served, hard):
    with (
        EarlyExitClient(served.address, "branchy_lenet", version=7) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.predict(hard)
    assert caught.value.code == "NOT_FOUND"


def test_another_name_is_not_found(served, hard):
    with (
        EarlyExitClient(served.address, "lenet") as client,
        pytest.raises(ServerError, match="branchy_lenet") as caught,
    ):
        client.predict(hard)
    assert caught.value.code == "NOT_FOUND"


def test_says_that_it_has_no_all_exits(client, hard):
    with pytest.raises(BranchyError, match="has no all_exits signature"):
        client.all_exits(hard)


def test_health_and_status(served, client):
    assert client.wait_until_ready(5) == 1
    with grpc.insecure_channel(served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        servers.until(
            lambda: (
                stub.Check(health_pb2.HealthCheckRequest()).status
                == health_pb2.HealthCheckResponse.SERVING
            )
        )


def raw_request(images, thresholds=None, signature="early_exit"):
    """A PredictRequest that no client of ours would send."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "branchy_lenet"
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    if thresholds is not None:
        request.inputs["thresholds"].CopyFrom(tf.make_tensor_proto(thresholds))
    return request


def ask(served, request):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(served.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return stub.Predict(request, timeout=30)


@pytest.mark.parametrize(
    ("images", "thresholds", "said"),
    [
        (np.zeros((2, 14, 14, 1), np.uint8), None, "uint8 [2, 14, 14, 1]"),
        (np.zeros((28, 28, 1), np.uint8), None, "uint8 [28, 28, 1]"),
        (np.zeros((2, 28, 28, 1), np.float32), None, "float32 [2, 28, 28, 1]"),
        (np.zeros((2, 28, 28, 1), np.uint8), np.zeros((3, 1), np.float32), "[3, 1]"),
        (np.zeros((2, 28, 28, 1), np.uint8), np.zeros((2, 2), np.float32), "[2, 2]"),
        (np.zeros((2, 28, 28, 1), np.uint8), np.zeros((2, 1)), "float64"),
    ],
)
def test_refuses_requests_that_do_not_fit(served, images, thresholds, said):
    with pytest.raises(grpc.RpcError) as caught:
        ask(served, raw_request(images, thresholds))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert said in caught.value.details()


def test_refuses_a_message_that_is_none(served):
    with grpc.insecure_channel(served.address) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INTERNAL


def test_an_empty_batch_has_an_empty_answer(served):
    response = ask(served, raw_request(np.zeros((0, 28, 28, 1), np.uint8)))
    shapes = {
        name: [side.size for side in value.tensor_shape.dim]
        for name, value in response.outputs.items()
    }
    assert shapes == {
        "probabilities": [0, 10], "exit": [0], "score": [0], "degraded": [0]
    }  # fmt: skip


def test_nan_thresholds_let_no_row_leave(served, hard):
    limits = np.full((1, 1), np.nan, np.float32)
    response = ask(served, raw_request(hard, limits))
    import tensorflow as tf

    assert (tf.make_ndarray(response.outputs["exit"]) == 1).all()

from __future__ import annotations

import pathlib
import re
import time
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import pytest
import servers
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from branchy_tf.errors import BranchyError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer

MODEL = servers.MODEL


@pytest.fixture(scope="module")
def channel(served):
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(served.address, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def ask(stub, signature="early_exit", outputs=(), spec=None, **inputs):
    """Predict with TF Serving's own classes; `{output: array}`."""
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = MODEL
    request.model_spec.signature_name = signature
    for name, value in (spec or {}).items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    for name, value in inputs.items():
        if not hasattr(value, "tensor_content"):
            value = tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(value)
    response = stub.Predict(request, timeout=60)
    assert response.model_spec.name == MODEL
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == signature
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def status(call, *arguments, **keywords):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    assert caught.value.details()
    return caught.value.code().name


def tensor(**fields):
    """A TensorProto as a stranger may write it."""
    sizes = fields.pop("sizes", [1, 28, 28, 1])
    proto = tf.make_tensor_proto(np.uint8(0))
    proto.Clear()
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_shape.unknown_rank = fields.pop("unknown_rank", False)
    for name, value in ({"dtype": tf.uint8.as_datatype_enum} | fields).items():
        if isinstance(value, list):
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return proto


def test_omitted_thresholds_are_the_calibrated_ones(stub, predictor, digits, calibrated):
    expected = predictor.predict(digits)
    left_out = ask(stub, images=digits)
    assert set(left_out) == {"probabilities", "exit", "score"}
    given = ask(stub, images=digits, thresholds=np.float32([calibrated]))
    default = ask(stub, "serving_default", images=digits)
    for answer in (left_out, given, default):
        np.testing.assert_array_equal(answer["exit"], expected.exits)
        np.testing.assert_allclose(answer["score"], expected.scores, atol=1e-5)
    assert set(expected.exits) == {0, 1}


def test_the_default_signature_is_serving_default(stub, digits):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(digits))
    response = stub.Predict(request, timeout=60)
    assert response.model_spec.signature_name == "serving_default"
    assert len(response.outputs) == 3


def test_all_exits_agree_with_the_predictor(stub, predictor, digits):
    answer = ask(stub, "all_exits", images=digits)
    probabilities, scores = predictor.all_exits(digits)
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-5)


def test_nothing_exits_early_at_nan_or_negative_thresholds(stub, digits):
    limits = np.float32([[np.nan], [-1], [0], [np.inf]])
    answer = ask(stub, images=digits[:4], thresholds=limits)
    assert answer["exit"].tolist() == [1, 1, 1, 0]


def test_the_filter_chooses_outputs(stub, digits):
    every = ask(stub, images=digits)
    for names in (["exit"], ["score", "exit"]):
        some = ask(stub, outputs=names, images=digits)
        assert set(some) == set(names)
        np.testing.assert_array_equal(some["exit"], every["exit"])


@pytest.mark.parametrize("outputs", [["logits"], ["exit", "exit"], ["exit", ""]])
def test_a_wrong_filter_is_invalid(stub, digits, outputs):
    assert status(ask, stub, outputs=outputs, images=digits) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"name": "vgg"}, "NOT_FOUND"),
        ({"version": 2}, "NOT_FOUND"),
        ({"version": -1}, "NOT_FOUND"),
        ({"name": ""}, "INVALID_ARGUMENT"),
        ({"version_label": "stable"}, "INVALID_ARGUMENT"),
        ({"signature_name": "predict"}, "FAILED_PRECONDITION"),
        # The loader's own; no request may run it.
        ({"signature_name": "__saved_model_init_op"}, "INVALID_ARGUMENT"),
    ],
)
def test_unknown_models_and_signatures(stub, digits, spec, code):
    assert status(ask, stub, spec=spec, images=digits) == code


def test_the_version_served_may_be_named(stub, digits):
    assert len(ask(stub, spec={"version": 1}, images=digits)["exit"]) == 64


def test_a_request_without_model_spec_is_invalid(stub, models):
    request = predict_pb2.PredictRequest()
    assert status(stub.Predict, request) == "INVALID_ARGUMENT"
    request = get_model_status_pb2.GetModelStatusRequest()
    assert status(models.GetModelStatus, request) == "INVALID_ARGUMENT"
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        metadata_field=["signature_def"]
    )
    assert status(stub.GetModelMetadata, request) == "INVALID_ARGUMENT"


IMAGE = np.zeros((2, 28, 28, 1), np.uint8)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"thresholds": np.float32([[1]])},
        {"pixels": IMAGE},
        {"images": IMAGE, "pixels": IMAGE},
        {"images": IMAGE.astype(np.float32)},
        {"images": IMAGE.astype(np.int64)},
        {"images": IMAGE, "thresholds": np.float64([[1]])},
        {"images": IMAGE[0]},
        {"images": IMAGE[None]},
        {"images": np.uint8(1)},
        {"images": np.zeros((2, 14, 28, 1), np.uint8)},
        {"images": np.zeros((2, 28, 14, 1), np.uint8)},
        {"images": np.zeros((2, 28, 28, 3), np.uint8)},
        {"images": np.zeros((2, 28, 28, 0), np.uint8)},
        {"images": IMAGE, "thresholds": np.float32(1)},
        {"images": IMAGE, "thresholds": np.float32([1, 1])},
        {"images": IMAGE, "thresholds": np.float32([[1, 1]])},
        {"images": IMAGE, "thresholds": np.float32([[1], [1], [1]])},
        {"images": IMAGE, "thresholds": np.zeros((0, 1), np.float32)},
        {"images": IMAGE, "thresholds": np.zeros((2, 0), np.float32)},
    ],
)
def test_wrong_inputs_are_invalid(stub, served, inputs):
    assert status(ask, stub, **inputs) == "INVALID_ARGUMENT"
    assert served.alive
    assert len(ask(stub, images=IMAGE)["exit"]) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"sizes": [-1, 28, 28, 1], "tensor_content": bytes(784)},
        {"sizes": [1, -28, -28, 1], "tensor_content": bytes(784)},
        {"sizes": [], "unknown_rank": True, "tensor_content": bytes(784)},
        {"tensor_content": bytes(783)},
        {"tensor_content": bytes(785)},
        {"tensor_content": bytes(2 * 784)},
        {"sizes": [2**40, 28, 28, 1], "tensor_content": bytes(784)},
        # Their product overflows to 0.
        {"sizes": [2**32, 2**32, 1, 1], "int_val": [1]},
        {"sizes": [2**62, 0, 28, 1]},
        {"sizes": [1] * 300, "tensor_content": bytes(1)},
        {"sizes": [1] * 100, "tensor_content": bytes(1)},
        {"dtype": 0, "tensor_content": bytes(784)},
        {"dtype": 9999, "tensor_content": bytes(784)},
        {"dtype": 104, "tensor_content": bytes(784)},
        {"dtype": tf.string.as_datatype_enum, "string_val": [b"a"] * 784},
    ],
)
def test_malformed_tensors_are_invalid(stub, served, fields):
    assert status(ask, stub, images=tensor(**fields)) == "INVALID_ARGUMENT"
    assert served.alive
    assert len(ask(stub, images=IMAGE)["exit"]) == 2


@pytest.mark.embedded_only("TF Serving takes the memory, or aborts (serving/README.md)")
@pytest.mark.parametrize(
    "inputs",
    [
        # From 60 MB to terabytes, in 70 bytes.
        {"thresholds": {"dtype": 1, "sizes": [2**36, 1], "float_val": [0.5]}},
        {"thresholds": {"dtype": 1, "sizes": [2**36, 1]}},
        {"images": {"sizes": [2**40, 28, 28, 1], "int_val": [1]}},
        {"images": {"sizes": [400_000, 28, 28, 1], "int_val": [1]}},
        {"images": {"sizes": [1_369_568, 28, 28, 1], "int_val": [1]}},
        {"images": {"sizes": [80_000, 28, 28, 1], "int_val": [1]}},
        {"images": {"sizes": [400_000, 28, 28, 1]}},
        # As many values as an image has stand for no more than that.
        {"images": {"sizes": [400_000, 28, 28, 1], "int_val": [1] * 784}},
        {"images": {"dtype": tf.resource.as_datatype_enum}},
        {"images": {"dtype": tf.variant.as_datatype_enum}},
    ],
)
def test_rejects_small_requests_that_declare_huge_tensors(stub, served, inputs):
    images = tf.make_tensor_proto(IMAGE)
    memory, start = peak_memory(served), time.monotonic()
    sent = {"images": images} | {name: tensor(**f) for name, f in inputs.items()}
    assert status(ask, stub, **sent) == "INVALID_ARGUMENT"
    assert time.monotonic() - start < 2
    assert peak_memory(served) - memory < 50e6
    assert len(ask(stub, images=IMAGE)["exit"]) == 2


def peak_memory(server):
    """Bytes that a server on this machine has held at most."""
    text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024


GREY = 7 * np.ones((1, 28, 28, 1), np.uint8)
STEPS = np.minimum(np.arange(784), 255).astype(np.uint8).reshape(1, 28, 28, 1)


@pytest.mark.parametrize(
    ("fields", "array"),
    [
        ({"int_val": STEPS.ravel().tolist()}, STEPS),
        # One value stands for all, and none for zeros.
        ({"int_val": [7]}, GREY),
        ({}, 0 * GREY),
        # The last value stands for those that are missing.
        ({"int_val": list(range(256))}, STEPS),
        # Those too many are left out.
        ({"int_val": [7] * 784 + [9]}, GREY),
        ({"tensor_content": GREY.tobytes(), "int_val": [9]}, GREY),
        # Numbers wrap.
        ({"int_val": [256 + 7] * 784}, GREY),
        ({"int_val": [7 - 256]}, GREY),
        # The rank is known when there are sizes, and so is how many bytes no rows have.
        ({"unknown_rank": True, "tensor_content": GREY.tobytes()}, GREY),
        ({"sizes": [0, 28, 28, 1], "tensor_content": bytes(784)}, GREY[:0]),
        ({"sizes": [0, 28, 28, 1], "int_val": [1, 2]}, GREY[:0]),
        # Another type's field says nothing.
        ({"float_val": [7.0]}, 0 * GREY),
    ],
)
def test_odd_tensors_are_read_as_the_engine_reads_them(stub, fields, array):
    odd = ask(stub, "all_exits", images=tensor(**fields))
    plain = ask(stub, "all_exits", images=array)
    for name in plain:
        np.testing.assert_allclose(odd[name], plain[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.0, np.inf], [0, np.inf, np.inf, np.inf]),
        ([np.inf], [np.inf] * 4),
        ([], [0] * 4),
        ([np.inf, 0.0, np.inf, 0.0, np.inf, np.inf], [np.inf, 0, np.inf, 0]),
    ],
)
def test_thresholds_too_few_or_too_many_are_read_as_the_engine_reads_them(
    stub, digits, values, limits
):
    sent = tensor(dtype=1, sizes=[4, 1], float_val=values)
    answer = ask(stub, images=digits[:4], thresholds=sent)
    assert answer["exit"].tolist() == [0 if limit else 1 for limit in limits]


@pytest.mark.parametrize("signature", ["early_exit", "serving_default", "all_exits"])
def test_an_empty_batch_gives_empty_results(stub, signature):
    answer = ask(stub, signature, images=IMAGE[:0])
    shapes = {name: value.shape for name, value in answer.items()}
    assert shapes == (
        {"probabilities": (0, 2, 10), "scores": (0, 2)}
        if signature == "all_exits"
        else {"probabilities": (0, 10), "exit": (0,), "score": (0,)}
    )


def test_metadata_tells_the_signatures(stub, calibrated):
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        metadata_field=["signature_def"]
    )
    request.model_spec.name = MODEL
    response = stub.GetModelMetadata(request)
    assert response.model_spec.version.value == 1
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    # TF Serving lists the loader's own too.
    names = set(found.signature_def) - {"__saved_model_init_op"}
    assert names == {"early_exit", "serving_default", "all_exits"}
    signature = found.signature_def["early_exit"]
    default = tf.make_ndarray(signature.defaults["thresholds"])
    np.testing.assert_allclose(default, [calibrated])

    request.model_spec.name = "vgg"
    assert status(stub.GetModelMetadata, request) == "NOT_FOUND"
    for fields in ([], ["weights"]):
        other = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        other.model_spec.name = MODEL
        assert status(stub.GetModelMetadata, other) == "INVALID_ARGUMENT"


def test_status_tells_what_is_available(models):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL
    for version in (None, 1):
        if version:
            request.model_spec.version.value = version
        (found,) = models.GetModelStatus(request).model_version_status
        assert found.version == 1
        assert found.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
        assert found.status.error_code == 0
    request.model_spec.version.value = 9
    assert status(models.GetModelStatus, request) == "NOT_FOUND"
    request.model_spec.Clear()
    request.model_spec.name = "vgg"
    assert status(models.GetModelStatus, request) == "NOT_FOUND"


@pytest.mark.embedded_only("TF Serving's health service is off unless a flag says so")
def test_health_is_serving(channel):
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("Classify", classification_pb2.ClassificationRequest),
        ("Regress", regression_pb2.RegressionRequest),
    ],
)
@pytest.mark.parametrize("signature", ["", "early_exit", "all_exits", "predict"])
def test_no_signature_takes_tf_examples(stub, method, kind, signature):
    request = kind()
    call = getattr(stub, method)
    assert status(call, request) == "INVALID_ARGUMENT"  # no model_spec
    request.model_spec.name = MODEL
    request.model_spec.signature_name = signature
    features = request.input.example_list.examples.add().features.feature
    features["x"].float_list.value.append(1.0)
    assert status(call, request) == "INVALID_ARGUMENT"
    request.model_spec.name = "vgg"
    assert status(call, request) == "NOT_FOUND"


@pytest.mark.embedded_only("TF Serving has tasks for it, and ours has none")
def test_other_methods_are_unimplemented(stub):
    request = inference_pb2.MultiInferenceRequest()
    assert status(stub.MultiInference, request) == "UNIMPLEMENTED"


def test_threads_get_their_own_answers(stub, predictor, digits, halving):
    expected = predictor.predict(digits, [halving])
    _, scores = predictor.all_exits(digits)

    def one(i):
        rows = slice(i % 60, i % 60 + 1 + i % 4)
        if i % 3 == 0:
            answer = ask(stub, images=digits[rows], thresholds=np.float32([[halving]]))
            np.testing.assert_allclose(answer["score"], expected.scores[rows], atol=1e-5)
        elif i % 3 == 1:
            answer = ask(stub, "all_exits", images=digits[rows])
            np.testing.assert_allclose(answer["scores"], scores[rows], atol=1e-5)
        else:
            assert status(ask, stub, images=digits[rows, :9]) == "INVALID_ARGUMENT"
        return True

    with futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(200)))


def test_rejects_a_port_in_use(served, exported):
    port = int(served.address.rpartition(":")[2])
    with pytest.raises(BranchyError, match=f"listen on port {port}"):
        EmbeddedServer(exported, MODEL, port)


def test_rejects_a_missing_folder(tmp_path):
    with pytest.raises(BranchyError, match="There is no folder"):
        EmbeddedServer(tmp_path / "missing", MODEL, port=0)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_listens_on_ipv6(exported, digits, tmp_path, host):
    if not servers.has_ipv6():
        pytest.skip("this machine has no IPv6")
    monitoring = tmp_path / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true }")
    options = {"rest_api_port": servers.free_port(), "monitoring_config_file": monitoring}
    with (
        EmbeddedServer(exported, MODEL, 0, host=host, **options) as server,
        EarlyExitClient(f"[::1]:{server.port}", MODEL) as client,
    ):
        assert len(client.predict(digits)) == 64
        url = f"http://[::1]:{options['rest_api_port']}/monitoring/prometheus/metrics"
        with urllib.request.urlopen(url) as page:
            assert b"request_count" in page.read()
        with pytest.raises(BranchyError, match=r"Cannot listen on"):
            EmbeddedServer(exported, MODEL, server.port, host=host)

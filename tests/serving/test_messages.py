from __future__ import annotations

import numpy as np
import pytest

from branchy_tf import checks
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import messages, wire
from branchy_tf.serving.messages import Signature, Target

TARGET = Target("host:1", "lenet")
ROWS, EXITS, CLASSES = 4, 3, 5
SIGNATURE = Signature(
    version=7,
    inputs={"images": checks.TensorSpec((-1, 2), np.uint8)},
    num_exits=EXITS,
    classes=CLASSES,
    names=("all_exits", "early_exit", "serving_default"),
)
PREDICTIONS = {
    "probabilities": np.full((ROWS, CLASSES), 0.2, np.float32),
    "exit": np.arange(ROWS, dtype=np.int32) % EXITS,
    "score": np.linspace(0, 1, ROWS, dtype=np.float32),
}
ALL = {
    "probabilities": np.full((ROWS, EXITS, CLASSES), 0.2, np.float32),
    "scores": np.ones((ROWS, EXITS), np.float32),
}


def response(outputs):
    message = wire.PredictResponse()
    message.model_spec.version.value = 7
    for name, array in outputs.items():
        wire.fill(message.outputs[name], array)
    return message


def with_value(array, value):
    array = array.copy()
    array.flat[3] = value
    return array


def test_predictions_are_read():
    read = messages.read_predictions(TARGET, response(PREDICTIONS), ROWS, SIGNATURE)
    np.testing.assert_array_equal(read.probabilities, PREDICTIONS["probabilities"])
    np.testing.assert_array_equal(read.exits, PREDICTIONS["exit"])
    np.testing.assert_array_equal(read.scores, PREDICTIONS["score"])
    assert read.model_version == 7


def test_all_exits_are_read():
    read = messages.read_all_exits(TARGET, response(ALL), ROWS, SIGNATURE)
    np.testing.assert_array_equal(read.probabilities, ALL["probabilities"])
    np.testing.assert_array_equal(read.scores, ALL["scores"])
    assert read.model_version == 7


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("probabilities", None, "no probabilities"),
        ("exit", None, "no exit"),
        ("score", None, "no score"),
        ("probabilities", PREDICTIONS["probabilities"][:3], r"shape \(3, 5\)"),
        ("probabilities", PREDICTIONS["probabilities"][:, :4], r"shape \(4, 4\)"),
        ("probabilities", PREDICTIONS["probabilities"][0], r"expected float32 \[B, 5\]"),
        ("probabilities", PREDICTIONS["probabilities"].astype(float), "DataType 2"),
        ("probabilities", with_value(PREDICTIONS["probabilities"], np.nan), "NaN"),
        ("probabilities", with_value(PREDICTIONS["probabilities"], np.inf), "infinite"),
        ("exit", PREDICTIONS["exit"][:1], r"shape \(1,\)"),
        ("exit", PREDICTIONS["exit"][:, None], r"shape \(4, 1\)"),
        ("exit", PREDICTIONS["exit"].astype(np.int64), "DataType 9"),
        ("exit", with_value(PREDICTIONS["exit"], EXITS), "exits 0 to 3; the model has 3"),
        ("exit", with_value(PREDICTIONS["exit"], -1), "exits -1 to 2"),
        ("score", PREDICTIONS["score"][None], r"shape \(1, 4\)"),
        ("score", with_value(PREDICTIONS["score"], np.nan), "score that are NaN"),
    ],
)
def test_rejects_invalid_predictions(name, value, expected):
    outputs = PREDICTIONS | {name: value}
    if value is None:
        del outputs[name]
    with pytest.raises(ServerError, match=expected) as caught:
        messages.read_predictions(TARGET, response(outputs), ROWS, SIGNATURE)
    assert caught.value.code == "INTERNAL"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("scores", None, "no scores"),
        ("probabilities", ALL["probabilities"][:, :2], r"shape \(4, 2, 5\)"),
        ("probabilities", ALL["probabilities"].astype(np.float16), "DataType 19"),
        ("probabilities", with_value(ALL["probabilities"], np.nan), "NaN"),
        ("scores", ALL["scores"][:, 0], r"expected float32 \[B, 3\], B = 4"),
        ("scores", with_value(ALL["scores"], np.inf), "infinite"),
    ],
)
def test_rejects_invalid_all_exits(name, value, expected):
    outputs = ALL | {name: value}
    if value is None:
        del outputs[name]
    with pytest.raises(ServerError, match=expected) as caught:
        messages.read_all_exits(TARGET, response(outputs), ROWS, SIGNATURE)
    assert caught.value.code == "INTERNAL"


def test_rejects_values_that_do_not_match_their_shape():
    message = response(PREDICTIONS)
    message.outputs["score"].tensor_content = b"123"
    with pytest.raises(ServerError, match="score of shape"):
        messages.read_predictions(TARGET, message, ROWS, SIGNATURE)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"no message at all"])
def test_rejects_bytes_that_do_not_parse(data):
    with pytest.raises(ServerError, match="no PredictResponse"):
        TARGET.parse(wire.PredictResponse, data)
    with pytest.raises(ServerError, match="no GetModelMetadataResponse"):
        messages.read_signature(TARGET, data)
    metadata = wire.GetModelMetadataResponse()
    metadata.metadata["signature_def"].value = data
    with pytest.raises(ServerError, match="no SignatureDefMap"):
        messages.read_signature(TARGET, metadata.SerializeToString())


def metadata(thresholds, classes=None):
    served = wire.SignatureDefMap()
    early_exit = served.signature_def["early_exit"]
    for name, dtype, sides in [("images", 4, [-1, 2]), ("thresholds", 1, thresholds)]:
        early_exit.inputs[name].dtype = dtype
        for side in sides:
            early_exit.inputs[name].tensor_shape.dim.add(size=side)
    if classes is not None:
        for side in (-1, classes):
            early_exit.outputs["probabilities"].tensor_shape.dim.add(size=side)
    response = wire.GetModelMetadataResponse()
    response.model_spec.version.value = 7
    response.metadata["signature_def"].value = served.SerializeToString()
    return response.SerializeToString()


@pytest.mark.parametrize(("given", "known"), [(None, None), (-1, None), (5, 5)])
def test_signatures_are_read(given, known):
    read = messages.read_signature(TARGET, metadata([-1, 2], given))
    assert read == Signature(
        7, {"images": checks.TensorSpec((-1, 2), np.dtype("uint8"))}, 3, known,
        ("early_exit",),
    )  # fmt: skip


@pytest.mark.parametrize("thresholds", [[], [2], [-1, -1], [-1, 2, 1]])
def test_rejects_signatures_without_valid_thresholds(thresholds):
    with pytest.raises(BranchyError, match="no early_exit signature with thresholds"):
        messages.read_signature(TARGET, metadata(thresholds))


def test_a_version_that_failed_to_load_says_why():
    status = wire.GetModelStatusResponse()
    failed = status.model_version_status.add(version=3, state=50)
    failed.status.error_message = "no\nsuch file"
    with pytest.raises(ServerError, match=r"version 3: no such file") as caught:
        messages.read_status(TARGET, status.SerializeToString())
    assert caught.value.code == "UNAVAILABLE"
    status.model_version_status.add(version=2, state=wire.AVAILABLE)
    assert messages.read_status(TARGET, status.SerializeToString()) == 2

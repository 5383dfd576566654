"""The inputs of the graph: names, numbers of rows, NaN and infinity."""

from __future__ import annotations

import json

import c_api
import keras
import numpy as np
import pytest
from keras import layers

from branchy_tf import EarlyExitPredictor, exits, saved_model
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model import warmup
from branchy_tf.saved_model.session import SessionModel

INVALID_ARGUMENT = 3


def network(inputs, **kwargs) -> keras.Model:
    """Two exits on the sum of all inputs."""
    tensors = keras.tree.flatten(inputs)
    flat = [layers.Dense(4)(layers.Flatten()(tensor)) for tensor in tensors]
    x = layers.Add()(flat) if len(flat) > 1 else flat[0]
    outputs = {
        "exit_1": exits.logits_head(x, 3, "exit_1"),
        "exit_2": exits.logits_head(layers.Dense(5, "relu")(x), 3, "exit_2"),
    }
    return keras.Model(inputs, outputs, name="net", **kwargs)


def fused() -> keras.Model:
    """A convolution with a ReLU that oneDNN fuses, which turns NaN into 0."""
    keras.utils.set_random_seed(0)
    images = keras.Input((6, 6, 3), name="images")
    x = layers.Conv2D(4, 3, activation="relu")(images)
    exit_1 = exits.logits_head(layers.GlobalAveragePooling2D()(x), 3, "exit_1")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(x))
    outputs = {"exit_1": exit_1, "exit_2": exits.logits_head(x, 3, "exit_2")}
    return keras.Model(images, outputs, name="fused")


def pixels() -> keras.Model:
    images = keras.Input((6, 6, 3), dtype="uint8", name="images")
    return network(images)


def signatures_of(version):
    session = SessionModel(version)
    session.close()
    return session.signatures


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("freeze", ["true", "false"])
@pytest.mark.parametrize("build", [fused, pixels])
def test_nonfinite_rows_never_exit_early(build, freeze, value, tmp_path):
    version = saved_model.export(
        build(), tmp_path, "net", [0.5], freeze=freeze, input_dtype="float32"
    )
    images = np.full((4, 6, 6, 3), 7, np.float32)
    images[1, 2, 3, 1] = value
    session = SessionModel(version)
    for limits in (np.float32([[np.inf]]), np.full((4, 1), np.inf, "float32")):
        feed = {"images": images, "thresholds": limits}
        assert session.run("early_exit", feed)["exit"].tolist() == [0, 1, 0, 0]
        one = {"images": images[1:2], "thresholds": limits[:1]}
        assert session.run("early_exit", one)["exit"].tolist() == [1]
    session.close()


@pytest.mark.parametrize("onednn", [True, False])
def test_nonfinite_rows_never_exit_early_on_a_server(onednn, tmp_path):
    version = saved_model.export(fused(), tmp_path, "net", [np.inf])
    images = np.ones((3, 6, 6, 3), np.float32)
    images[0, 0, 0, 0] = np.nan
    for name, given in {
        "early_exit": {"thresholds": np.float32([[np.inf]])},
        "serving_default": {},
    }.items():
        requests = [{"images": images} | given, {"images": images[:1]} | given]
        signature = signatures_of(version)[name]
        answers = c_api.run(version, signature, requests, onednn)
        assert [code for code, _ in answers] == [0, 0]
        assert [answer["exit"].tolist() for _, answer in answers] == [[1, 0, 0], [1]]


def test_integer_inputs_get_no_finite_check(tmp_path):
    version = saved_model.export(pixels(), tmp_path, "net", [0.5])
    session = SessionModel(version)
    feed = {"images": np.zeros((2, 6, 6, 3), np.uint8)}
    names = session.operations("early_exit", feed)
    session.close()
    assert not [name for name in names if "IsFinite" in name]


def test_rejects_nan_weights(tmp_path):
    model = fused()
    model.layers[1].bias.assign([0, np.nan, 0, 0])
    for use in (
        lambda: EarlyExitPredictor(model, [0.5]),
        lambda: saved_model.export(model, tmp_path / "exports", "net", [0.5]),
    ):
        with pytest.raises(BranchyError, match="bias of 'fused' holds NaN"):
            use()
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("freeze", ["true", "false"])
@pytest.mark.parametrize("onednn", [True, False])
def test_rejects_too_many_rows(onednn, freeze, tmp_path):
    version = saved_model.export(
        fused(), tmp_path, "net", [0.5], freeze=freeze, max_rows=4
    )
    described = json.loads((version / "assets.extra/branchy.json").read_text())
    assert described["max_rows"] == 4
    for request in warmup.read(version):
        assert request.inputs["images"].tensor_shape.dim[0].size <= 4
    images = np.zeros((5, 6, 6, 3), np.float32)
    signatures = signatures_of(version)
    for name in ("early_exit", "serving_default", "all_exits"):
        limits = {"thresholds": np.float32([[0.5]])} if name == "early_exit" else {}
        requests = [{"images": images} | limits, {"images": images[:4]} | limits]
        many, fit = c_api.run(version, signatures[name], requests, onednn)
        assert many[0] == INVALID_ARGUMENT
        assert "at most 4 rows" in many[1]
        assert fit[0] == 0


def test_rejects_thresholds_for_another_number_of_rows(tmp_path):
    version = saved_model.export(fused(), tmp_path, "net", [0.5])
    images = np.zeros((2, 6, 6, 3), np.float32)
    requests = [
        {"images": images[:rows], "thresholds": np.zeros((given, 1), "float32")}
        for rows, given in ((2, 3), (2, 0), (1, 2), (0, 2))
    ]
    answers = c_api.run(version, signatures_of(version)["early_exit"], requests, True)
    for code, message in answers:
        assert code == INVALID_ARGUMENT
        assert "thresholds must have 1 row" in message
    assert len(answers) == 4


def test_max_rows_none_allows_any_number_of_rows(tmp_path):
    def answer(version):
        session = SessionModel(version)
        try:
            return session.run("serving_default", {"images": many})["exit"].shape
        finally:
            session.close()

    many = np.zeros((1025, 6, 6, 3), np.uint8)
    free = saved_model.export(pixels(), tmp_path, "net", [0.5], max_rows=None)
    assert answer(free) == (1025,)
    bound = saved_model.export(pixels(), tmp_path, "net", [0.5])
    with pytest.raises(Exception, match="at most 1024 rows"):
        answer(bound)


@pytest.mark.parametrize("max_rows", [0, -1, 2.0, True, "8", 2**31])
def test_rejects_invalid_max_rows(max_rows, tmp_path):
    with pytest.raises(BranchyError, match="`max_rows` must be a whole number"):
        saved_model.export(fused(), tmp_path / "e", "net", [0.5], max_rows=max_rows)
    assert not (tmp_path / "e").exists()


def names_of(model) -> list[str]:
    return saved_model.EarlyExitModule(model, [0.5]).input_names


def test_input_names_do_not_depend_on_the_process(tmp_path):
    for _ in range(3):
        assert names_of(network(keras.Input((5,)))) == ["input_1"]
    two = [keras.Input((5,)), keras.Input((4,), name="extra"), keras.Input((3,))]
    model = network(two)
    assert names_of(model) == ["input_1", "extra", "input_3"]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert names_of(again) == ["input_1", "extra", "input_3"]
    assert names_of(network(keras.Input((6, 6, 3)))) == ["images"]
    assert names_of(network(keras.Input((6, 6, 3), name="photo"))) == ["images"]
    by_key = network({"second": keras.Input((5,)), "first": keras.Input((4,))})
    assert names_of(by_key) == ["first", "second"]


def test_input_names_agree_everywhere(tmp_path):
    keras.Input((1,))  # advances Keras's name counter
    model = network([keras.Input((5,)), keras.Input((4,))])
    version = saved_model.export(model, tmp_path, "net", [0.5])
    names = ["input_1", "input_2"]
    described = json.loads((version / "assets.extra/branchy.json").read_text())
    assert sorted(described["inputs"]) == names
    assert sorted(signatures_of(version)["all_exits"].inputs) == names
    for request in warmup.read(version):
        assert sorted(set(request.inputs) - {"thresholds"}) == names
    batch = {"input_1": np.ones((2, 5), "f"), "input_2": np.ones((2, 4), "f")}
    assert len(EarlyExitPredictor(model, [0.5]).predict(batch).labels) == 2


@pytest.mark.parametrize(
    "names", [("thresholds",), ("a b", "a_b"), ("input_2", None)], ids=str
)
def test_rejects_names_that_collide(names):
    model = network([keras.Input((5,), name=name) for name in names])
    with pytest.raises(BranchyError, match="Name each"):
        names_of(model)

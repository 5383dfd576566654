from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import branchy_tf
from branchy_tf import graphs, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.zoo import packaged


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """An untrained B-LeNet in a separate package folder, tag `mine`."""
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    monkeypatch.setattr(packaged, "REGISTRY", tmp_path / "registry.json")
    packaged.REGISTRY.write_text("{}")
    thresholds = tmp_path / "some.json"
    thresholds.write_text("{}")
    made = packaged.Packaged(
        "branchy_lenet",
        "mine",
        {"input_shape": (16, 16, 1), "classes": 3, "exits": "paper"},
        "mnist",
        0.5,
        3,
    )
    model = zoo.branchy_lenet(input_shape=(16, 16, 1), classes=3)
    packaged.add(made, model, thresholds)
    return made, model


def test_a_set_comes_back_as_it_was_added(entry):
    made, model = entry
    assert zoo.list_weights("branchy_lenet") == ["mine"]
    found = zoo.list_packaged("branchy_lenet")["mine"]
    assert dataclasses.replace(found, sha256={}) == made
    loaded = zoo.branchy_lenet(input_shape=(16, 16, 1), classes=3, weights="mine")
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_zeros_of_pruned_weights_take_no_space(entry):
    made, model = entry
    before = made.weights.stat().st_size
    for variable in model.trainable_weights:
        variable.assign(np.zeros(variable.shape))
    packaged.add(made, model, made.thresholds)
    assert made.weights.stat().st_size < before / 2


@pytest.mark.parametrize("kind", ["weights", "thresholds"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_is_refused(entry, kind, damage):
    path = getattr(entry[0], kind)
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(BranchyError) as caught:
        zoo.branchy_lenet(input_shape=(16, 16, 1), classes=3, weights="mine")
    text = str(caught.value)
    assert text.startswith(f"The packaged file {path} is damaged: its SHA-256 is ")
    assert text.endswith("Install branchy_tf again.")


@pytest.mark.parametrize(
    "asked", [{"classes": 10}, {"input_shape": (28, 28, 1)}, {"exits": {"conv_2": len}}]
)
def test_a_tag_fixes_what_its_weights_are_for(entry, asked):
    arguments = {"input_shape": (16, 16, 1), "classes": 3} | asked
    with pytest.raises(BranchyError, match="The weights 'mine' of branchy_lenet are for"):
        zoo.branchy_lenet(weights="mine", **arguments)


def test_thresholds_come_with_the_weights(shipped):
    known = zoo.calibration("branchy_lenet", "mnist")
    model = shipped("branchy_lenet", "mnist")
    assert known.exits == ["exit_1", "exit_2"]
    assert known.policy.weights == graphs.fingerprint(model)
    predictor = branchy_tf.EarlyExitPredictor(model, known)
    assert predictor.policy == known.policy
    assert len(predictor.predict(np.zeros((2, 28, 28, 1), np.uint8)).labels) == 2


def test_thresholds_of_unknown_weights():
    with pytest.raises(BranchyError) as caught:
        zoo.calibration("branchy_lenet", "minst")
    assert str(caught.value) == (
        "Unknown weights 'minst' for branchy_lenet. Known: mnist."
    )


def test_every_packaged_file_is_whole_and_small():
    total = 0
    for model in zoo.list_models():
        for found in zoo.list_packaged(model).values():
            found.check()
            total += found.weights.stat().st_size + found.thresholds.stat().st_size
    assert total < 45e6


@pytest.mark.parametrize("floatx", ["float64", "float16"])
def test_a_tag_gives_its_answers_whatever_keras_is_set_to(floatx, shipped):
    usual = graphs.fingerprint(shipped("branchy_lenet", "mnist"))
    old = keras.config.floatx()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    try:
        built = zoo.build("branchy_lenet", weights="mnist")
        assert keras.config.floatx() == floatx
        assert keras.config.dtype_policy().name == floatx
        own = zoo.build("branchy_lenet")
    finally:
        keras.config.set_floatx(old)
        keras.config.set_dtype_policy(old)
    assert graphs.fingerprint(built) == usual
    # Without a tag the setting is the user's.
    assert own.weights[0].dtype == floatx

from __future__ import annotations

import keras
import numpy as np
import pytest

from branchy_tf import exits, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import linear_head


def complaint(name="branchy_lenet", **arguments) -> str:
    with pytest.raises(BranchyError) as caught:
        zoo.build(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_model_is_listed_and_can_be_imported():
    assert "branchy_lenet" in zoo.list_models()
    assert zoo.list_models() == sorted(zoo.list_models())
    for name in zoo.list_models():
        assert getattr(zoo, name).__name__ == name


def test_weights_are_listed_by_model_or_for_all():
    everything = zoo.list_weights()
    for name in zoo.list_models():
        tags = zoo.list_weights(name)
        assert [w for w in everything if w.startswith(f"{name}/")] == [
            f"{name}/{tag}" for tag in tags
        ]


@pytest.mark.parametrize("call", [zoo.build, zoo.list_weights])
def test_unknown_model_suggests_the_closest(call):
    with pytest.raises(BranchyError) as caught:
        call("branchy_lennet")
    text = str(caught.value)
    assert text.startswith(
        "Unknown model 'branchy_lennet'. Did you mean branchy_lenet? Known: "
    )
    for name in zoo.list_models():
        assert name in text


def test_unknown_model_without_a_close_match():
    assert "Did you mean" not in complaint("zzzz")


def test_unknown_argument_lists_the_known_ones():
    assert complaint(depth=20) == (
        "branchy_lenet has no argument 'depth'. It takes: input_shape, classes, weights, "
        "exits, name."
    )


@pytest.mark.parametrize(
    "shape",
    [(28, 28), (28, 28, 1, 1), (7, 28, 1), (1, 28, 28), (28, 28, 0), (28.0, 28, 1), "28"],
)
def test_rejects_invalid_input_shapes(shape):
    assert complaint(input_shape=shape) == (
        "`input_shape` must be (height, width, channels), channels last, with height and "
        f"width of at least 8. Received {shape!r}."
    )


@pytest.mark.parametrize("suffix", ["model.keras", "some.weights.h5"])
def test_weights_of_a_path_are_loaded_exactly(tmp_path, suffix):
    keras.utils.set_random_seed(1)
    saved = zoo.build("branchy_lenet", classes=5)
    path = tmp_path / suffix
    saved.save(path) if suffix.endswith(".keras") else saved.save_weights(path)
    keras.utils.set_random_seed(2)
    loaded = zoo.build("branchy_lenet", classes=5, weights=str(path))
    assert len(loaded.weights) == len(saved.weights) > 0
    for ours, theirs in zip(loaded.weights, saved.weights, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("weights", ["minst", "", "model.h5", "model"])
def test_unknown_weights(weights):
    text = complaint(weights=weights)
    assert text.startswith(f"Unknown weights {weights!r} for branchy_lenet. Expected ")
    assert text.endswith("or the path of a .keras or .weights.h5 file.")
    for tag in zoo.list_weights("branchy_lenet"):
        assert tag in text


@pytest.mark.parametrize("weights", [5, True, b"mnist", ["mnist"], {}])
def test_rejects_weights_of_another_type(weights):
    assert complaint(weights=weights) == (
        f"`weights` must be None, a tag or a path. Received {weights!r}."
    )


def test_missing_weights_file(tmp_path):
    path = tmp_path / "none.keras"
    assert complaint(weights=str(path)) == f"There is no weights file {path}."


def _dense(classes):
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Dense(classes)])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (lambda: zoo.build("branchy_lenet", classes=5), "name=logits"),
        (lambda: zoo.build("branchy_lenet", input_shape=(20, 20, 1)), "name=dense"),
        (lambda: _dense(10), "name=conv_1"),
    ],
    ids=["classes", "input shape", "layers"],
)
# Keras warns of what it skips; the error says more.
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_architecture(tmp_path, other, expected):
    path = tmp_path / "other.keras"
    other().save(path)
    text = complaint(weights=str(path))
    assert text.startswith(
        f"The weights in {path} do not fit branchy_lenet with input shape (28, 28, 1): "
    )
    assert expected in text
    # It gives a reason, and not the values of a variable.
    assert "[[" not in text
    assert not text.endswith(":")


def resnet(*places, **arguments):
    return zoo.build(
        "branchy_resnet", depth=8, exits=dict.fromkeys(places, linear_head), **arguments
    )


def test_weights_of_a_model_with_its_exits_elsewhere(tmp_path):
    path = tmp_path / "other.keras"
    resnet("stem", "stack_1_block_1").save(path)
    resnet("stem", "stack_1_block_1", weights=str(path))
    for places, shown in (
        (["stack_1_block_1"], "exit_1 at stack_1_block_1 in the model"),
        (
            ["stem", "stack_2_block_1"],
            "exit_1 at stem, exit_2 at stack_2_block_1 in the model",
        ),
    ):
        with pytest.raises(BranchyError) as caught:
            resnet(*places, weights=str(path))
        assert str(caught.value) == (
            f"The exits in {path} are at other layers than those of branchy_resnet: "
            f"exit_1 at stem, exit_2 at stack_1_block_1 in the file, {shown}. Build the "
            "model with the same `exits`."
        )


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_a_model_without_exits(tmp_path):
    path = tmp_path / "baseline.keras"
    exits.baseline(zoo.build("branchy_lenet")).save(path)
    assert complaint(weights=str(path)).startswith(f"The weights in {path} do not fit ")


@pytest.mark.parametrize("suffix", ["model.keras", "some.weights.h5"])
def test_damaged_weights(tmp_path, suffix):
    path = tmp_path / suffix
    path.write_bytes(b"not weights")
    assert complaint(weights=str(path)).startswith(f"The weights in {path} do not fit ")


def test_a_model_can_be_given_its_name():
    assert zoo.build("branchy_lenet", name="mine").name == "mine"

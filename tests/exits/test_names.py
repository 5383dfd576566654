from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import branchy_tf
from branchy_tf import exits
from branchy_tf.errors import BranchyError


def model_with(outputs: dict):
    x = keras.Input((3,))
    tensors = {
        key: layers.Dense(width, name=name)(x) for key, (name, width) in outputs.items()
    }
    return keras.Model(x, tensors)


def test_baseline_is_the_final_exit_with_the_same_weights(lenet, digits):
    plain = branchy_tf.baseline(lenet)
    np.testing.assert_array_equal(plain(digits), lenet(digits)["exit_2"])
    shared = {id(w) for w in lenet.weights}
    assert all(id(w) in shared for w in plain.weights)
    assert not any(w.path.startswith(("branch_1", "exit_1")) for w in plain.weights)


def test_exits_come_in_order_of_number():
    names = {f"exit_{n}": (f"exit_{n}", 2) for n in range(1, 13)}
    assert exits.exit_names(model_with(names)) == [f"exit_{n}" for n in range(1, 13)]


@pytest.mark.parametrize(
    "outputs",
    [
        {"exit_1": ("exit_1", 2), "exit_3": ("exit_3", 2)},
        {"exit_0": ("exit_0", 2), "exit_1": ("exit_1", 2)},
        {"exit_1": ("head", 2)},
        {"exit_01": ("exit_01", 2)},
    ],
)
def test_exits_with_other_names_are_refused(outputs):
    with pytest.raises(BranchyError, match=r"exit_1 \.\.\. exit_N"):
        exits.exit_names(model_with(outputs))


def test_exits_must_agree_on_the_classes():
    with pytest.raises(BranchyError, match=r"\[2, 3\]"):
        exits.exit_names(model_with({"exit_1": ("exit_1", 2), "exit_2": ("exit_2", 3)}))


def test_exits_must_be_logits():
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, {"exit_1": layers.Conv2D(2, 1, name="exit_1")(x)})
    with pytest.raises(BranchyError, match=r"\(batch, classes\)"):
        exits.exit_names(model)


def test_keys_and_layers_must_have_the_same_names():
    swapped = {"exit_1": ("exit_2", 2), "exit_2": ("exit_1", 2)}
    with pytest.raises(BranchyError, match="exit_1 made by layer exit_2"):
        exits.exit_names(model_with(swapped))


def test_outputs_in_a_list_are_refused():
    x = keras.Input((3,))
    outputs = [layers.Dense(2, name=f"exit_{n}")(x) for n in (1, 2)]
    with pytest.raises(BranchyError, match="not in a dict"):
        exits.exit_names(keras.Model(x, outputs))


@pytest.mark.parametrize("key", [1, "exit_1"])
def test_rejects_keys_that_are_not_strings_and_nested_outputs(key):
    x = keras.Input((3,))
    one = layers.Dense(2, name="exit_1")(x)
    model = keras.Model(x, {key: [one, one] if key == "exit_1" else one})
    with pytest.raises(BranchyError, match=r"exit_1 \.\.\. exit_N"):
        exits.exit_names(model)


@pytest.mark.parametrize("given", [None, "model.keras", 3])
def test_rejects_what_is_not_a_model(given):
    for ask in (exits.exit_names, exits.baseline, exits.num_classes):
        with pytest.raises(BranchyError, match=r"Expected a functional keras\.Model, "):
            ask(given)

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import branchy_tf
from branchy_tf import costs, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, linear_head, propose_exits


def chain(convolutions: int = 8) -> keras.Model:
    x = inputs = keras.Input((8, 8, 4))
    for i in range(1, convolutions + 1):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv_{i}")(x)
        x = layers.ReLU(name=f"relu_{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="chain")


def test_places_divide_the_multiply_adds_evenly():
    assert propose_exits(chain(8), 3) == ["relu_2", "relu_4", "relu_6"]
    assert propose_exits(chain(8), 1) == ["relu_4"]


def test_every_proposed_place_accepts_an_exit():
    model = chain(4)
    places = propose_exits(model, 3)
    assert places == ["relu_1", "relu_2", "relu_3"]
    spent = costs.cumulative_macs(add_exits(model, dict.fromkeys(places, linear_head)))
    assert spent == sorted(spent)


def test_no_place_is_inside_a_residual_block():
    trunk = branchy_tf.baseline(zoo.branchy_resnet(depth=20))
    places = propose_exits(trunk, 8)
    assert len(set(places)) == 8
    for place in places:
        assert place == "stem" or place.startswith("stack_")
        assert place.count("_") in (0, 3), place


def test_reads_sequential_models():
    names = ["a", "b", "c"]
    layers_ = [layers.Dense(8, name=name) for name in names]
    model = keras.Sequential([keras.Input((8,)), *layers_, layers.Dense(3)])
    assert propose_exits(model, 2) == ["a", "b"]


def test_reads_models_inside_a_model():
    inner = chain(8)
    model = keras.Sequential([inner.inputs[0], layers.Rescaling(0.5), inner])
    assert propose_exits(model, 3) == ["relu_2", "relu_4", "relu_6"]


def test_rejects_a_model_with_all_its_work_in_one_layer():
    inputs = keras.Input((8,), name="values")
    model = keras.Model(inputs, layers.Dense(3)(layers.ReLU()(inputs)), name="small")
    with pytest.raises(BranchyError) as caught:
        propose_exits(model, 1)
    assert str(caught.value) == (
        "Model 'small' has no place for an exit: no multiply-adds can be counted "
        "between the layers that model.summary() lists. A sub-model that cannot be "
        "inlined counts as one layer; build it on the outer tensor."
    )


def test_accepts_numpy_numbers():
    assert propose_exits(chain(8), np.int64(1)) == ["relu_4"]


@pytest.mark.parametrize("n", [0, 8, -1, 1.5, "3", True, None, [1], np.float32(2)])
def test_rejects_invalid_numbers(n):
    with pytest.raises(BranchyError) as caught:
        propose_exits(chain(8), n)
    assert str(caught.value) == (
        "`n` must be between 1 and 7, the number of places for an exit in 'chain'. "
        f"Received {n!r}."
    )


def test_reads_shortcuts_that_are_added_with_a_plus():
    """An operation like x + y has no layer, but a name."""
    x = inputs = keras.Input((8, 8, 4))
    for i in range(1, 5):
        x = x + layers.Conv2D(4, 3, padding="same", name=f"conv_{i}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    places = propose_exits(model, 3)
    spent = costs.cumulative_macs(add_exits(model, dict.fromkeys(places, linear_head)))
    whole = costs.macs(model)
    shares = [cost / whole for cost in spent[:3]]
    assert shares == pytest.approx([0.25, 0.5, 0.75], abs=0.02)

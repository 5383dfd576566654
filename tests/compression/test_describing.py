from __future__ import annotations

import json

import keras
import numpy as np
import odd_models
import pytest
import small
from keras import layers

from branchy_tf.compression.describing import describe
from branchy_tf.errors import BranchyError


@keras.saving.register_keras_serializable("test_describing")
class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def two_exits(middle) -> keras.Model:
    inputs = keras.Input((4,), name="table")
    x = middle(inputs)
    outputs = {name: layers.Dense(3, name=name)(x) for name in ("exit_1", "exit_2")}
    return keras.Model(inputs, outputs, name="two")


def test_a_description_is_plain_and_in_order():
    described = describe(small.model())
    graph = json.loads(json.dumps(described.graph))
    (given,) = graph["inputs"]
    assert given == {"name": "images", "shape": [8, 8, 1], "dtype": "uint8"}
    assert described.names()[:3] == ["rescale", "flatten", "dense_1"]
    known = {0}
    for call in graph["calls"]:
        assert [value["tensor"] in known for value in call["args"]] == [True]
        known |= set(call["outputs"])
    assert set(graph["outputs"]) == {"exit_1", "exit_2"}
    assert set(graph["outputs"].values()) <= known


def test_weights_are_those_of_the_layers():
    model = small.model()
    described = describe(model)
    number = described.names().index("dense_1")
    weights = described.weights()
    kernel, bias = model.get_layer("dense_1").get_weights()
    np.testing.assert_array_equal(weights[f"{number}.0"], kernel)
    np.testing.assert_array_equal(weights[f"{number}.1"], bias)
    assert len(weights) == len(model.weights)


def test_a_layer_that_is_called_twice_is_described_once():
    shared = layers.Dense(4, name="shared")
    described = describe(two_exits(lambda x: shared(shared(x))))
    assert described.names().count("shared") == 1
    number = described.names().index("shared")
    assert [call["layer"] for call in described.graph["calls"]].count(number) == 2


def test_models_inside_the_model_are_described_layer_by_layer():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="exit_1")])
    described = describe(two_exits(inner))
    # Names are unique in tf_keras.
    assert described.names() == ["exit_1", "exit_2", "two_exit_1"]
    assert len(described.graph["calls"]) == 3


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        (Doubled(4, name="twice"), "Layer 'twice' of 'two' is a custom Doubled"),
        (lambda x: x + 1.0, "calls the operation Add"),
    ],
)
def test_rejects_what_tf_keras_cannot_replay(middle, expected):
    with pytest.raises(BranchyError, match=expected):
        describe(two_exits(middle))


def test_several_inputs_keep_their_names_and_order():
    model, _ = odd_models.build(odd_models.several_inputs)
    graph = describe(model).graph
    assert [given["name"] for given in graph["inputs"]] == ["image", "extra"]
    read = [
        value["tensor"]
        for call in graph["calls"]
        for value in call["args"]
        if isinstance(value, dict)
    ]
    # The first numbers are the inputs, each read once.
    assert [read.count(number) for number in (0, 1)] == [1, 1]

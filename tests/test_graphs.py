from __future__ import annotations

import keras
import numpy as np
import odd_models
import pytest
from keras import layers

from branchy_tf import graphs
from branchy_tf.errors import BranchyError

every_odd_model = pytest.mark.parametrize(
    "builder",
    [builder for builder in odd_models.ALL if builder is not odd_models.mobile_net],
    ids=lambda b: b.__name__,
)


@pytest.fixture
def diamond() -> keras.Model:
    """A diamond a - (left, right) - join, followed by end."""
    x = keras.Input((3,), name="x")
    a = layers.Dense(3, name="a")(x)
    left = layers.Dense(3, name="left")(a)
    right = layers.Dense(3, name="right")(a)
    join = layers.Add(name="join")([left, right])
    return keras.Model(x, [join, layers.Dense(2, name="end")(join)])


def tensor(model, name):
    return model.get_layer(name).output


def names(nodes) -> list[str]:
    return [node.operation.name for node in nodes]


@every_odd_model
def test_nodes_come_after_what_they_read(builder):
    model, _ = odd_models.build(builder)
    known = {id(t) for t in model.inputs}
    for node in graphs.nodes_in_order(model):
        assert not node.is_input
        assert known >= {id(t) for t in node.input_tensors}
        known |= {id(t) for t in node.outputs}
    assert known >= {id(t) for t in model.outputs}


@every_odd_model
def test_a_replay_on_other_tensors_gives_the_same_answers(builder):
    model, arrays = odd_models.build(builder)
    value = {id(t): a for t, a in zip(model.inputs, arrays, strict=True)}
    graphs.replay(graphs.nodes_in_order(model), value)
    whole = model(arrays if len(arrays) > 1 else arrays[0])
    for name, symbolic in model.output.items():
        np.testing.assert_array_equal(value[id(symbolic)], whole[name])


def test_the_producer_of_a_tensor(diamond):
    node = graphs.producer(tensor(diamond, "join"))
    assert node.operation is diamond.get_layer("join")
    assert node.input_tensors == [tensor(diamond, "left"), tensor(diamond, "right")]


def test_the_producer_is_the_call_that_made_the_tensor():
    dense = layers.Dense(3)
    first = dense(keras.Input((3,)))
    second = dense(first)
    assert graphs.producer(second).input_tensors == [first]
    assert graphs.producer(first).input_tensors != [first]


def test_nodes_between_stop_at_the_inputs(diamond):
    def between(inputs, outputs):
        return sorted(
            names(
                graphs.nodes_between(
                    [tensor(diamond, n) for n in inputs],
                    [tensor(diamond, n) for n in outputs],
                )
            )
        )

    assert between([], ["join"]) == ["a", "join", "left", "right"]
    assert between(["x"], ["join"]) == ["a", "join", "left", "right"]
    assert between(["a"], ["join"]) == ["join", "left", "right"]
    # The path around it leads back to the input.
    assert between(["left"], ["end"]) == ["a", "end", "join", "right"]
    assert between(["a"], ["left", "right"]) == ["left", "right"]
    assert between(["join"], ["join"]) == []


def test_what_a_tensor_depends_on(diamond):
    depends = {
        (one, other): graphs.depends(tensor(diamond, one), tensor(diamond, other))
        for one in ("x", "a", "left", "right", "join", "end")
        for other in ("x", "a", "left", "right", "join", "end")
    }
    expected = {("a", "x")}
    expected |= {("left", other) for other in ("x", "a")}
    expected |= {("right", other) for other in ("x", "a")}
    expected |= {("join", other) for other in ("x", "a", "left", "right")}
    expected |= {("end", other) for other in ("x", "a", "left", "right", "join")}
    assert {pair for pair, so in depends.items() if so} == expected


@pytest.mark.parametrize("given", [None, "model.keras", layers.Dense(3)])
def test_rejects_what_is_not_a_functional_model(given):
    with pytest.raises(BranchyError) as caught:
        graphs.check_functional(given)
    assert str(caught.value) == (
        f"Expected a functional keras.Model, received {type(given).__name__}. "
        "Build one as keras.Model(inputs, outputs)."
    )


def test_a_fingerprint_depends_on_the_weights_alone(tmp_path):
    x = keras.Input((3,))
    # Dropout has a variable that differs each time a model is loaded.
    y = layers.Dropout(0.5)(layers.Dense(3, name="a")(x))
    model = keras.Model(x, y)
    model.save(tmp_path / "m.keras")
    prints = {
        graphs.fingerprint(keras.models.load_model(tmp_path / "m.keras"))
        for _ in range(2)
    }
    assert prints == {graphs.fingerprint(model)}
    kernel = model.get_layer("a").kernel
    kernel.assign(np.nextafter(np.asarray(kernel), np.float32(np.inf)))
    assert prints != {graphs.fingerprint(model)}


def test_another_backend_is_refused(monkeypatch, lenet):
    from branchy_tf.predictor import EarlyExitPredictor

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(BranchyError, match="Keras runs on jax; routing and exp"):
        EarlyExitPredictor(lenet, [0.1])

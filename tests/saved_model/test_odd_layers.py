"""Layers, dtypes and names that TensorFlow or Keras treats specially."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from branchy_tf import EarlyExitPredictor, saved_model
from branchy_tf.errors import BranchyError
from branchy_tf.exits import add_exits, linear_head
from branchy_tf.saved_model import plain
from branchy_tf.saved_model.session import SessionModel


class Sign(layers.Layer):
    """A straight-through estimator: a step with the gradient of the identity."""

    def call(self, features):
        @keras.ops.custom_gradient
        def step(features):
            return keras.ops.sign(features), lambda *_, upstream: upstream

        return step(features)


def network(name="net", layer="c1", dtype=None, **kwargs) -> keras.Model:
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), dtype=dtype, name="images")
    x = layers.Conv2D(4, 3, name=layer, **kwargs)(images)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    x = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return add_exits(keras.Model(images, x, name=name), {layer: linear_head})


def straight_through() -> keras.Model:
    images = keras.Input((8, 8, 3))
    x = Sign(name="sign")(layers.Conv2D(4, 3)(images))
    x = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return add_exits(keras.Model(images, x, name="net"), {"sign": linear_head})


def int8() -> keras.Model:
    model = network()
    model.quantize("int8")
    return model


def check_exports(model: keras.Model, folder, rows: np.ndarray, freeze: str) -> None:
    """Checks that an export and the predictor give the answers of Keras."""
    wanted = np.asarray(
        keras.ops.softmax(
            keras.ops.cast(model(rows, training=False)["exit_2"], "float32")
        )
    )
    version = saved_model.export(model, folder, "net", [0.5], freeze=freeze)
    session = SessionModel(version)
    (name,) = session.signatures["all_exits"].inputs
    feed = {name: rows, "thresholds": np.float32([[0]])}
    served = session.run("early_exit", feed)["probabilities"]
    session.close()
    np.testing.assert_allclose(served, wanted, atol=1e-4)
    local = EarlyExitPredictor(model, [0.0]).predict(rows).probabilities
    np.testing.assert_allclose(local, wanted, atol=1e-4)


@pytest.fixture
def policy():
    """Sets Keras's global dtype policy and restores it."""
    yield keras.config.set_dtype_policy
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


IMAGES = np.random.default_rng(0).random((4, 8, 8, 3), dtype=np.float32)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
@pytest.mark.parametrize("freeze", ["true", "false"])
@pytest.mark.parametrize(
    "build",
    [lambda: network(activation="silu"), straight_through, int8],
    ids=["silu", "straight through", "int8"],
)
def test_exports_layers_with_custom_gradients(build, freeze, tmp_path):
    check_exports(build(), tmp_path, IMAGES, freeze)


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_exports_lookup_tables(freeze, tmp_path):
    keras.utils.set_random_seed(0)
    ids = keras.Input((3,), dtype="int64", name="ids")
    found = layers.IntegerLookup(vocabulary=[5, 7, 9])(ids)
    x = layers.Dense(6, name="d1")(layers.Flatten()(layers.Embedding(8, 4)(found)))
    trunk = keras.Model(ids, layers.Dense(4)(x), name="net")
    model = add_exits(trunk, {"d1": linear_head})
    rows = np.int64([[5, 7, 1], [9, 9, 9], [0, 5, 7]])
    check_exports(model, tmp_path, rows, freeze)
    plain.write_frozen(trunk, tmp_path / "plain")
    session = SessionModel(tmp_path / "plain")
    answer = session.run(plain.SIGNATURE, {"x_0": rows})["y_0"]
    session.close()
    np.testing.assert_allclose(answer, np.asarray(trunk(rows)), atol=1e-5)


def test_rejects_string_inputs(tmp_path):
    words = keras.Input((3,), dtype="string", name="words")
    found = layers.StringLookup(vocabulary=["a", "b"])(words)
    x = layers.Dense(6, name="d1")(layers.Flatten()(layers.Embedding(8, 4)(found)))
    model = keras.Model(words, layers.Dense(4)(x), name="net")
    model = add_exits(model, {"d1": linear_head})
    with pytest.raises(BranchyError, match="'words' of 'branchy_net' takes strings"):
        saved_model.export(model, tmp_path / "exports", "net", [0.5])
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("name", ["my model", "réseau", "_net", "a+b (2)", "é"])
def test_accepts_any_model_name(name):
    model = network(name)
    model = keras.Model(model.input, model.output, name=name)
    assert len(EarlyExitPredictor(model, [0.5]).predict(IMAGES).labels) == 4


def test_rejects_invalid_layer_names(tmp_path):
    with pytest.raises(BranchyError, match="Layer 'my conv' of 'branchy_net'"):
        EarlyExitPredictor(network(layer="my conv"), [0.5])


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_exports_models_built_under_another_dtype_policy(name, policy, tmp_path):
    if name == "float64":
        keras.config.set_floatx(name)
    policy(name)
    model = network()
    check_exports(model, tmp_path, IMAGES.astype(model.inputs[0].dtype), "true")


def test_carried_tensors_keep_their_dtype(policy):
    """Bright pixels differ in the 10th bit and beyond; float16 would lose them."""
    pixels = keras.Input((4,), name="pixels")
    outputs = {
        "exit_1": layers.Dense(2, name="exit_1")(pixels),
        "exit_2": layers.Identity(name="exit_2")(pixels[:, :2] - 4096.0),
    }
    model = keras.Model(pixels, outputs, name="net")
    policy("mixed_float16")
    rows = np.float32([[4097, 4096, 0, 0]])
    predictor = EarlyExitPredictor(model, [0.0])
    np.testing.assert_array_equal(predictor.logits(rows)[:, 1], [[1, 0]])

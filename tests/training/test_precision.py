from __future__ import annotations

import keras
import numpy as np
import pytest
import small
import tensorflow as tf
from keras import layers, ops

from branchy_tf import exits, training
from branchy_tf.training import precision

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 1)).astype("uint8")


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def mixed(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def build() -> keras.Model:
    """A model with batch norm, an inner model, operations and an integer input."""
    keras.utils.set_random_seed(3)
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, name="c1")(x))
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3)], name="inner")
    x = ops.relu(inner(x)) + 1.0
    x = layers.Dense(3, activation="softmax")(layers.Flatten()(x))
    model = exits.add_exits(keras.Model(pixels, x), {"c1": exits.conv_head([4])})
    model.get_layer("c1").trainable = False
    for weight in model.non_trainable_weights:
        weight.assign(RNG.uniform(0.5, 1.5, weight.shape))
    return model


def policies(model) -> set[str]:
    return {layer.dtype_policy.name for layer in model._flatten_layers()}


def test_converts_a_mixed_model_to_float32(mixed, tmp_path):
    model = build()
    assert mixed in policies(model)
    plain = precision.in_float32(model)
    assert len(plain.weights) == len(model.weights)
    for ours, theirs in zip(plain.weights, model.weights, strict=True):
        assert ours.name == theirs.name
        assert ours.trainable == theirs.trainable
        np.testing.assert_array_equal(ours, theirs)
    expected = np.asarray(model(IMAGES)["exit_2"])
    plain.save(tmp_path / "m.keras")

    keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert policies(loaded) == {"float32"}
    assert loaded.inputs[0].dtype == "uint8"
    assert {z.dtype for z in loaded.output.values()} == {"float32"}
    np.testing.assert_allclose(loaded(IMAGES)["exit_2"], expected, atol=0.1)
    in_float32 = build()
    in_float32.set_weights(model.get_weights())
    for name, logits in in_float32(IMAGES).items():
        np.testing.assert_array_equal(loaded(IMAGES)[name], logits)


@pytest.mark.parametrize("model", [build, small.model])
def test_a_float32_model_is_returned_unchanged(model):
    built = model()
    assert precision.in_float32(built) is built


def test_a_float32_model_may_have_float16_layers():
    x = keras.Input((4,))
    half = ops.cast(layers.Dense(3, dtype="float16")(x), "float32")
    model = keras.Model(x, exits.logits_head(half, 3, "exit_1"))
    assert precision.in_float32(model) is model


@pytest.mark.parametrize("mode", ["baseline_first", "detached"])
def test_a_run_in_mixed_precision_saves_float32(mixed, mode, tmp_path):
    tf.config.run_functions_eagerly(True)
    try:
        model = small.model()
        settings = training.Settings(
            mode=mode, epochs=1, baseline_epochs=1, batch_size=30
        )
        training.train(model, small.dataset(), settings, training.RunFolder(tmp_path))
    finally:
        tf.config.run_functions_eagerly(False)
    keras.config.set_dtype_policy("float32")
    written = sorted(path.name for path in tmp_path.glob("*.keras"))
    assert (
        written
        == {
            "baseline_first": ["baseline.keras", "model.keras"],
            "detached": ["model.keras"],
        }[mode]
    )
    for name in written:
        assert policies(keras.models.load_model(tmp_path / name)) == {"float32"}
    saved = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(saved.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_lora_keeps_its_scale(mixed):
    model = build()
    for name, alpha in (("c1", 6.0), ("dense", 5.0)):
        (layer,) = [one for one in model.layers if one.name.startswith(name)]
        layer.enable_lora(2, lora_alpha=alpha)
        layer.lora_kernel_b.assign(RNG.normal(size=layer.lora_kernel_b.shape))
    plain = precision.in_float32(model)
    for layer in model.layers:
        if getattr(layer, "lora_enabled", False):
            ours = keras.ops.convert_to_numpy(plain.get_layer(layer.name).kernel)
            theirs = keras.ops.convert_to_numpy(layer.kernel).astype("float32")
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)

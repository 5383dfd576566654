from __future__ import annotations

import keras
import numpy as np
import odd_models
import pytest
from keras import layers
from odd_models import settled

from branchy_tf import zoo
from branchy_tf.saved_model.folding import fold_batch_norm


def norms_of(model: keras.Model) -> list[str]:
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
    ]


def check_same(model: keras.Model, folded: keras.Model) -> None:
    random = np.random.default_rng(6)
    inputs = random.normal(size=(4, *model.input_shape[1:])).astype("float32")
    if model.inputs[0].dtype == "uint8":
        inputs = random.integers(0, 256, (4, *model.input_shape[1:])).astype("uint8")
    before, after = (
        keras.tree.flatten(m(inputs, training=False)) for m in (model, folded)
    )
    for one, other in zip(before, after, strict=True):
        assert np.std(one) > 0.01
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize(
    ("shape", "layer", "norm"),
    [
        ((6, 6, 3), lambda: layers.Conv2D(4, 3, strides=2, use_bias=False), {}),
        ((6, 6, 3), lambda: layers.Conv2D(4, 3, padding="same"), {"scale": False}),
        ((6, 6, 4), lambda: layers.Conv2D(6, 3, groups=2), {"center": False}),
        ((6, 6, 3), lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), {}),
        ((6, 3), lambda: layers.Conv1D(4, 3), {"epsilon": 0.1, "axis": 2}),
        ((6, 3), lambda: layers.DepthwiseConv1D(3, use_bias=False), {}),
        ((4, 4, 4, 2), lambda: layers.Conv3D(3, 2), {}),
        ((3, 5), lambda: layers.Dense(4), {}),
    ],
)
def test_folds_batch_norm_into_the_layer_before(shape, layer, norm):
    inputs = keras.Input(shape)
    x = layers.BatchNormalization(name="norm", **norm)(layer()(inputs))
    model = settled(keras.Model(inputs, layers.ReLU()(x)))
    folded = fold_batch_norm(model)
    assert not norms_of(folded)
    assert len(folded.layers) == len(model.layers) - 1
    assert folded.get_layer("norm").use_bias
    check_same(model, folded)


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((6, 6, 3), lambda: layers.Conv2D(4, 3, use_bias=False)),
        ((6, 3), lambda: layers.Conv1D(4, 3)),
        ((4, 4, 4, 2), lambda: layers.Conv3D(3, 2)),
        ((3, 5), lambda: layers.Dense(4)),
    ],
)
def test_folds_lora_with_the_kernel(shape, layer):
    inputs = keras.Input(shape)
    adapted = layer()
    x = layers.BatchNormalization(name="norm")(adapted(inputs))
    model = settled(keras.Model(inputs, layers.ReLU()(x)))
    adapted.enable_lora(2, lora_alpha=6)
    adapted.lora_kernel_b.assign(
        np.random.default_rng(8).normal(size=adapted.lora_kernel_b.shape)
    )
    folded = fold_batch_norm(model)
    assert not norms_of(folded)
    assert not folded.get_layer("norm").lora_enabled
    assert len(folded.weights) == 2
    check_same(model, folded)


def test_folds_a_whole_network_without_changing_the_original():
    model = settled(zoo.build("branchy_resnet", depth=8, exits="light"))
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert norms_of(model)
    assert not norms_of(folded)
    assert folded.output.keys() == model.output.keys()
    check_same(model, folded)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def read_twice(x):
    y = layers.Conv2D(3, 3, padding="same")(x)
    return layers.Add()([y, layers.BatchNormalization()(y)])


def called_twice(x):
    norm = layers.BatchNormalization()
    return norm(layers.Conv2D(3, 3)(norm(layers.Conv2D(3, 3)(x))))


def after_an_activation(x):
    return layers.BatchNormalization()(layers.Conv2D(3, 3, activation="relu")(x))


def over_rows(x):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(3, 3)(x))


def by_the_batch(x):
    return layers.BatchNormalization()(layers.Conv2D(3, 3)(x), training=True)


class Doubling(layers.Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


def after_a_subclass(x):
    return layers.BatchNormalization()(Doubling(3, 3)(x))


def after_a_replaced_call(x):
    layer = layers.Conv2D(3, 3)
    layer.call = lambda inputs, call=layer.call: 2 * call(inputs)
    return layers.BatchNormalization()(layer(x))


def after_a_wrapper(x):
    return layers.BatchNormalization()(layers.SpectralNormalization(layers.Dense(3))(x))


def before_all_else(x):
    return layers.Conv2D(3, 3)(layers.BatchNormalization()(x))


def after_a_sum(x):
    return layers.BatchNormalization()(layers.Add()([x, x]))


@pytest.mark.parametrize(
    "build",
    [
        read_twice,
        called_twice,
        after_an_activation,
        over_rows,
        by_the_batch,
        after_a_subclass,
        after_a_replaced_call,
        after_a_wrapper,
        before_all_else,
        after_a_sum,
    ],
)
def test_unfoldable_batch_norm_stays(build):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, build(inputs))
    assert fold_batch_norm(model) is model


def test_folds_a_convolution_shared_by_two_batch_norms():
    inputs = keras.Input((6, 6, 3))
    shared = layers.Conv2D(3, 3, padding="same")
    x = layers.BatchNormalization(name="one")(shared(inputs))
    x = layers.BatchNormalization(name="two")(shared(x))
    model = settled(keras.Model(inputs, x))
    folded = fold_batch_norm(model)
    assert not norms_of(folded)
    check_same(model, folded)


@pytest.mark.parametrize(
    "builder",
    [odd_models.shared_layers, odd_models.nested_model],
    ids=lambda b: b.__name__,
)
def test_folding_preserves_answers_of_odd_models(builder):
    # Shared and nested layers are left to TensorFlow.
    model, inputs = odd_models.build(builder)
    inputs = keras.tree.pack_sequence_as(model.input, inputs)
    before, after = (m(inputs, training=False) for m in (model, fold_batch_norm(model)))
    for name, logits in before.items():
        np.testing.assert_allclose(after[name], logits, rtol=1e-5, atol=1e-5)

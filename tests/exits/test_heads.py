from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from branchy_tf.errors import BranchyError
from branchy_tf.exits import conv_head, linear_head, logits_head, pool_head

SHAPES = {2: (6,), 3: (8, 6), 4: (8, 6, 5), 5: (4, 6, 4, 3)}


def applied(head, shape, classes: int = 3) -> keras.Model:
    keras.utils.set_random_seed(2)
    features = keras.Input(shape)
    return keras.Model(features, head(features, classes, "exit_1"))


def values(shape, rows: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, *shape)).astype("float32")


def complaint(function) -> str:
    with pytest.raises(BranchyError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rank", SHAPES)
def test_linear_head_is_the_mean_and_a_dense_layer(rank):
    model = applied(linear_head, SHAPES[rank])
    x = values(SHAPES[rank])
    kernel, bias = model.get_layer("exit_1").get_weights()
    mean = x.mean(axis=tuple(range(1, rank - 1)))
    np.testing.assert_allclose(model(x), mean @ kernel + bias, atol=1e-5)
    assert len(model.weights) == 2


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_conv_head_has_a_norm_and_relu_after_each_convolution(rank):
    model = applied(conv_head([4, 7], strides=[2, 1]), SHAPES[rank])
    kinds = [type(layer).__name__ for layer in model.layers[1:]]
    conv = f"Conv{rank - 2}D"
    assert kinds == [
        conv, "BatchNormalization", "ReLU", conv, "BatchNormalization", "ReLU",
        f"GlobalAveragePooling{rank - 2}D", "Dense",
    ]  # fmt: skip
    assert all(layer.name.startswith("exit_1") for layer in model.layers[1:])
    halved = tuple(side // 2 for side in SHAPES[rank][:-1])
    assert model.get_layer("exit_1_relu_2").output.shape == (None, *halved, 7)
    assert np.isfinite(model(values(SHAPES[rank]))).all()


def test_conv_head_takes_one_number_for_all_or_one_each():
    model = applied(conv_head(4, kernel_size=5, strides=1), (8, 8, 2))
    assert model.get_layer("exit_1_conv_1").kernel.shape == (5, 5, 2, 4)
    model = applied(conv_head((4, 3), kernel_size=(5, 1)), (8, 8, 2))
    assert model.get_layer("exit_1_conv_1").kernel.shape == (5, 5, 2, 4)
    assert model.get_layer("exit_1_conv_2").kernel.shape == (1, 1, 4, 3)
    assert model.get_layer("exit_1_relu_2").output.shape == (None, 2, 2, 3)


def test_conv_head_ends_in_the_head_it_is_given():
    model = applied(conv_head([4], readout=pool_head(2)), (8, 8, 2))
    assert [layer.name for layer in model.layers[-4:]] == [
        "exit_1_relu_1", "exit_1_pool", "exit_1_flatten", "exit_1",
    ]  # fmt: skip
    # Four by four after the convolution's stride, two by two after the windows.
    assert model.get_layer("exit_1").kernel.shape == (2 * 2 * 4, 3)


@pytest.mark.parametrize("readout", [None, 4, pool_head, layers.Dense(3)])
def test_conv_head_rejects_an_invalid_readout(readout):
    assert complaint(lambda: conv_head([4], readout=readout)) == (
        "`readout` must be a callable (features, classes, name) -> logits. Received "
        f"{readout!r}. For example: pool_head(4)."
    )


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_pool_head_is_the_means_of_windows_and_a_dense_layer(rank):
    model = applied(pool_head(2), SHAPES[rank])
    x = values(SHAPES[rank])
    *sides, channels = SHAPES[rank]
    windows = x.reshape(4, *(n for side in sides for n in (side // 2, 2)), channels)
    means = windows.mean(axis=tuple(range(2, 2 * rank - 3, 2))).reshape(4, -1)
    kernel, bias = model.get_layer("exit_1").get_weights()
    np.testing.assert_allclose(model(x), means @ kernel + bias, atol=1e-5)


def test_pool_head_keeps_the_last_partial_window():
    assert applied(pool_head(4), (9, 9, 2)).get_layer("exit_1").kernel.shape[0] == 18


def test_logits_are_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for head in (linear_head, conv_head([4]), pool_head(2)):
            assert applied(head, (8, 8, 2)).output.dtype == "float32"
        half = layers.Dense(3)(keras.Input((4,)))
        assert half.dtype == "bfloat16"
        assert logits_head(half, 5, "exit_1").dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("head", "name", "shape"),
    [
        (conv_head([4]), "conv_head", (6,)),
        (pool_head(2), "pool_head", (6,)),
        (linear_head, "linear_head", ()),
        (linear_head, "linear_head", (2, 2, 2, 2, 3)),
        (conv_head([4]), "conv_head", (2, 2, 2, 2, 3)),
    ],
)
def test_rejects_features_of_unsupported_rank(head, name, shape):
    assert complaint(lambda: applied(head, shape)) == (
        f"{name} for exit_1 needs a feature map (batch, ..., channels) with 1 to 3 axes "
        f"in between; received shape {(None, *shape)}. Choose another layer or head."
    )


def test_pool_head_needs_a_size():
    assert complaint(lambda: applied(pool_head(2), (None, None, 3))) == (
        "pool_head for exit_1 needs a feature map of known size; received shape (None, "
        "None, None, 3). Build the model for images of one size, or choose linear_head."
    )
    for head in (linear_head, conv_head([4])):
        assert applied(head, (None, None, 3)).output.shape == (None, 3)


@pytest.mark.parametrize(
    ("call", "name", "wanted", "received"),
    [
        (lambda: conv_head([]), "filters", "", "[]"),
        (lambda: conv_head([8, 0]), "filters", "", "[8, 0]"),
        (lambda: conv_head(None), "filters", "", "None"),
        (lambda: conv_head(8.0), "filters", "", "8.0"),
        (lambda: conv_head([8, 8], strides=[2]), "strides", ", 2 of them", "[2]"),
        (lambda: conv_head([8], kernel_size="3"), "kernel_size", ", 1 of them", "'3'"),
        (lambda: pool_head(0), "size", ", 1 of them", "0"),
        (lambda: pool_head(-2), "size", ", 1 of them", "-2"),
    ],
)
def test_rejects_invalid_numbers(call, name, wanted, received):
    assert complaint(call) == (
        f"`{name}` must be positive whole numbers{wanted}, or one for all. Received "
        f"{received}."
    )

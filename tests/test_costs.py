from __future__ import annotations

import keras
import pytest
from keras import layers

from branchy_tf import costs
from branchy_tf.errors import BranchyError


def test_lenet_macs_equal_a_count_by_hand(lenet):
    conv_1 = 30 * 30 * 5 * 5 * 1 * 5
    branch = 15 * 15 * 3 * 3 * 5 * 10 + 640 * 10
    conv_2 = 17 * 17 * 5 * 5 * 5 * 10
    conv_3 = 11 * 11 * 5 * 5 * 10 * 20
    dense = 720 * 84 + 84 * 10
    assert costs.full_macs(lenet) == conv_1 + conv_2 + conv_3 + dense == 1_140_070
    assert costs.cumulative_macs(lenet) == [
        conv_1 + branch,
        conv_1 + branch + conv_2 + conv_3 + dense,
    ]
    assert costs.cumulative_macs(lenet)[0] == 220_150


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Conv2D(8, 3, strides=2, padding="same"), (9, 9, 4), 5 * 5 * 9 * 4 * 8),
        (layers.Conv2D(8, 3, groups=2), (6, 6, 4), 4 * 4 * 9 * 2 * 8),
        (layers.Conv2D(2, 3, dilation_rate=2), (9, 9, 1), 5 * 5 * 9 * 2),
        (layers.Conv1D(6, 5, padding="causal"), (10, 3), 10 * 5 * 3 * 6),
        (layers.Conv3D(2, 2), (3, 3, 3, 1), 8 * 8 * 2),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 4), 9 * 9 * 4 * 2),
        (layers.SeparableConv2D(7, 3), (5, 5, 4), 9 * (9 * 4 + 4 * 7)),
        (layers.Conv2DTranspose(6, 3, strides=2), (4, 4, 2), 4 * 4 * 9 * 2 * 6),
        (layers.Dense(7), (5, 3), 5 * 3 * 7),
        (layers.EinsumDense("abc,cd->abd", (None, 6)), (5, 3), 5 * 3 * 6),
        (layers.EinsumDense("...x,xy->...y", 6), (5, 3), 5 * 3 * 6),
        (layers.ReLU(), (5, 3), 0),
        (layers.BatchNormalization(), (5, 3), 0),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_layer_macs_equal_a_count_by_hand(layer, shape, expected):
    x = keras.Input(shape)
    assert costs.macs(keras.Model(x, layer(x))) == expected


def test_a_layer_called_twice_and_a_model_inside_count_each_time():
    dense = layers.Dense(4)
    x = keras.Input((4,))
    inner = keras.Model(x, dense(dense(x)))
    y = keras.Input((4,))
    assert costs.macs(keras.Model(y, inner(inner(y)))) == 4 * 16


def test_a_sequential_model_inside_counts():
    inner = keras.Sequential([layers.Dense(8), layers.Dense(3)])
    x = keras.Input((5,))
    assert costs.macs(keras.Model(x, inner(x))) == 5 * 8 + 8 * 3


@pytest.mark.parametrize("layer", [layers.Conv2D(4, 3), layers.Dense(4)])
def test_rejects_images_of_unknown_size(layer):
    x = keras.Input((None, None, 3))
    with pytest.raises(BranchyError, match="fixed height and width"):
        costs.macs(keras.Model(x, layer(x)))

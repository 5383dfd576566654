from __future__ import annotations

import keras
from keras import layers

from branchy_tf import costs


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

"""Whole networks against what was published and against TensorFlow's own count."""

from __future__ import annotations

import frozen
import keras
import odd_models
import pytest
from keras import layers, ops

from branchy_tf import costs, zoo
from branchy_tf.multiply_adds import by_graph

# Multiply-adds in billions at 224 x 224, and where they were published.
PUBLISHED = {
    # He et al. (2015), Table 1: 3.8 with the stride in the first 1 x 1 convolution, as
    # in Keras. (torchvision's 4.1 have it in the 3 x 3 convolution.)
    "ResNet50": 3.86,
    # Sandler et al. (2018), Table 4: 300 M.
    "MobileNetV2": 0.300,
    # Tan and Le (2021), in the table of their code, google/automl: 0.72.
    "EfficientNetV2B0": 0.72,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_cost_what_was_published(name):
    model = getattr(keras.applications, name)(weights=None)
    assert costs.macs(model) == pytest.approx(PUBLISHED[name] * 1e9, rel=0.01)


def test_a_block_of_a_vision_transformer():
    """ViT-B/16 (Dosovitskiy et al., 2020): 197 tokens of width 768, 12 heads."""
    tokens, width, heads, hidden = 197, 768, 12, 3072
    x = inputs = keras.Input((tokens, width))
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(heads, width // heads)(y, y)
    y = layers.Dense(hidden, activation="gelu")(layers.LayerNormalization()(x))
    x = x + layers.Dense(width)(y)
    projections = 4 * tokens * width * width
    attention = 2 * tokens * tokens * width
    expected = projections + attention + 2 * tokens * width * hidden
    block = costs.macs(keras.Model(inputs, x))
    assert block == expected
    # The whole network, with 16 x 16 patches and 1,000 classes: 17.56 billion by the
    # table of torchvision's weights.
    whole = 12 * block + 196 * 16 * 16 * 3 * width + width * 1000
    assert whole == pytest.approx(17.56e9, rel=0.01)


def attention_by_hand(x, heads: int):
    """Attention of plain matrix products, which TensorFlow's profiler can count."""
    tokens, width = x.shape[1:]

    def split(x):
        x = ops.reshape(x, (-1, tokens, heads, width // heads))
        return ops.transpose(x, (0, 2, 1, 3))

    query, key, value = (split(layers.Dense(width)(x)) for _ in range(3))
    scores = ops.softmax(query @ ops.transpose(key, (0, 1, 3, 2)))
    x = ops.transpose(scores @ value, (0, 2, 1, 3))
    return layers.Dense(width)(ops.reshape(x, (-1, tokens, width)))


def test_attention_equals_the_count_of_the_frozen_graph():
    inputs = keras.Input((6, 8))
    by_hand = keras.Model(inputs, attention_by_hand(inputs, 2))
    layer = layers.MultiHeadAttention(2, 4)
    counted = costs.macs(by_hand)
    assert counted == frozen.macs(by_hand) > 0
    assert counted == costs.macs(keras.Model(inputs, layer(inputs, inputs)))


# The profiler does not count the einsum of Keras's attention layer.
@pytest.mark.parametrize(
    "builder", [b for b in odd_models.ALL if b is not odd_models.attention]
)
def test_odd_models_equal_the_count_of_the_frozen_graph(builder):
    model, _ = odd_models.build(builder)
    assert costs.macs(model) == frozen.macs(model) > 0
    assert sum(by_graph.macs_by_node(model).values()) == costs.macs(model)


@pytest.mark.parametrize("name", ["branchy_lenet", "branchy_alexnet"])
def test_models_of_the_zoo_equal_the_count_of_the_frozen_graph(name):
    model = zoo.build(name)
    assert costs.cumulative_macs(model)[-1] == frozen.macs(model)

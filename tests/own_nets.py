"""Networks as a user writes them, and functions that are no builders."""

from __future__ import annotations

import keras
from keras import layers

from branchy_tf import exits


@keras.saving.register_keras_serializable("own")
class Scale(layers.Layer):
    """Multiplies by one learned factor."""

    def build(self, shape) -> None:
        """Adds the factor."""
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        """Any tensor."""
        return self.factor * x


@keras.saving.register_keras_serializable("own")
class Subclassed(keras.Model):
    """A model without a graph."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(10)

    def call(self, x):
        """Logits of flat inputs."""
        return self.dense(x)


def net(classes, input_shape=(28, 28, 1), width=4):
    """Three convolutions, a custom layer and a softmax."""
    x = inputs = keras.Input(input_shape, name="images")
    x = Scale(name="scale")(layers.Rescaling(1 / 255)(x))
    for i in (1, 2, 3):
        x = layers.Conv2D(i * width, 3, 2, "same", activation="relu", name=f"conv_{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    top = layers.Dense(classes, activation="softmax", name="top")
    return keras.Model(inputs, top(x), name="mine")


def plain(classes, width=4):
    """The same from Keras's own layers, as a Sequential."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, 2, "same", activation="relu", name="conv_1"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(2 * width, 3, 2, "same", activation="relu", name="conv_2"),
            layers.Conv2D(3 * width, 3, 2, "same", activation="relu", name="conv_3"),
            layers.Dropout(0.3, name="drop"),
            layers.Flatten(name="flat"),
            layers.Dense(classes, name="top"),
        ],
        name="plain",
    )


def transformer(classes, input_shape=(28, 28, 1), width=16, depth=3):
    """A small vision transformer, by hand."""
    pixels = keras.Input(input_shape, name="images")
    x = layers.Rescaling(1 / 127.5, -1)(pixels)
    x = layers.Conv2D(width, 7, 7, name="patches")(x)
    x = layers.Reshape((-1, width), name="tokens")(x)
    for i in range(1, depth + 1):
        y = layers.LayerNormalization(name=f"block_{i}_norm_1")(x)
        y = layers.MultiHeadAttention(2, width // 2, name=f"block_{i}_attention")(y, y)
        x = layers.Add(name=f"block_{i}_add_1")([x, y])
        y = layers.LayerNormalization(name=f"block_{i}_norm_2")(x)
        y = layers.Dense(2 * width, "gelu", name=f"block_{i}_dense_1")(y)
        y = layers.Dense(width, name=f"block_{i}_dense_2")(y)
        x = layers.Add(name=f"block_{i}_add_2")([x, y])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(pixels, layers.Dense(classes, name="top")(x), name="transformer")


def with_exits(classes=10):
    """A model that has its exits."""
    return exits.add_exits(plain(classes), {"conv_1": exits.linear_head}, name="complete")


def named_output():
    """A single output under a name."""
    model = plain(10)
    return keras.Model(model.inputs[0], {"digits": model.outputs[0]}, name="named")


def one_exit():
    """Only the final exit."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Dense(10, name="exit_1")(layers.Flatten()(x))
    return keras.Model(inputs, {"exit_1": x}, name="one_exit")


def wrong_form(classes=10):
    """Exits in a list, not in a dict."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Flatten(name="flat")(x)
    outputs = [layers.Dense(classes, name=f"exit_{n}")(x) for n in (1, 2)]
    return keras.Model(inputs, outputs, name="wrong_form")


def own_head(features, classes, name):
    """A head with a hidden layer."""
    x = layers.GlobalMaxPooling2D(name=f"{name}_max")(features)
    x = layers.Dense(8, activation="relu", name=f"{name}_hidden")(x)
    return exits.logits_head(x, classes, name)


def raising(classes):
    """Fails in its own code."""
    return [1 / 0 for _ in range(classes)]


def a_list(classes):
    """Returns no model."""
    return [classes]


def nothing():
    """Forgets to return its model."""
    plain(10)


def subclassed():
    """A model without a graph."""
    return Subclassed(name="no_graph")


def unbuilt():
    """A Sequential without an input."""
    return keras.Sequential([layers.Dense(10)], name="unbuilt")

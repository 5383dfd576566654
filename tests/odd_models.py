"""Functional models that are awkward to cut, each small and with its inputs."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from branchy_tf import exits


def _head(x, number: int, classes: int = 4):
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    return exits.logits_head(x, classes, exits.exit_name(number))


def _conv(x, filters: int = 6):
    return layers.Conv2D(filters, 3, padding="same", activation="relu")(x)


def skip_across_the_cut():
    images = keras.Input((8, 8, 3))
    early = _conv(images)
    middle = _conv(early)
    # Stage 2 reads an early tensor of stage 1.
    late = layers.Add()([_conv(middle), early])
    return keras.Model(images, {"exit_1": _head(middle, 1), "exit_2": _head(late, 2)})


def several_live_tensors():
    images = keras.Input((8, 8, 3))
    a, b = _conv(images), _conv(images, 5)
    low, high = ops.split(a, 2, axis=-1)
    x = layers.Concatenate()([_conv(b), low])
    exit_1 = _head(layers.Concatenate()([a, b]), 1)
    exit_2 = _head(layers.Concatenate()([x, high, ops.cast(b, "float16")]), 2)
    # The input itself is read again at the very end.
    x = layers.Concatenate()([_conv(x), images])
    outputs = {"exit_1": exit_1, "exit_2": exit_2, "exit_3": _head(x, 3)}
    return keras.Model(images, outputs)


def several_inputs():
    image = keras.Input((8, 8, 3), name="image")
    extra = keras.Input((5,), name="extra")
    x = _conv(image)
    exit_1 = _head(x, 1)
    # The second input is first read after the first exit.
    y = layers.Dense(6, activation="tanh")(extra)
    x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(y)])
    return keras.Model([image, extra], {"exit_1": exit_1, "exit_2": _head(x, 2)})


def shared_layers():
    images = keras.Input((8, 8, 3))
    first = layers.Conv2D(3, 3, padding="same", activation="relu")
    norm = layers.BatchNormalization()
    x = norm(first(images))
    exit_1 = _head(x, 1)
    x = norm(first(x))
    exit_2 = _head(x, 2)
    outputs = {"exit_1": exit_1, "exit_2": exit_2, "exit_3": _head(norm(first(x)), 3)}
    return keras.Model(images, outputs)


def exits_off_exits():
    images = keras.Input((8, 8, 3))
    x = _conv(images)
    branch = _conv(x)
    exit_1 = _head(branch, 1)
    # exit_2 starts from the branch of exit_1 and also reads its logits.
    twig = layers.GlobalAveragePooling2D()(_conv(branch))
    exit_2 = _head(layers.Concatenate()([twig, exit_1]), 2)
    outputs = {"exit_1": exit_1, "exit_2": exit_2, "exit_3": _head(_conv(x), 3)}
    return keras.Model(images, outputs)


def later_exit_made_first():
    images = keras.Input((8, 8, 3))
    exit_2 = _head(_conv(images), 2)
    # The first exit reads the second's logits: stage 2 has nothing left to do.
    exit_1 = _head(layers.Dense(7)(exit_2), 1)
    return keras.Model(images, {"exit_1": exit_1, "exit_2": exit_2})


def nested_model():
    inner_in = keras.Input((8, 8, 6))
    inner = keras.Model(inner_in, [_conv(inner_in), _conv(inner_in)], name="inner")
    images = keras.Input((8, 8, 3))
    a, b = inner(_conv(images))
    exit_1 = _head(a, 1)
    a, b = inner(layers.Add()([a, b]))
    exit_2 = _head(layers.Concatenate()([a, b]), 2)
    return keras.Model(images, {"exit_1": exit_1, "exit_2": exit_2})


def attention():
    tokens = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(tokens, tokens, use_causal_mask=True)
    exit_1 = _head(layers.GlobalAveragePooling1D()(x), 1)
    y = layers.MultiHeadAttention(2, 4)(query=x, value=tokens, key=x)
    y = layers.LayerNormalization()(y + 2.0 * x)
    exit_2 = _head(ops.mean(y, axis=1), 2)
    return keras.Model(tokens, {"exit_1": exit_1, "exit_2": exit_2})


def many_exits():
    x = values = keras.Input((5,))
    outputs = {}
    # More than nine: exit_10 must come after exit_9, not after exit_1.
    for number in range(1, 12):
        x = layers.Dense(5, activation="tanh")(x)
        outputs[f"exit_{number}"] = _head(x, number)
    return keras.Model(values, outputs)


def mobile_net():
    trunk = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, include_top=False
    )
    early = trunk.get_layer("block_3_expand_relu").output
    outputs = {"exit_1": _head(early, 1), "exit_2": _head(trunk.output, 2)}
    return keras.Model(trunk.input, outputs)


ALL = [
    skip_across_the_cut,
    several_live_tensors,
    several_inputs,
    shared_layers,
    exits_off_exits,
    later_exit_made_first,
    nested_model,
    attention,
    many_exits,
    mobile_net,
]


def settled(model: keras.Model) -> keras.Model:
    """Gives a model weights as after training: none has its initial value."""
    random = np.random.default_rng(5)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "bias", "moving_mean"):
            variable.assign(random.normal(scale=0.3, size=variable.shape))
    return model


def build(builder) -> tuple[keras.Model, list[np.ndarray]]:
    """The model, with seeded weights, and a batch of 6 for its inputs."""
    keras.utils.set_random_seed(3)
    model = builder()
    random = np.random.default_rng(3)
    for variable in model.non_trainable_variables:
        # Initial batch norm statistics would hide whether they are used.
        if variable.name.startswith("moving"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    inputs = [
        random.normal(size=(6, *tensor.shape[1:])).astype(tensor.dtype)
        for tensor in model.inputs
    ]
    return model, inputs

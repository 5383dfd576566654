"""Rebuilds and wraps networks as the worker does; prints what became of each as JSON.

A program of its own, because it imports tensorflow-model-optimization.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import odd_models
from keras import layers

from branchy_tf import exits, graphs, zoo
from branchy_tf.compression import METHODS, Settings, methods, twin
from branchy_tf.compression.describing import describe
from branchy_tf.errors import BranchyError


def functional(shape, dtype, *middle: layers.Layer) -> keras.Model:
    """Two exits, each after half of the layers in `middle`."""
    inputs = keras.Input(shape, dtype=dtype)
    x, outputs = inputs, {}
    half = -(-len(middle) // 2)
    for number, part in enumerate((middle[:half], middle[half:]), start=1):
        for layer in part:
            x = layer(x)
        name = f"exit_{number}"
        outputs[name] = layers.Dense(3, name=name)(layers.Flatten(name=f"f_{number}")(x))
    return keras.Model(inputs, outputs, name="functional")


def rows(model: keras.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    found = {}
    for tensor in model.inputs:
        shape = (4, *tensor.shape[1:])
        found[tensor.name] = (
            random.normal(size=shape)
            if keras.backend.is_float_dtype(tensor.dtype)
            else random.integers(0, 100, shape)
        )
    return graphs.cast_inputs(model, found)


def networks() -> dict[str, tuple[keras.Model, tuple[str, ...]]]:
    """`{name: (network, the methods to try)}`; wrapping a large network takes seconds."""
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="deep"), layers.ReLU()]
    )
    shared = layers.Dense(8, name="shared")
    resnet = zoo.branchy_resnet(depth=8, exits="light", input_shape=(16, 16, 3))
    return {
        "lenet": (zoo.branchy_lenet(), METHODS),
        "alexnet": (zoo.branchy_alexnet(), ("prune",)),
        "resnet": (resnet, ("qat",)),
        "vgg": (zoo.branchy_vgg(), ()),
        "inside": (
            functional((8, 8, 3), "float32", inner, layers.Conv2D(5, 3, name="conv")),
            METHODS,
        ),
        "shared": (functional((8,), "float32", shared, shared), METHODS),
        "several": (odd_models.build(odd_models.several_inputs)[0], METHODS),
        "text": (
            functional(
                (6,),
                "int32",
                layers.Embedding(100, 8, name="embedding"),
                layers.LSTM(8, return_sequences=True, name="lstm"),
                layers.LayerNormalization(name="norm"),
                layers.Conv1D(8, 3, activation="silu", name="conv"),
            ),
            METHODS,
        ),
        "odd": (
            functional(
                (8, 8, 3),
                "float32",
                layers.Conv2D(6, 3, name="conv"),
                layers.LeakyReLU(0.3),
                layers.PReLU(name="prelu"),
                layers.MaxPooling2D(),
                layers.BatchNormalization(name="norm"),
                layers.UpSampling2D(),
            ),
            METHODS,
        ),
        "small": (functional((4,), "float32", layers.Dense(2)), ("cluster",)),
        "hard_sigmoid": (
            functional((8,), "float32", layers.Dense(8, activation="hard_sigmoid")),
            (),
        ),
        "lambda": (
            functional((8,), "float32", layers.Lambda(lambda x: 2 * x, name="two")),
            (),
        ),
    }


def results(model: keras.Model, tried: tuple[str, ...]) -> dict[str, object]:
    described = describe(model)
    names = exits.exit_names(model)
    inputs = rows(model)
    logits = model(list(inputs.values()), training=False)
    expected = np.stack([np.asarray(logits[name]) for name in names], axis=1)
    try:
        rebuilt = twin.build(described.graph, described.weights())
        found: dict[str, object] = {
            "difference": twin.difference(rebuilt, inputs, expected, names)
        }
    except BranchyError as error:
        return {"error": str(error)}
    for method in tried:
        rebuilt = twin.build(described.graph, described.weights())
        try:
            settings = Settings(method, clusters=8)
            found[method] = sorted(methods.wrap(rebuilt, settings, 10).changed)
        except BranchyError as error:
            found[method] = str(error)
    return found


if __name__ == "__main__":
    keras.utils.set_random_seed(2)
    print(json.dumps({name: results(*case) for name, case in networks().items()}))

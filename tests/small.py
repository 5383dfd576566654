"""Data and a model that train within a second."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from keras import layers

from branchy_tf import data, exits


def model() -> keras.Model:
    """Two exits, three classes, raw 8 x 8 pixels; the same weights every time."""
    keras.utils.set_random_seed(3)
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Flatten(name="flatten")(layers.Rescaling(1 / 255, name="rescale")(pixels))
    x = layers.Dense(6, activation="relu", name="dense_1")(x)
    exit_1 = exits.logits_head(x, 3, "exit_1")
    x = layers.Dense(5, activation="relu", name="dense_2")(x)
    exit_2 = exits.logits_head(x, 3, "exit_2")
    return keras.Model(pixels, {"exit_1": exit_1, "exit_2": exit_2}, name="small")


def dataset() -> data.Dataset:
    """30 training rows and 10 each for the rest, brighter from class to class."""
    random = np.random.default_rng(4)

    def split(rows: int) -> data.Split:
        labels = np.arange(rows, dtype=np.int64) % 3
        noise = random.integers(0, 80, (rows, 8, 8, 1))
        return data.Split(
            (noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels
        )

    return data.Dataset("small", 3, split(30), split(10), split(10))


def write_npz(path: pathlib.Path, digits: data.Dataset) -> pathlib.Path:
    """Writes 400 training and 100 test digits of `digits` as an .npz."""
    np.savez(
        path,
        x_train=digits.train.images[:400],
        y_train=digits.train.labels[:400],
        x_test=digits.test.images[:100],
        y_test=digits.test.labels[:100],
    )
    return path

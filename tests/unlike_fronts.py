"""Unlike fronts that end in tensors of one shape, and their data: for tests."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from keras import layers

from branchy_tf import exits

CLASSES = 3


def road(classes: int = CLASSES, filters: int = 4) -> keras.Model:
    """Grey 8 x 8 images, two exits with batch norm behind the cut [B, 4, 4, 6]."""
    images = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="rescale")(images)
    x = layers.Conv2D(filters, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="narrow")(x)
    early = exits.linear_head(x, classes, "exit_1")
    x = layers.Conv2D(8, 3, padding="same", name="later")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    return keras.Model(
        images, {"exit_1": early, "exit_2": exits.linear_head(x, classes, "exit_2")}
    )


def airport(classes: int = CLASSES) -> keras.Model:
    """Coloured 16 x 16 images, dense after the first of two exits before the cut."""
    images = keras.Input((16, 16, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="rescale")(images)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    first = exits.linear_head(x, classes, "exit_1")
    # The layer of the same name is behind the cut of `road`.
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="later")(x)
    second = exits.linear_head(x, classes, "exit_2")
    x = layers.Flatten(name="flat")(x)
    third = exits.logits_head(x, classes, "exit_3")
    return keras.Model(images, {"exit_1": first, "exit_2": second, "exit_3": third})


def write_camera(
    path: pathlib.Path, seed: int, side: int, channels: int, rows: int = 240
) -> pathlib.Path:
    """Images whose class is the third that is bright, as an .npz with class names."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", rows), ("test", 60)):
        labels = np.arange(count) % CLASSES
        images = random.integers(0, 80, (count, side, side, channels))
        third = side // CLASSES
        for i, label in enumerate(labels):
            images[i, :, label * third : (label + 1) * third] += 120
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez(path, class_names=np.array(["left", "middle", "right"]), **arrays)
    return path

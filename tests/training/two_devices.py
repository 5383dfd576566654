"""Trains on one device and on two, and prints how much they differ; run by a test.

  python two_devices.py mirrored|data_parallel FOLDER

Must be a process of its own, in which the devices are made before anything runs.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import keras
import numpy as np
import small
from keras import layers

from branchy_tf import exits, training

# With a last batch that two devices cannot share equally, of 5 of 29 rows; the
# validation split has one of 9.
ROWS, BATCH = 29, 12
CASES = {
    "joint, distilled, in equilibrium": {
        "distillation": (0.5, 3.0), "gradient_scaling": "equilibrium",
        "augmentation": "flip_shift_cutout", "patience": 1, "epochs": 2,
    },
    "branches only, class weights": {
        "mode": "branches_only", "baseline_epochs": 1, "weight_decay": 0.1,
        "class_weights": {0: 3.0},
    },
    "detached, one row left": {"mode": "detached", "batch_size": 14},
    "baseline first, bfloat16": {"mode": "baseline_first", "baseline_epochs": 1},
}  # fmt: skip


def model() -> keras.Model:
    """Two exits, batch norm, and under JAX dropout; the same weights every time."""
    keras.utils.set_random_seed(3)
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(3, 3, strides=2, name="conv")(x)
    x = layers.BatchNormalization(momentum=0.9, name="norm")(x)
    x = layers.LeakyReLU(name="block")(x)
    if keras.backend.backend() == "jax":
        x = layers.Dropout(0.3, seed=1)(x)
    logits = layers.Dense(3, name="logits")(layers.Flatten()(x))
    return exits.add_exits(keras.Model(pixels, logits), {"block": exits.linear_head})


def trained(
    distribution, folder: pathlib.Path, name: str, settings: dict
) -> tuple[list, list]:
    """The figures of all epochs, and the weights in the saved model."""
    folder = training.RunFolder(folder / f"{name} on {distribution.devices}")
    data = small.dataset()
    data = dataclasses.replace(
        data,
        train=data.train.take(slice(ROWS)),
        validation=data.validation.take(slice(9)),
    )
    settings = {"learning_rate": 0.003, "batch_size": BATCH, "epochs": 1} | settings
    if "bfloat16" in name:
        keras.config.set_dtype_policy("mixed_bfloat16")
    with distribution.scope():
        training.train(model(), data, training.Settings(**settings), folder)
    keras.config.set_dtype_policy("float32")
    saved = keras.models.load_model(folder.model)
    assert not any(getattr(layer, "synchronized", False) for layer in saved.layers)
    rows = training.read_history(folder.history)
    return rows, saved.get_weights()


def main(strategy: str, folder: str) -> None:
    if strategy == "mirrored":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
        tf.config.set_logical_device_configuration(cpu, two)
    one, two = training.distribute("none"), training.distribute(strategy)
    found = {}
    for name, settings in CASES.items():
        (rows, weights), (others, theirs) = (
            trained(distribution, pathlib.Path(folder), name, settings)
            for distribution in (one, two)
        )
        found[name] = {
            "rows": [rows, others],
            "weights": max(
                float(np.abs(a - b).max()) for a, b in zip(weights, theirs, strict=True)
            ),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

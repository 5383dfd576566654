r"""Kinds of forest from a table with numbers and codes, by a network with two inputs.

The rows are made with a seed, after the forest cover data set: elevation, slope,
distances and light as numbers, soil and area as codes. Elevation decides most of them;
the rest needs the other columns together, which is what the later layers are for.

Run in a checkout:

  python -m branchy_tf.train --model=examples.table:model --dataset=examples.table:data \
    --exits="layer_1=linear;layer_2=linear" --epochs=12 --learning_rate=0.003 \
    --run_dir=runs/table
  python -m branchy_tf.calibrate --run_dir=runs/table
  python -m branchy_tf.evaluate --run_dir=runs/table
  python -m branchy_tf.export --run_dir=runs/table --export_dir=exports --model_name=table

`python -m examples.table forest.npz` writes the same data set as a file, for
`--dataset=forest.npz`.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import layers

CLASSES = ("spruce", "pine", "aspen", "willow")
NUMBERS = ("elevation", "slope", "to_water", "to_road", "light")
SOILS, AREAS = 12, 4


def data(rows: int = 6000, seed: int = 0) -> dict:
    """Training, validation and test rows, in the shares 4 to 1 to 1.

    The inputs are {"numbers": float32 [n, 5], "codes": int32 [n, 2]}.
    """
    random = np.random.default_rng(seed)
    elevation = random.uniform(1800, 3800, rows)
    slope = random.gamma(2.0, 7.0, rows)
    water, road = random.exponential((250, 1500), (rows, 2)).T
    light = random.normal(220, 25, rows)
    soil, area = random.integers(0, SOILS, rows), random.integers(0, AREAS, rows)
    # High up there is spruce, low down willow. In between, the soil says whether water
    # or light decides.
    first = np.where(soil % 3 == 0, water > 170, light - slope > 207)
    labels = np.select([elevation > 3100, elevation < 2300], [0, 3], 1 + first)
    wrong = random.random(rows) < 0.02
    labels[wrong] = random.integers(0, len(CLASSES), wrong.sum())
    numbers = np.stack([elevation, slope, water, road, light], axis=1)
    inputs = {
        "numbers": numbers.astype(np.float32),
        "codes": np.stack([soil, area], axis=1).astype(np.int32),
    }
    cut, last = rows * 4 // 6, rows * 5 // 6
    parts = {"train": (0, cut), "validation": (cut, last), "test": (last, rows)}
    splits = {
        part: ({name: x[a:b] for name, x in inputs.items()}, labels[a:b])
        for part, (a, b) in parts.items()
    }
    return splits | {"class_names": CLASSES}


def model(classes: int = len(CLASSES), width: int = 8, depth: int = 4) -> keras.Model:
    """A network of dense layers that reads numbers [B, 5] and codes [B, 2].

    Its layers are called layer_1, layer_2, ...: the places for exits. Each is twice as
    wide as the one before.
    """
    numbers = keras.Input((len(NUMBERS),), name="numbers")
    codes = keras.Input((2,), dtype="int32", name="codes")
    # Batch norm puts metres and degrees on one scale, without looking at the data first.
    parts = [layers.BatchNormalization(name="scale")(numbers)]
    for column, (name, count) in enumerate((("soil", SOILS), ("area", AREAS))):
        code = codes[:, column]
        parts.append(layers.Embedding(count, 8, name=name)(code))
    x = layers.Concatenate(name="columns")(parts)
    for k in range(1, depth + 1):
        x = layers.Dense(width << (k - 1), activation="relu", name=f"layer_{k}")(x)
    logits = layers.Dense(classes, name="logits")(x)
    return keras.Model([numbers, codes], logits, name="table")


def write(path: str, rows: int = 6000) -> None:
    """Writes the data set as an .npz, as `--dataset` takes it."""
    made = data(rows)
    arrays = {"class_names": np.array(made.pop("class_names"))}
    for part, (inputs, labels) in made.items():
        arrays[f"y_{part}"] = labels
        arrays |= {f"x_{part}/{name}": array for name, array in inputs.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    write(sys.argv[1])

"""What a run records of itself, so that every later command takes it as it was trained.

data.json describes the data: their name and class names, the range of each input over the
training split, and how to load them again. Data that only exist in Python are stored
beside it in data.npz. train.flags holds the settings.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from absl import logging

from branchy_tf import data, files, graphs
from branchy_tf.checks import ranges
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.settings import Settings

_BATCH_SIZE = 1024
# The most bytes of arrays that data.npz holds.
_MOST_BYTES = 2**30
_PYTHON = "# Settings of a training in Python, without its model.\n"


def settings_flags(settings: Settings) -> dict[str, str]:
    """The settings as train.flags stores them, `{name: text}`; without those unset."""
    flags = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Mapping):
            value = json.dumps({str(k): float(number) for k, number in value.items()})
        elif isinstance(value, (list, tuple, np.ndarray)):
            value = ",".join(str(number) for number in value)
        if value is not None:
            flags[field.name] = str(value)
    return flags


def flags_text(settings: Settings) -> str:
    """The content of train.flags for a training in Python."""
    lines = (f"--{name}={text}\n" for name, text in settings_flags(settings).items())
    return _PYTHON + "".join(lines)


def write_data(folder: RunFolder, model: keras.Model, dataset: Dataset) -> None:
    """Writes data.json, and data.npz for a data set that cannot be loaded by name.

    An interrupted training finds its data.json and keeps it.
    """
    if folder.data.is_file():
        return
    found = input_ranges(model, dataset.train)
    source = dataset.source
    if source is None and _store(folder, dataset):
        source = {"name": folder.splits.name}
    files.write_json(
        folder.data,
        {
            "dataset": dataset.name,
            "classes": dataset.classes,
            "class_names": dataset.class_names,
            "inputs": {name: known.to_json() for name, known in found.items()},
            "source": source,
        },
    )


def input_ranges(model: keras.Model, split: Split) -> dict[str, ranges.InputRange]:
    """The range of each input of a split, by the names of `graphs.input_names`.

    Raises:
        BranchyError: the split has no rows, or values that are not finite.
    """
    return ranges.measure(
        graphs.named_inputs(model, inputs) for inputs, _ in split.batches(_BATCH_SIZE)
    )


def read_data(folder: RunFolder) -> dict[str, Any]:
    """The content of data.json; empty if the run has none.

    `inputs` are `InputRange`s by name.

    Raises:
        BranchyError: the file is damaged.
    """
    if not folder.data.is_file():
        return {}
    value = files.read_json(folder.data)
    inputs = ranges.ranges_from_json(value.get("inputs"), folder.data)
    source = value.get("source")
    if source is not None and not isinstance(source, dict):
        raise BranchyError(
            f"{folder.data} has the source {source!r}; expected an object or null. "
            "Train again, or pass the data set."
        )
    return value | {"inputs": inputs}


def data_flags(folder: RunFolder) -> dict[str, str]:
    """The flags with which the run's data set is loaded, as texts.

    Those of data.json count, because a training in Python may use a data set that was
    cut with another seed than its own.
    """
    flags = folder.read_flags() if folder.flags.is_file() else {}
    source = read_data(folder).get("source")
    if not source:
        return flags
    named = {_flag(argument): _text(value) for argument, value in source.items()}
    known = {_flag(argument) for argument in inspect.signature(data.load).parameters}
    return {name: text for name, text in flags.items() if name not in known} | named


def _flag(argument: str) -> str:
    """The flag for an argument of `data.load`."""
    return "dataset" if argument == "name" else argument


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def is_stored(folder: RunFolder, name: str | None) -> bool:
    """Whether the data set of this name is the run's own data.npz."""
    return name == folder.splits.name and folder.splits.is_file()


def load_dataset(folder: RunFolder) -> Dataset:
    """The data set of a run, as it was recorded.

    Raises:
        BranchyError: the run does not say which, or it cannot be loaded.
    """
    source = read_data(folder).get("source")
    if source is None:
        flags = folder.read_flags() if folder.flags.is_file() else {}
        if "dataset" not in flags:
            raise BranchyError(
                f"{folder.path} does not say which data it was trained on, or they were "
                "too large to store. Pass the data set."
            )
        size = flags.get("validation_size")
        return data.load(
            flags["dataset"],
            flags.get("data_dir"),
            None if size is None else int(size),
            int(flags.get("seed", 0)),
        )
    if is_stored(folder, source.get("name")):
        return load_stored(folder)
    # JSON has no tuples.
    arguments: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in source.items()
    }
    return data.load(**arguments)


def _store(folder: RunFolder, dataset: Dataset) -> bool:
    """Writes data.npz unless the arrays are too large; returns whether it did."""
    total = sum(
        int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
        for split in dataset.splits.values()
        for array in split.arrays.values()
    )
    if total > _MOST_BYTES:
        logging.info(
            "The data have %.1f GB, so the run does not store them; pass --dataset to "
            "later commands.",
            total / 1e9,
        )
        return False
    arrays: dict[str, np.ndarray] = {}
    for part, split in dataset.splits.items():
        for name, array in split.arrays.items():
            arrays[f"x_{part}/{name}" if name else f"x_{part}"] = np.asarray(array[:])
        arrays[f"y_{part}"] = split.labels
        if split.weights is not None:
            arrays[f"w_{part}"] = split.weights
    with files.replacing(folder.splits) as beside:
        np.savez(beside, **arrays)  # type: ignore[arg-type]  # NumPy's own flag
    return True


def load_stored(folder: RunFolder) -> Dataset:
    """The data set in data.npz.

    Raises:
        BranchyError: the file or data.json is damaged.
    """
    known = read_data(folder)
    mend = "Pass the data set, or train again."
    with files.reading(folder.splits, "the data of a training", mend):
        with np.load(folder.splits, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names = known.get("class_names")
        return Dataset(
            known["dataset"],
            int(known["classes"]),
            _split(arrays, "train"),
            _split(arrays, "validation"),
            _split(arrays, "test"),
            None if names is None else tuple(names),
            {"name": str(folder.splits)},
        )


def _split(arrays: Mapping[str, np.ndarray], part: str) -> Split:
    prefix = f"x_{part}/"
    several = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    inputs = several or arrays[f"x_{part}"]
    return Split(inputs, arrays[f"y_{part}"], arrays.get(f"w_{part}"))

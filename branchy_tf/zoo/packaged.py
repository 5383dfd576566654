"""The weights that ship with the package, and their integrity."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil
from typing import Any

import h5py
import keras
import numpy as np

from branchy_tf import files
from branchy_tf.errors import BranchyError

FOLDER = pathlib.Path(__file__).parent / "weights"
REGISTRY = FOLDER / "registry.json"


@dataclasses.dataclass(frozen=True)
class Packaged:
    """One set of packaged weights.

    Attributes:
        model: the name of the builder.
        tag: the name of the set.
        arguments: the builder arguments that the set fixes.
        dataset: the data set it was trained on.
        baseline_accuracy: the test accuracy of the trained baseline, a fraction of 1;
            None if no baseline was trained.
        seed: the seed of its training, which cut the validation split.
        sha256: the hash of each file, `{"weights": ..., "thresholds": ...}`.
    """

    model: str
    tag: str
    arguments: dict[str, Any]
    dataset: str
    baseline_accuracy: float | None
    seed: int
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def weights(self) -> pathlib.Path:
        """The weights, a `.weights.h5` file."""
        return FOLDER / f"{self.model}_{self.tag}.weights.h5"

    @property
    def thresholds(self) -> pathlib.Path:
        """The calibrated thresholds, a thresholds.json."""
        return FOLDER / f"{self.model}_{self.tag}.thresholds.json"

    def check(self) -> None:
        """Raises `BranchyError` unless both files are present and unchanged."""
        for kind, path in (("weights", self.weights), ("thresholds", self.thresholds)):
            found = sha256(path) if path.is_file() else "no file"
            if found != self.sha256[kind]:
                raise BranchyError(
                    f"The packaged file {path} is damaged: its SHA-256 is {found}, "
                    f"expected {self.sha256[kind]}. Install branchy_tf again."
                )


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def everything() -> list[Packaged]:
    """All that is packaged, of every model."""
    models = files.read_json(REGISTRY)
    return [entry for model in models for entry in every(model).values()]


def every(model: str) -> dict[str, Packaged]:
    """The packaged weights of a model, `{tag: Packaged}`."""
    entries = files.read_json(REGISTRY).get(model, {})
    return {
        tag: Packaged(
            model,
            tag,
            {
                # JSON has no tuples.
                name: tuple(value) if isinstance(value, list) else value
                for name, value in entry["arguments"].items()
            },
            entry["dataset"],
            entry["baseline_accuracy"],
            entry["seed"],
            entry["sha256"],
        )
        for tag, entry in entries.items()
    }


# Smaller arrays become larger: a compressed one needs an index.
_WORTH_COMPRESSING = 4096


def _compress(path: pathlib.Path) -> None:
    """Compresses the arrays of an HDF5 file in place.

    They keep their values: only what float16 holds exactly is stored in it.
    """
    whole = path.with_name(f"{path.name}.whole")
    path.rename(whole)
    try:
        with h5py.File(whole) as source, h5py.File(path, "w") as target:

            def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
                if isinstance(item, h5py.Group):
                    made = target.require_group(name)
                else:
                    made = _smallest(target, name, item[()])
                made.attrs.update(item.attrs)

            source.visititems(copy)
            target.attrs.update(source.attrs)
    finally:
        whole.unlink()


def _smallest(target: h5py.File, name: str, values: Any) -> h5py.Dataset:
    values = np.asarray(values)
    if values.nbytes < _WORTH_COMPRESSING:
        return target.create_dataset(name, data=values)
    if values.dtype == np.float32:
        halved = values.astype(np.float16)
        values = halved if np.array_equal(halved, values) else values
    return target.create_dataset(name, data=values, compression="gzip", shuffle=True)


def add(entry: Packaged, model: keras.Model, thresholds: files.Path) -> None:
    """Adds a set of weights to the package and its registry.

    Args:
        entry: its description; `sha256` is computed here.
        model: the model with the weights.
        thresholds: the path of the calibrated thresholds.json.
    """
    with files.replacing(entry.weights) as beside:
        model.save_weights(beside)
        _compress(beside)
    with files.replacing(entry.thresholds) as beside:
        shutil.copyfile(thresholds, beside)
    registry = files.read_json(REGISTRY)
    registry.setdefault(entry.model, {})[entry.tag] = {
        "arguments": entry.arguments,
        "dataset": entry.dataset,
        "baseline_accuracy": entry.baseline_accuracy,
        "seed": entry.seed,
        "sha256": {
            "weights": sha256(entry.weights),
            "thresholds": sha256(entry.thresholds),
        },
    }
    files.write_json(REGISTRY, dict(sorted(registry.items())))

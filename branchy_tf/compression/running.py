"""Compresses a model and writes a new run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from branchy_tf import exits, files, graphs, plots, scoring
from branchy_tf.compression import child, figures, tflite
from branchy_tf.compression.describing import Description, describe
from branchy_tf.compression.settings import Settings
from branchy_tf.data import (
    Dataset,
    Split,
    check_augmentable,
    check_fits,
    class_weights,
    weighted,
)
from branchy_tf.errors import BranchyError
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.training import RunFolder, read_history
from branchy_tf.training.losses import check_loss_weights

# The rows on which the rebuilt network is compared with the model.
_COMPARED = 64
# The rows that are copied at a time.
_COPIED = 1024
# What a compressed run takes over from its source.
_KEPT = ("train.flags", "baseline.keras", "data.json", "data.npz")


def compress(
    model: keras.Model,
    dataset: Dataset,
    settings: Settings,
    folder: RunFolder,
    source: RunFolder | None = None,
    flags: str | None = None,
) -> dict[str, Any]:
    """Compresses a multi-exit model while fine-tuning all exits jointly.

    Writes a run folder: compression.json (the figures), history.csv, training.png,
    train.flags, and model.keras (prune, cluster) or all_exits.tflite (qat). The folder
    appears once everything is in it. The work is done in a process of its own, because
    tensorflow-model-optimization needs Keras 2.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`; stays unchanged.
        dataset: trains on its training split, whose rows may have weights, and measures
            on its validation split.
        settings: of the compression.
        folder: to write to; must not exist, be empty, or hold the result of the same
            compression, which is then returned.
        source: the run that the model comes from, whose train.flags, baseline and
            history go into the new folder.
        flags: the text of train.flags if there is no source.

    Returns:
        The content of compression.json.

    Raises:
        BranchyError: model, data and settings do not fit together; the folder exists; a
            package is missing; or a layer cannot be rebuilt or compressed.

    Example:

    ```python
    model = branchy_lenet(weights="mnist")
    compress(model, data.load("mnist"), Settings("prune"), RunFolder("runs/pruned"))
    ```
    """
    child.check_installed()
    check_fits(model, dataset)
    names = exits.exit_names(model)
    weights = check_loss_weights(names, settings.loss_weights)
    settings = dataclasses.replace(settings, loss_weights=weights)
    check_augmentable(settings.augmentation, dataset)
    if settings.class_weights is not None:
        given = class_weights(settings.class_weights, dataset).tolist()
        settings = dataclasses.replace(settings, class_weights=given)
        dataset = weighted(dataset, given)
    description = describe(model)
    _check_skipped(description, settings)
    request = {
        **settings.record(),
        "source": None if source is None else str(source.path),
        "source_weights": graphs.fingerprint(model),
        "dataset": dataset.name,
    }
    if folder.path.is_dir() and any(folder.path.iterdir()):
        return _read_done(folder, request)
    with (
        _appearing(folder) as new,
        tempfile.TemporaryDirectory(prefix="branchy_tf_compress_") as work,
    ):
        place = pathlib.Path(work)
        before = _validation_logits(model, dataset.validation)
        _write_job(place, model, description, dataset, settings, before[:_COMPARED])
        rows, done = _follow(place, settings, names)
        if settings.method == "qat":
            measured = _quantized(new, place, model, dataset, done["changed"])
        else:
            measured = _weights(new, place, model, description, done, settings, dataset)
        measured["exit_accuracies"]["before"] = _accuracies(before, dataset.validation)
        record = request | {"rebuilt_difference": done["difference"]} | measured
        _write_rest(new, rows, names, source, flags)
        files.write_json(new.compression, record)
    return record


def _check_skipped(description: Description, settings: Settings) -> None:
    known = description.names()
    for name in settings.skip_layers:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise BranchyError(
                f"--skip_layers={name}: {description.graph['name']!r} has no such layer."
                f"{hint} See model.summary()."
            )


def _read_done(folder: RunFolder, request: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the same compression in `folder`; raises for anything else."""
    advice = "Pass another --output_dir, or remove it."
    if not folder.compression.is_file():
        raise BranchyError(
            f"{folder.path} holds other files and no {folder.compression.name}. {advice}"
        )
    record = files.read_json(folder.compression)
    changed = [
        f"{key} was {record.get(key)} and is now {value}"
        for key, value in request.items()
        if record.get(key) != value
    ]
    if changed:
        raise BranchyError(
            f"{folder.path} holds another compression: {'; '.join(changed)}. {advice}"
        )
    return record


@contextlib.contextmanager
def _appearing(folder: RunFolder) -> Iterator[RunFolder]:
    """A folder beside `folder` that takes its place on success."""
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    beside = tempfile.mkdtemp(prefix=f".{folder.path.name[:40]}-", dir=folder.path.parent)
    try:
        os.chmod(beside, 0o777 & ~files.umask())
        yield RunFolder(beside)
        # Replaces an empty folder too.
        os.replace(beside, folder.path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _validation_logits(model: keras.Model, split: Split) -> np.ndarray:
    return scoring.every_exit(LogitsPredictor(model), split)


def _accuracies(logits: np.ndarray, split: Split) -> list[float]:
    return (logits.argmax(axis=-1) == split.labels[:, None]).mean(axis=0).tolist()


def _write_job(
    place: pathlib.Path,
    model: keras.Model,
    description: Description,
    dataset: Dataset,
    settings: Settings,
    expected: np.ndarray,
) -> None:
    files.write_json(
        place / "job.json",
        {
            "graph": description.graph,
            "settings": dataclasses.asdict(settings),
            "exits": exits.exit_names(model),
        },
    )
    np.savez(place / "weights.npz", **description.weights())  # type: ignore[arg-type]
    np.save(place / "expected.npy", expected)
    for name in ("train", "validation"):
        split = dataset.splits[name]
        arrays = graphs.named_inputs(model, split.inputs).values()
        for number, array in enumerate(arrays):
            _save_rows(place / f"{name}_input_{number}.npy", array)
        np.save(place / f"{name}_labels.npy", split.labels)
        if split.weights is not None:
            np.save(place / f"{name}_weights.npy", split.weights)


def _save_rows(path: pathlib.Path, array: Any) -> None:
    """Writes an array that may not fit into memory as .npy."""
    shape = (len(array), *array.shape[1:])
    copy = np.lib.format.open_memmap(path, "w+", array.dtype, shape)
    for start in range(0, len(array), _COPIED):
        copy[start : start + _COPIED] = array[start : start + _COPIED]
    copy.flush()


def _follow(
    place: pathlib.Path, settings: Settings, names: list[str]
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Waits for the worker: the rows of its history, and its last message."""
    rows: list[dict[str, str]] = []
    done: dict[str, Any] = {}
    with (
        contextlib.closing(child.messages(place)) as messages,
        tqdm(unit=" steps", desc=settings.method) as bar,
    ):
        for message in messages:
            if "step" in message:
                bar.total = message["steps"]
                bar.update(message["step"] - bar.n)
            elif "epoch" in message:
                found = message["epoch"]
                row = {"phase": settings.method, "epoch": str(len(rows) + 1)}
                rows.append(row | {key: f"{value:.6g}" for key, value in found.items()})
                last = [f"{found[f'val_{name}_accuracy']:.2%}" for name in names]
                bar.set_postfix_str(f"validation {', '.join(last)}")
            else:
                done = message
    return rows, done


def _weights(
    new: RunFolder,
    place: pathlib.Path,
    model: keras.Model,
    description: Description,
    done: Mapping[str, Any],
    settings: Settings,
    dataset: Dataset,
) -> dict[str, Any]:
    """Writes model.keras with the weights of the worker; returns its figures."""
    with np.load(place / "result.npz") as result:
        found = dict(result)
    layers = figures.of_layers(description.names(), found, done["changed"])
    figures.check(layers, settings)
    compressed = _with_weights(model, description, found)
    with files.replacing(new.model) as beside:
        compressed.save(beside)
    logits = _validation_logits(compressed, dataset.validation)
    return {
        "layers": layers,
        "sparsity_reached": figures.sparsity(layers),
        "exit_accuracies": {"after": _accuracies(logits, dataset.validation)},
        "gzipped_bytes": {
            "before": figures.gzipped_weights(model),
            "after": figures.gzipped_weights(compressed),
        },
    }


def _with_weights(
    model: keras.Model, description: Description, found: Mapping[str, np.ndarray]
) -> keras.Model:
    """A copy of `model` with other weights."""
    copy = type(model).from_config(model.get_config())
    fresh = {
        id(variable): found[f"{number}.{i}"]
        for number, layer in enumerate(description.layers)
        for i, variable in enumerate(layer.weights)
    }
    copy.set_weights([fresh[id(variable)] for variable in model.weights])
    return copy


def _quantized(
    new: RunFolder,
    place: pathlib.Path,
    model: keras.Model,
    dataset: Dataset,
    changed: Mapping[str, Any],
) -> dict[str, Any]:
    """Takes all_exits.tflite over from the worker; returns its figures."""
    path = new.all_exits
    shutil.copyfile(place / path.name, path)
    accuracies = {}
    for key, split in (("after", dataset.validation), ("after_test", dataset.test)):
        logits = tflite.every_exit(path, model, split)
        accuracies[key] = _accuracies(logits, split)
    return {
        "quantized_layers": list(changed),
        "exit_accuracies": accuracies,
        "gzipped_bytes": {
            "before": figures.gzipped_weights(model),
            "after": figures.gzipped(path.read_bytes()),
        },
    }


def _write_rest(
    new: RunFolder,
    rows: list[dict[str, str]],
    names: list[str],
    source: RunFolder | None,
    flags: str | None,
) -> None:
    """Writes history, its picture, and what the source hands on."""
    if source is not None:
        for name in _KEPT:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, new.path / name)
        rows = [*read_history(source.history), *rows]
    elif flags is not None:
        files.write_text(new.flags, flags)
    figures_ = ["loss"]
    for name in names:
        figures_ += [f"{name}_loss", f"{name}_accuracy"]
    columns = ["phase", "epoch", *figures_, *(f"val_{f}" for f in figures_)]
    files.write_csv(
        new.history, [{key: row.get(key, "") for key in columns} for row in rows]
    )
    plots.training(new.picture, read_history(new.history))

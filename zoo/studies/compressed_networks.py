"""Compresses one network in several ways and measures each result."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from absl import logging
from tabulate import tabulate

from branchy_tf import calibration, costs, exits, files, graphs, scoring
from branchy_tf.compression import Settings, compress, figures, tflite
from branchy_tf.compression.describing import describe_inputs
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.training import RunFolder

# The training rows that show a converter the range of each tensor.
_REPRESENTATIVE = 200


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to compress.

    Attributes:
        name: of the variant.
        steps: fields of `Settings`, one dict for each compression in turn.
        int8: whether the result is quantised to int8 after training.
    """

    name: str
    steps: tuple[dict[str, Any], ...] = ()
    int8: bool = False

    @property
    def is_qat(self) -> bool:
        """Whether the last step trains for int8."""
        return bool(self.steps) and self.steps[-1]["method"] == "qat"


_PRUNE_50 = {"method": "prune", "sparsity": 0.5}
_PRUNE_80 = {"method": "prune", "sparsity": 0.8}
_CLUSTER = {"method": "cluster", "clusters": 16}
_QAT = {"method": "qat"}

VARIANTS = [
    Variant("float32"),
    Variant("50 % pruned", (_PRUNE_50,)),
    Variant("80 % pruned", (_PRUNE_80,)),
    Variant("16 clusters", (_CLUSTER,)),
    Variant("80 % pruned, 16 clusters", (_PRUNE_80, _CLUSTER)),
    Variant("int8", (), True),
    Variant("50 % pruned, int8", (_PRUNE_50,), True),
    Variant("80 % pruned, int8", (_PRUNE_80,), True),
    Variant("16 clusters, int8", (_CLUSTER,), True),
    Variant("QAT", (_QAT,)),
    Variant("80 % pruned, QAT", (_PRUNE_80, _QAT)),
]


def choose(names: Sequence[str] | None) -> list[Variant]:
    """The variants with these names; None selects all.

    Raises:
        BranchyError: no variant has one of the names.
    """
    known = [variant.name for variant in VARIANTS]
    for name in names or ():
        if name not in known:
            raise BranchyError(f"No variant {name!r}. Known: {'; '.join(known)}.")
    return [variant for variant in VARIANTS if names is None or variant.name in names]


def run(
    variants: Sequence[Variant],
    model: keras.Model,
    dataset: Dataset,
    common: dict[str, Any],
    folder: pathlib.Path,
    pruning: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Compresses and measures in each way.

    Every result is kept in `folder`, so a study that was interrupted goes on from there.

    Args:
        variants: see `choose`.
        model: the trained network.
        dataset: fine-tuned on its training split; thresholds are chosen on its
            validation split; accuracies are those of its test split.
        common: the fields of `Settings` for all variants.
        folder: for the compressed runs and the results.
        pruning: the fields of `Settings` that differ where weights are pruned, which
            takes the longest fine-tuning.

    Returns:
        A row for each variant: its name, the gzipped bytes of its float32 weights (None
        for int8) and of its LiteRT file with every exit, `exit_accuracies`, and
        `accuracy`, `exit_rates` and `gain` with early exit at the cheapest thresholds
        that lose no accuracy on the validation split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for variant in variants:
        path = folder / f"{_file_name(variant.name)}.json"
        if not path.is_file():
            logging.info("%s: %s ...", model.name, variant.name)
            found = _measure(variant, model, dataset, common, folder, pruning)
            files.write_json(path, found)
        rows.append(files.read_json(path))
    return rows


def _file_name(text: str) -> str:
    return "".join(c for c in text.replace(", ", "+").replace(" ", "_") if c != "%")


def _measure(
    variant: Variant,
    model: keras.Model,
    dataset: Dataset,
    common: dict[str, Any],
    folder: pathlib.Path,
    pruning: Mapping[str, Any],
) -> dict[str, Any]:
    names = exits.exit_names(model)
    compressed, run = model, None
    place, epochs = "run", 0
    for step in variant.steps:
        own = pruning if step["method"] == "prune" else {}
        settings = Settings(**{**common, **own, **step})
        epochs += settings.epochs
        place += "".join(f"_{value}" for value in step.values())
        source, run = run, RunFolder(folder / place)
        compress(compressed, dataset, settings, run, source, "")
        if settings.method != "qat":
            compressed = run.load_model()
    lite = folder / f"{_file_name(variant.name)}.tflite"
    if variant.is_qat:
        assert run is not None
        lite.write_bytes(run.all_exits.read_bytes())
    else:
        lite.write_bytes(_converted(compressed, dataset, names, variant.int8))
    in_int8 = variant.int8 or variant.is_qat

    def logits(split: Split) -> np.ndarray:
        if in_int8:
            return tflite.every_exit(lite, model, split)
        return scoring.every_exit(LogitsPredictor(compressed), split)

    return {
        "network": model.name,
        "variant": variant.name,
        "epochs": epochs,
        "weights_bytes": None if in_int8 else figures.gzipped_weights(compressed),
        "litert_bytes": figures.gzipped(lite.read_bytes()),
        **_with_exits(model, logits(dataset.validation), logits(dataset.test), dataset),
    }


def _converted(
    model: keras.Model, dataset: Dataset, names: Sequence[str], int8: bool
) -> bytes:
    rows = None
    if int8:
        examples = dataset.train.take(slice(_REPRESENTATIVE)).read()
        rows = graphs.cast_inputs(model, examples)
    return tflite.convert(model, describe_inputs(model), names, int8, rows)


def _with_exits(
    model: keras.Model, validation: np.ndarray, test: np.ndarray, dataset: Dataset
) -> dict[str, Any]:
    """What early exit achieves on the test split, from every exit's logits."""
    macs = costs.cumulative_macs(model)
    request = calibration.Request({"max_accuracy_drop": 0.0})
    labels = dataset.validation.labels
    policy = calibration.calibrate(validation, labels, macs, request).policy
    every = scoring.answers(test, dataset.test.labels, policy)
    taken = policy.exit_indices(every.scores)
    rates = np.bincount(taken, minlength=len(macs)) / len(taken)
    return {
        "exit_accuracies": every.correct.mean(axis=0),
        "accuracy": every.correct[np.arange(len(taken)), taken].mean(),
        "exit_rates": rates,
        "gain": costs.full_macs(model) / float(rates @ macs),
    }


def time_files(
    rows: Sequence[dict[str, Any]],
    inputs: Mapping[str, np.ndarray],
    folder: pathlib.Path,
    seconds: float,
) -> list[float]:
    """The time of each variant's LiteRT file over that of the first, for single images.

    All files take turns, so that the load of the machine changes little between them.

    Args:
        rows: of `run`.
        inputs: the rows to run, one at a time, of each input by name.
        folder: the one of `run`.
        seconds: to measure for, all files together.

    Returns:
        The median over the rounds of the ratio, one for each row.
    """
    runners = [
        tflite.runner(folder / f"{_file_name(row['variant'])}.tflite") for row in rows
    ]
    count = len(next(iter(inputs.values())))
    single = [
        {name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)
    ]

    def once(run: Any) -> float:
        start = time.perf_counter()
        for inputs in single:
            run(**inputs)
        return time.perf_counter() - start

    for run in runners:
        once(run)
    ratios: list[list[float]] = [[] for _ in runners]
    end = time.monotonic() + seconds
    while time.monotonic() < end or not ratios[0]:
        times = [once(run) for run in runners]
        for found, taken in zip(ratios, times, strict=True):
            found.append(taken / times[0])
    return [statistics.median(found) for found in ratios]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of one network's rows, in Markdown."""
    lines = [
        [
            row["variant"],
            row["epochs"] or "",
            "" if row["weights_bytes"] is None else f"{row['weights_bytes'] / 1e3:,.0f}",
            f"{row['litert_bytes'] / 1e3:,.0f}",
            _percent(row["exit_accuracies"], 2),
            f"{row['accuracy']:.2%}",
            _percent(row["exit_rates"], 1),
            f"{row['gain']:.2f}x",
            f"{row['time']:.2f}",
        ]
        for row in rows
    ]
    head = [rows[0]["network"], "epochs", "weights (kB)", "LiteRT (kB)"]
    head += ["each exit (%)", "early exit", "exit rates (%)", "gain", "time"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _percent(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{100 * value:.{digits}f}" for value in values)


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a .csv file, with lists as text."""
    return {
        key: " ".join(f"{v:.6g}" for v in value) if isinstance(value, list) else value
        for key, value in row.items()
    }


def from_flat(row: dict[str, str]) -> dict[str, Any]:
    """The row that `flat` made text of."""
    lists = ("exit_accuracies", "exit_rates")
    numbers = ("accuracy", "gain", "time")
    found: dict[str, Any] = dict(row)
    found |= {key: [float(value) for value in row[key].split()] for key in lists}
    found |= {key: float(row[key]) for key in numbers}
    found |= {key: int(row[key]) for key in ("epochs", "litert_bytes")}
    weights = row["weights_bytes"]
    return found | {"weights_bytes": int(weights) if weights else None}

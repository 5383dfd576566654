"""Studies: one network and data set, trained in several ways, seed by seed."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from tabulate import tabulate

from branchy_tf import costs, data, files, scoring, thresholds, training, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import conv_head, pool_head
from branchy_tf.predictor import LogitsPredictor
from zoo.studies.training_plot import plot


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        group: variants of one group differ in one thing only.
        name: what it is.
        settings: of `training.Settings`, where they differ from the study's.
        exits: of the builder; None for its own.
    """

    group: str
    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    exits: Any = None


_FIRST = {"mode": "baseline_first"}
STUDIES: dict[str, list[Variant]] = {
    "training_modes": [
        Variant("mode", "joint", {"mode": "joint"}),
        Variant("mode", "baseline_first", _FIRST),
        Variant("mode", "branches_only", {"mode": "branches_only"}),
        Variant("mode", "detached", {"mode": "detached"}),
        Variant(
            "mode",
            "joint, equilibrium",
            {"mode": "joint", "gradient_scaling": "equilibrium"},
        ),
        Variant(
            "mode", "joint, distilled", {"mode": "joint", "distillation": (0.5, 3.0)}
        ),
        # One dense layer on the pooled map: conditional deep learning.
        Variant(
            "mode",
            "branches_only, dense branch",
            {"mode": "branches_only"},
            ("conv_1_relu", 0),
        ),
    ],
    "branches": [
        *(
            Variant("loss weights", f"{a:g}, {b:g}", _FIRST | {"loss_weights": (a, b)})
            for a, b in ((1, 0.1), (1, 0.3), (1, 1), (0.3, 1), (0.1, 1))
        ),
        *(
            Variant(
                "branch depth", f"{depth} convolutions", _FIRST, ("conv_1_relu", depth)
            )
            for depth in (0, 1, 2, 3)
        ),
        *(
            Variant("first exit after", place, _FIRST, (f"{place}_relu", 1))
            for place in ("conv_1", "conv_2", "conv_3")
        ),
    ],
}


def choose(study: str, names: Sequence[str] | None) -> list[Variant]:
    """The variants of a study that have one of the names; None for all.

    Raises:
        BranchyError: a name that no variant has.
    """
    variants = STUDIES[study]
    known = [variant.name for variant in variants]
    for name in names or ():
        if name not in known:
            raise BranchyError(
                f"Study {study} has no variant {name!r}. Known: {'; '.join(known)}."
            )
    return [variant for variant in variants if names is None or variant.name in names]


def run(
    variants: Sequence[Variant],
    dataset: data.Dataset,
    common: training.Settings,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Trains every variant with every seed, B-LeNet each time.

    Args:
        variants: of a study; see `choose`.
        dataset: trained on and, its validation split, measured on.
        common: settings where a variant says nothing.
        seeds: of weights, shuffling and augmentation.

    Returns:
        A row for each training: group, variant, seed, exit accuracies, macs and
        the gain of the best thresholds that cost no accuracy.
    """
    rows = []
    for number, variant in enumerate(variants, start=1):
        for seed in seeds:
            logging.info(
                "%d of %d: %s, %s, seed %d",
                number,
                len(variants),
                variant.group,
                variant.name,
                seed,
            )
            settings = dataclasses.replace(common, **variant.settings, seed=seed)
            rows.append(
                {"group": variant.group, "variant": variant.name, "seed": seed}
                | _measure(variant, dataset, settings)
            )
    return rows


def _measure(
    variant: Variant, dataset: data.Dataset, settings: training.Settings
) -> dict[str, Any]:
    training.make_deterministic(settings.seed)
    model = zoo.build(
        "branchy_lenet",
        input_shape=dataset.image_shape,
        classes=dataset.classes,
        exits=_exits(variant.exits),
    )
    with tempfile.TemporaryDirectory() as folder:
        training.train(model, dataset, settings, training.RunFolder(folder))
    logits = scoring.every_exit(LogitsPredictor(model), dataset.validation)
    every = scoring.answers(logits, dataset.validation.labels)
    by_exit = costs.cumulative_macs(model)
    best = thresholds.choose(every.scores, every.correct, by_exit, max_accuracy_drop=0.0)
    return {
        "exit_1": every.correct[:, 0].mean(),
        "exit_2": every.correct[:, 1].mean(),
        "exit_1_macs": by_exit[0],
        "leave": best.exit_rates[0],
        "gain": costs.full_macs(model) / best.cost,
    }


def _exits(described: Any) -> Any:
    if isinstance(described, tuple):
        place, depth = described
        return {place: conv_head([10] * depth) if depth else pool_head(3)}
    return described


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The means over the seeds and half their range, in Markdown."""
    lines = []
    for group, variant in _variants(rows):
        of = [r for r in rows if (r["group"], r["variant"]) == (group, variant)]
        lines.append(
            [
                group,
                variant,
                f"{of[0]['exit_1_macs']:,}",
                _spread([100 * r["exit_1"] for r in of]),
                _spread([100 * r["exit_2"] for r in of]),
                _spread([100 * r["leave"] for r in of], digits=1),
                _spread([r["gain"] for r in of]),
            ]
        )
    head = ["", "variant", "macs to exit_1", "exit_1 %", "exit_2 %", "leave %", "gain"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _variants(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["group"], row["variant"]) for row in rows))


def _spread(values: list[float], digits: int = 2) -> str:
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def write(rows: Sequence[dict[str, Any]], csv_path: files.Path, png: files.Path) -> None:
    """Writes each training's figures, and a picture of them."""
    files.write_csv(csv_path, rows)
    plot(png, rows)


def subset(dataset: data.Dataset, train: int, validation: int) -> data.Dataset:
    """The data set with fewer rows to train on and to measure on."""
    return dataclasses.replace(
        dataset,
        train=dataset.train.take(np.arange(min(train, len(dataset.train)))),
        validation=dataset.validation.take(
            np.arange(min(validation, len(dataset.validation)))
        ),
    )


def paths(study_dir: files.Path, study: str) -> tuple[pathlib.Path, ...]:
    """Page, csv and picture of a study."""
    folder = pathlib.Path(study_dir)
    return tuple(folder / f"{study}.{ending}" for ending in ("md", "csv", "png"))

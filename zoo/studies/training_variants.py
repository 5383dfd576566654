"""Variants of training: B-LeNet on one data set, trained in several ways and seeds."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from tabulate import tabulate

from branchy_tf import costs, data, scoring, thresholds, training, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.exits import conv_head, pool_head
from branchy_tf.predictor import LogitsPredictor


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        group: variants in a group differ in one respect only.
        name: of the variant.
        settings: fields of `training.Settings` that differ from the study's.
        exits: `(trunk layer, number of convolutions)` of the only early exit; None for
            the paper's exits.
    """

    group: str
    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    exits: tuple[str, int] | None = None


_FIRST = {"mode": "baseline_first"}
_MODES = [
    Variant("mode", "joint", {"mode": "joint"}),
    Variant("mode", "baseline_first", _FIRST),
    Variant("mode", "branches_only", {"mode": "branches_only"}),
    Variant("mode", "detached", {"mode": "detached"}),
    Variant(
        "mode", "joint, equilibrium", {"mode": "joint", "gradient_scaling": "equilibrium"}
    ),
    # One dense layer on the pooled map: conditional deep learning.
    Variant(
        "mode",
        "branches_only, dense branch",
        {"mode": "branches_only"},
        ("conv_1_relu", 0),
    ),
]
STUDIES: dict[str, list[Variant]] = {
    "training_modes": [
        *_MODES,
        *(
            Variant(
                "distilled",
                f"{mode.name}, distilled",
                mode.settings | {"distillation": (0.5, 3.0)},
                mode.exits,
            )
            for mode in _MODES
        ),
        *(
            Variant(
                "weighted samples",
                f"{mode.name}, weighted",
                mode.settings | {"sample_weighting": (0.8, 0.75)},
                mode.exits,
            )
            for mode in _MODES[:2]
        ),
    ],
    "branches": [
        *(
            Variant("loss weights", f"{a:g}, {b:g}", _FIRST | {"loss_weights": (a, b)})
            for a, b in ((1, 0.1), (1, 0.3), (1, 1), (0.3, 1), (0.1, 1))
        ),
        *(
            Variant("branch depth", name, _FIRST, ("conv_1_relu", depth))
            for depth, name in enumerate(
                ("no convolution", "1 convolution", "2 convolutions", "3 convolutions")
            )
        ),
        *(
            Variant("first exit after", place, _FIRST, (f"{place}_relu", 1))
            for place in ("conv_1", "conv_2", "conv_3")
        ),
    ],
}


def choose(study: str, names: Sequence[str] | None) -> list[Variant]:
    """The variants of a study with these names; None selects all.

    Raises:
        BranchyError: no variant has one of the names.
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
    """Trains B-LeNet in every variant with every seed.

    Args:
        variants: of a study; see `choose`.
        dataset: its training split is trained on, its validation split evaluated.
        common: settings that a variant does not override.
        seeds: of weights, shuffling and augmentation.

    Returns:
        A row for each training: group, variant, seed, accuracy of each exit,
        multiply-adds up to exit_1, and the exit rate and gain of the cheapest
        thresholds that lose no accuracy.
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
        exits=builder_exits(variant),
    )
    # Nothing depends on the evaluation after each epoch, so a batch is enough for it.
    rows = np.arange(min(settings.batch_size, len(dataset.validation)))
    brief = dataclasses.replace(dataset, validation=dataset.validation.take(rows))
    with tempfile.TemporaryDirectory() as folder:
        training.train(model, brief, settings, training.RunFolder(folder))
    logits = scoring.every_exit(LogitsPredictor(model), dataset.validation)
    every = scoring.answers(logits, dataset.validation.labels)
    by_exit = costs.cumulative_macs(model)
    best = thresholds.choose(every.scores, every.correct, by_exit, max_accuracy_drop=0.0)
    return {
        "exit_1": every.correct[:, 0].mean(),
        "exit_2": every.correct[:, 1].mean(),
        "exit_1_macs": by_exit[0],
        "exit_1_rate": best.exit_rates[0],
        "gain": costs.full_macs(model) / best.cost,
    }


def builder_exits(variant: Variant) -> Any:
    """The variant's `exits` argument of the builder; None for its default."""
    if variant.exits is None:
        return None
    layer, depth = variant.exits
    return {layer: conv_head([10] * depth) if depth else pool_head(3)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and half the range over the seeds of each variant, in Markdown."""
    lines = []
    for group, variant in _variants(rows):
        runs = [r for r in rows if (r["group"], r["variant"]) == (group, variant)]
        lines.append(
            [
                group,
                variant,
                f"{runs[0]['exit_1_macs']:,}",
                _spread([100 * r["exit_1"] for r in runs]),
                _spread([100 * r["exit_2"] for r in runs]),
                _spread([100 * r["exit_1_rate"] for r in runs], digits=1),
                _spread([r["gain"] for r in runs]),
            ]
        )
    head = ["group", "variant", "multiply-adds to exit_1", "exit_1 accuracy (%)"]
    head += ["exit_2 accuracy (%)", "exit_1 rate (%)", "gain"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _variants(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["group"], row["variant"]) for row in rows))


def _spread(values: list[float], digits: int = 2) -> str:
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def first_rows(dataset: data.Dataset, count: int) -> data.Dataset:
    """The data set with at most the first `count` training rows."""
    rows = np.arange(min(count, len(dataset.train)))
    return dataclasses.replace(dataset, train=dataset.train.take(rows))

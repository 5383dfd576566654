"""Trains several networks that share layers, each on data of its own.

The networks are one Keras model with an input for each. A step takes as many rows from
each data set, so in an epoch the largest is seen once and the others as often as it
takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from branchy_tf.data import Dataset, Split
from branchy_tf.data.splits import View
from branchy_tf.errors import BranchyError
from branchy_tf.training import losses
from branchy_tf.training.fitting import Phase, fit
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.settings import Settings

# Those settings whose meaning is about a single network.
_ALONE = (
    "mode", "gradient_scaling", "distillation", "sample_weighting", "class_weights",
    "baseline",
)  # fmt: skip
PHASE = "joint"


def check_shared(
    settings: Settings, outputs: Mapping[str, Sequence[str]], data: Mapping[str, Dataset]
) -> None:
    """Checks the settings of a shared training.

    Args:
        settings: the settings.
        outputs: the names of the outputs of each network, in exit order.
        data: the data set of each.

    Raises:
        BranchyError: a setting is for a single network, loss weights do not fit each of
            them, an augmentation is not for their rows, or rows have weights.
    """
    defaults = Settings()
    for name in _ALONE:
        if getattr(settings, name) != getattr(defaults, name):
            raise BranchyError(
                f"`{name}` {getattr(settings, name)} is for a single network; several "
                "that share a part are trained jointly from the start. Leave it out."
            )
    for network, names in outputs.items():
        try:
            losses.check_loss_weights(names, settings.loss_weights)
        except BranchyError as error:
            raise BranchyError(f"Front {network!r}: {error}") from None
    for network, dataset in data.items():
        if isinstance(dataset.train.inputs, Mapping):
            raise BranchyError(
                f"The data of front {network!r}, {dataset.name}, have the inputs "
                f"{', '.join(dataset.train.inputs)}; expected one input."
            )
        if settings.augmentation != "none" and len(dataset.train.images.shape) != 4:
            raise BranchyError(
                f"`augmentation` {settings.augmentation} is for images [height, width, "
                f"channels], but {dataset.name} has rows of shape "
                f"{tuple(dataset.train.images.shape[1:])}. Pass none."
            )
        if dataset.train.weights is not None:
            raise BranchyError(
                f"The data of front {network!r}, {dataset.name}, have weights of rows, "
                "which a training of several fronts does not take. Leave them out."
            )


def fit_shared(
    model: keras.Model,
    outputs: Mapping[str, Sequence[str]],
    data: Mapping[str, Dataset],
    settings: Settings,
    folder: RunFolder,
) -> None:
    """Fits one model with an input for each network, resuming from its backup.

    The validation figures of history.csv count some rows of smaller data sets more often
    than others.

    Args:
        model: inputs by network; the outputs are logits by the names in `outputs`.
        outputs: the names of the outputs of each network, in exit order.
        data: the data set of each.
        settings: the settings; see `check_shared`.
        folder: receives history, backups and logs.
    """
    order = list(data)
    names = [name for network in order for name in outputs[network]]
    weights = [
        weight
        for network in order
        for weight in losses.check_loss_weights(outputs[network], settings.loss_weights)
    ]

    def targets(split: Split) -> dict[str, np.ndarray]:
        return {
            name: split.labels[:, column]
            for column, network in enumerate(order)
            for name in outputs[network]
        }

    phase = Phase(
        PHASE,
        model,
        lambda trainer, optimizer: losses.compile_joint(
            trainer, names, optimizer, weights
        ),
        targets,
        settings.epochs,
    )
    fit(phase, paired(data, settings.seed), settings, folder, names)


def paired(data: Mapping[str, Dataset], seed: int) -> Dataset:
    """A data set whose rows hold one row of each data set.

    Args:
        data: the data sets, with a single input each.
        seed: pairs the rows at random.

    Returns:
        Inputs by name and labels int64 [n, data sets], with as many rows as the largest
        has. Every row of the others occurs as often as another, give or take once.
    """
    splits = {}
    for number, part in enumerate(("train", "validation")):
        parts = {name: dataset.splits[part] for name, dataset in data.items()}
        length = max(map(len, parts.values()))
        rows = {
            name: _repeated(len(split), length, np.random.default_rng([seed, number, i]))
            for i, (name, split) in enumerate(parts.items())
        }
        splits[part] = Split(
            {name: View(split.images, rows[name]) for name, split in parts.items()},
            np.stack([split.labels[rows[name]] for name, split in parts.items()], axis=1),
        )
    return Dataset(
        " and ".join(dataset.name for dataset in data.values()),
        max(dataset.classes for dataset in data.values()),
        splits["train"],
        splits["validation"],
        splits["validation"].take(slice(0, 0)),
    )


def _repeated(rows: int, length: int, random: np.random.Generator) -> np.ndarray:
    """`length` of the indices of `rows`, in whole passes in random order."""
    passes = -(-length // rows)
    return np.concatenate([random.permutation(rows) for _ in range(passes)])[:length]

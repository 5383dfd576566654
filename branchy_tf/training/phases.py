"""Training in phases, each of which can be killed and resumed."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
from absl import logging

from branchy_tf import exits, files
from branchy_tf.data import (
    Dataset,
    Split,
    augmentation,
    check_augmentation,
    check_fits,
)
from branchy_tf.errors import BranchyError
from branchy_tf.training import losses, optimizers
from branchy_tf.training.callbacks import AtomicBackup, HistoryFile
from branchy_tf.training.precision import in_float32
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.transfer import take_baseline

MODES = ("joint", "baseline_first", "branches_only", "detached")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        mode: `joint`: all exits at once from the start. `baseline_first`: the
            final exit alone, then all exits jointly from those weights, which
            is the paper's recipe.
        epochs: of the joint phase.
        baseline_epochs: of the baseline phase.
        batch_size: rows in a step.
        learning_rate: of Adam, at the start of each phase.
        schedule: `constant`, or `cosine`: down to 0 over each phase.
        loss_weights: one for each exit, or None for 1 each.
        augmentation: a name from `data.AUGMENTATIONS`.
        seed: of the augmentation. (Weights and shuffling follow the seed set
            by `keras.utils.set_random_seed` before the model is built.)
    """

    mode: str = "joint"
    epochs: int = 10
    baseline_epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    loss_weights: Sequence[float] | None = None
    augmentation: str = "none"
    seed: int = 0
    baseline: files.Path | None = None

    def check(self, model: keras.Model, dataset: Dataset) -> None:
        """Raises `BranchyError` for what cannot be trained."""
        _check_choice("mode", self.mode, MODES)
        _check_choice("optimizer", self.optimizer, optimizers.OPTIMIZERS)
        _check_choice("schedule", self.schedule, optimizers.SCHEDULES)
        check_augmentation(self.augmentation)
        for name in ("epochs", "baseline_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BranchyError(
                    f"`{name}` must be at least 1. Received {getattr(self, name)}."
                )
        if not 0 < self.learning_rate < float("inf"):
            raise BranchyError(
                f"`learning_rate` must be positive. Received {self.learning_rate}."
            )
        losses.check_loss_weights(exits.exit_names(model), self.loss_weights)
        check_fits(model, dataset)


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise BranchyError(f"Unknown {name} {value!r}. Known: {', '.join(known)}.")


def make_deterministic(seed: int) -> None:
    """Seeds everything; same seed, machine, versions and threads, same history."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def train(
    model: keras.Model, dataset: Dataset, settings: Settings, folder: RunFolder
) -> None:
    """Trains `model` in place and writes the run folder.

    Training goes on from the backup of an earlier, killed call with the same
    arguments. Writes model.keras, baseline.keras if a baseline was trained,
    history.csv and logs/ (TensorBoard).

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        dataset: the training split is trained on, the validation split watched.
        settings: how.
        folder: where to write.

    Raises:
        BranchyError: settings, model and data set do not fit together.
    """
    settings.check(model, dataset)
    names = exits.exit_names(model)
    if settings.mode == "baseline_first":
        plain = exits.baseline(model)
        if settings.baseline is not None:
            take_baseline(plain, settings.baseline, folder.baseline)
        else:
            _fit(
                "baseline",
                plain,
                lambda trainer, optimizer: losses.compile_baseline(
                    trainer, names[-1], optimizer
                ),
                lambda split: split.labels,
                settings.baseline_epochs,
                (dataset, settings, folder, names),
            )
            _save(plain, folder.baseline)
    weights = losses.check_loss_weights(names, settings.loss_weights)
    _fit(
        "joint",
        model,
        lambda trainer, optimizer: losses.compile_joint(
            trainer, names, optimizer, weights
        ),
        lambda split: losses.joint_targets(model, split.labels),
        settings.epochs,
        (dataset, settings, folder, names),
    )
    _save(model, folder.model)
    shutil.rmtree(folder.backups, ignore_errors=True)


def _save(model: keras.Model, path: pathlib.Path) -> None:
    # The same graph, not compiled: the optimiser's state is twice the weights, and
    # of use to a resumed training alone, which has its backup.
    plain = in_float32(keras.Model(model.input, model.output, name=model.name))
    with files.replacing(path) as beside:
        plain.save(beside)


def _fit(
    phase: str,
    model: keras.Model,
    compile_: Callable[[keras.Model, keras.Optimizer], None],
    targets: Callable[[Split], Any],
    epochs: int,
    context: tuple[Dataset, Settings, RunFolder, list[str]],
) -> None:
    """Fits `model` to the data set, or what a backup leaves to be done."""
    dataset, settings, folder, names = context
    trainer = _with_augmentation(model, dataset, settings)
    steps = -(-len(dataset.train) // settings.batch_size) * epochs
    compile_(
        trainer,
        optimizers.build(
            settings.optimizer,
            settings.learning_rate,
            settings.schedule,
            settings.weight_decay,
            steps,
        ),
    )
    logging.info("Phase %s: %d epochs of %d rows.", phase, epochs, len(dataset.train))
    start = time.perf_counter()
    history = trainer.fit(
        dataset.train.images,
        targets(dataset.train),
        validation_data=(dataset.validation.images, targets(dataset.validation)),
        epochs=epochs,
        batch_size=settings.batch_size,
        # The row of an epoch comes before its backup; see HistoryFile.
        callbacks=[
            HistoryFile(folder.history, phase, names),
            AtomicBackup(folder.backup(phase)),
            *_tensorboard(folder, phase),
        ],
    )
    trained = len(history.epoch) * len(dataset.train)
    if trained:
        rate = trained / (time.perf_counter() - start)
        logging.info("Phase %s: %.0f images per second.", phase, rate)


def _with_augmentation(
    model: keras.Model, dataset: Dataset, settings: Settings
) -> keras.Model:
    """A model around `model` that first varies its images, when training."""
    layers = augmentation(settings.augmentation, dataset.image_shape, settings.seed)
    if not layers:
        return model
    images = keras.Input(dataset.image_shape, dtype=model.inputs[0].dtype)
    varied = images
    for layer in layers:
        varied = layer(varied)
    return keras.Model(images, model(varied), name=f"{model.name}_augmented")


def _tensorboard(folder: RunFolder, phase: str) -> list[keras.callbacks.Callback]:
    if keras.backend.backend() != "tensorflow":
        # Keras writes TensorBoard's files with TensorFlow.
        logging.info("No TensorBoard logs: they need Keras on TensorFlow.")
        return []
    return [keras.callbacks.TensorBoard(str(folder.logs / phase), write_graph=False)]

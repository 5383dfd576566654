"""Fitting one phase: batches, optimiser, callbacks, resuming."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
from absl import logging

from branchy_tf.data import Dataset, Split
from branchy_tf.training import optimizers
from branchy_tf.training.batches import Batches
from branchy_tf.training.callbacks import AtomicBackup, HistoryFile
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class Phase:
    """One call of `fit`.

    Attributes:
        name: in history.csv and of the backup.
        model: whose graph is trained.
        compile: `compile(trainer, optimizer)`.
        targets: of a split, in the structure of the model's outputs.
        epochs: how many.
        wrap: `wrap(inputs, outputs)`, the model that is compiled, of the same graph.
    """

    name: str
    model: keras.Model
    compile: Callable[[Any, keras.Optimizer], None]
    targets: Callable[[Split], Any]
    epochs: int
    wrap: Callable[[Any, Any], keras.Model] = keras.Model


def fit(
    phase: Phase,
    dataset: Dataset,
    settings: Settings,
    folder: RunFolder,
    names: list[str],
) -> None:
    """Fits a phase to the data set, or what a backup leaves to be done.

    Args:
        phase: what.
        dataset: its training split is trained on, its validation split watched.
        settings: how.
        folder: where history, backups and logs go.
        names: of all exits, for the columns of the history.
    """
    batches = make_batches(phase, dataset, settings)
    trainer = compiled(phase, settings, len(batches))
    logging.info(
        "Phase %s: %d epochs of %d rows.", phase.name, phase.epochs, len(dataset.train)
    )
    start = time.perf_counter()
    history = trainer.fit(
        batches,
        # They come in random order already.
        shuffle=False,
        validation_data=(dataset.validation.images, phase.targets(dataset.validation)),
        epochs=phase.epochs,
        validation_batch_size=settings.batch_size,
        # The row of an epoch comes before its backup; see HistoryFile.
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
            ),
            HistoryFile(folder.history, phase.name, names),
            AtomicBackup(folder.backup(phase.name)),
            *_tensorboard(folder, phase.name),
        ],
    )
    trained = len(history.epoch) * len(dataset.train)
    if trained:
        seconds = time.perf_counter() - start
        logging.info(
            "Phase %s: %.0f images per second, %.1f %% of the time waiting for them.",
            phase.name,
            trained / seconds,
            100 * batches.waited / seconds,
        )


def make_batches(phase: Phase, dataset: Dataset, settings: Settings) -> Batches:
    """What a phase trains on: the baseline's draws, or those of the phase after it.

    All modes have the same draws there, so that nothing else tells them apart.
    """
    return Batches(
        dataset.train,
        phase.targets,
        settings.batch_size,
        settings.augmentation,
        [settings.seed, 1 if phase.name == "baseline" else 2],
    )


def compiled(phase: Phase, settings: Settings, steps: int) -> keras.Model:
    """The model of a phase, around the same graph and ready to be fitted.

    Args:
        phase: what.
        settings: how.
        steps: of an epoch.
    """
    trainer = phase.wrap(phase.model.input, phase.model.output)
    # Whether steps are compiled is left to Keras, which compiles none that must be
    # deterministic on TensorFlow: on 2 cores XLA's step of B-LeNet took 2.3 times as
    # long. Several steps to a call gained no more than the times vary, and PyTorch
    # takes one.
    phase.compile(
        trainer,
        optimizers.build(
            settings.optimizer,
            settings.learning_rate,
            settings.schedule,
            settings.weight_decay,
            steps * phase.epochs,
        ),
    )
    return trainer


def _tensorboard(folder: RunFolder, phase: str) -> list[keras.callbacks.Callback]:
    if keras.backend.backend() != "tensorflow":
        # Keras writes TensorBoard's files with TensorFlow.
        logging.info("No TensorBoard logs: they need Keras on TensorFlow.")
        return []
    return [keras.callbacks.TensorBoard(str(folder.logs / phase), write_graph=False)]

"""Fits one phase: batches, optimiser, callbacks, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from absl import logging

from branchy_tf.data import Dataset, Split, is_in_memory
from branchy_tf.training import optimizers
from branchy_tf.training.batches import Batches, InOrder
from branchy_tf.training.callbacks import AtomicBackup, HistoryFile
from branchy_tf.training.early_stopping import (
    EarlyStopping,
    best_epoch,
    stopped_after,
)
from branchy_tf.training.run_folder import RunFolder
from branchy_tf.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class Phase:
    """One call of `fit`.

    Attributes:
        name: its name in history.csv and in the backup.
        model: the model to train.
        compile: `compile(trainer, optimizer)`.
        targets: `targets(split)`, in the structure of the model's outputs.
        epochs: the number of epochs.
        wrap: `wrap(inputs, outputs)`, the model to compile, with the same graph.
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
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Fits a phase, resuming from its backup if there is one.

    Args:
        phase: the phase.
        dataset: trains on its training split and evaluates on its validation split.
        settings: the settings of the training.
        folder: receives history, backups and logs.
        names: the names of all exits, for the columns of the history.
        callbacks: the user's own, called after the epoch's row and before its backup.
    """
    epochs, stopping = phase.epochs, _early_stopping(phase, settings, folder)
    if settings.patience is not None:
        stopped = stopped_after(folder.history, phase.name, settings.patience)
        epochs = min(epochs, stopped or epochs)
    trainer = compiled(phase, settings, steps_per_epoch(dataset, settings))
    batches = feed(trainer, phase, dataset, settings)
    logging.info("Phase %s: epochs %d, rows %d.", phase.name, epochs, len(dataset.train))
    start = time.perf_counter()
    validation = InOrder(dataset.validation, phase.targets, settings.batch_size)
    with _plain_errors(batches, validation):
        history = trainer.fit(
            batches,
            # The batches are already shuffled.
            shuffle=False,
            validation_data=validation,
            epochs=epochs,
            # The row of an epoch comes before its backup; see HistoryFile.
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
                ),
                HistoryFile(folder.history, phase.name, names),
                *callbacks,
                *([] if stopping is None else [stopping]),
                AtomicBackup(folder.backup(phase.name)),
                *_tensorboard(folder, phase.name),
            ],
        )
    if stopping is not None:
        stopping.restore()
        best = best_epoch(folder.history, phase.name)
        logging.info("Phase %s: the weights of epoch %d, the best.", phase.name, best)
    trained = len(history.epoch) * len(dataset.train)
    if trained:
        seconds = time.perf_counter() - start
        logging.info(
            "Phase %s: %.0f images per second, %.1f %% of the time waiting for data.",
            phase.name,
            trained / seconds,
            100 * batches.waited / seconds,
        )


def _early_stopping(
    phase: Phase, settings: Settings, folder: RunFolder
) -> EarlyStopping | None:
    if settings.patience is None:
        return None
    weights = folder.best_weights(phase.name)
    return EarlyStopping(
        phase.model, weights, folder.history, phase.name, settings.patience
    )


@contextlib.contextmanager
def _plain_errors(*sources: Batches | InOrder) -> Iterator[None]:
    """Raises the error of a batch itself, instead of Keras's about it."""
    try:
        yield
    except Exception:
        for source in sources:
            if source.error is not None:
                raise source.error from None
        raise


def steps_per_epoch(dataset: Dataset, settings: Settings) -> int:
    """The training steps of an epoch."""
    return -(-len(dataset.train) // settings.batch_size)


def make_batches(phase: Phase, dataset: Dataset, settings: Settings) -> Batches:
    """The training batches of a phase, each of which NumPy prepares."""
    return Batches(
        dataset.train,
        phase.targets,
        settings.batch_size,
        settings.augmentation,
        _seed(phase, settings),
    )


def _seed(phase: Phase, settings: Settings) -> list[int]:
    """The seed of all draws.

    It depends only on whether the phase is the baseline, so that modes differ in nothing
    else.
    """
    return [settings.seed, 1 if phase.name == "baseline" else 2]


def feed(
    trainer: keras.Model, phase: Phase, dataset: Dataset, settings: Settings
) -> Batches:
    """What `trainer.fit` trains on; also sets how many steps run in a call.

    Under JAX, data that are in memory go to the device once; see `on_device`.

    Args:
        trainer: the compiled model of the phase.
        phase: the phase.
        dataset: its training split holds the rows.
        settings: the settings of the training.
    """
    if not _goes_to_device(trainer, dataset.train):
        trainer.steps_per_execution = settings.steps_per_call or 1
        return make_batches(phase, dataset, settings)
    from branchy_tf.training import on_device

    calls = on_device.Calls(
        dataset.train,
        phase.targets,
        settings.batch_size,
        settings.augmentation,
        _seed(phase, settings),
        settings.steps_per_call or on_device.default_steps(),
    )
    calls.drive(trainer)
    return calls


def _goes_to_device(trainer: keras.Model, split: Split) -> bool:
    if (
        keras.backend.backend() != "jax"
        or not trainer.jit_compile
        or trainer.run_eagerly
        or keras.distribution.distribution() is not None
        or not all(is_in_memory(array) for array in split.arrays.values())
    ):
        return False
    from branchy_tf.training import on_device

    return on_device.has_room(split)


def compiled(phase: Phase, settings: Settings, steps: int) -> keras.Model:
    """The compiled model of a phase, with the same graph.

    Args:
        phase: the phase.
        settings: the settings of the training.
        steps: steps per epoch.
    """
    trainer = phase.wrap(phase.model.input, phase.model.output)
    # Keras decides whether to use XLA; it does not for deterministic TensorFlow. On 2
    # cores, B-LeNet's step took 2.3 times as long with XLA.
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
        logging.info("TensorBoard logs need Keras on TensorFlow; none are written.")
        return []
    return [keras.callbacks.TensorBoard(str(folder.logs / phase), write_graph=False)]

"""Early stopping whose whole state is on disk, so that a killed training resumes it."""

from __future__ import annotations

import math
import pathlib

import keras

from branchy_tf import files
from branchy_tf.training import distributing
from branchy_tf.training.callbacks import read_history


class EarlyStopping(keras.callbacks.Callback):
    """Keeps the weights of the best epoch, and stops when no better one comes.

    The best epoch is the first with the smallest val_loss in history.csv. Keras's own
    `EarlyStopping` holds the best weights and its count in memory, so a killed training
    would lose them. Place it after `HistoryFile` and before `AtomicBackup`.

    Args:
        model: the model whose weights are kept; it shares its layers with the one that
            is fitted.
        weights: the file of the best weights, a `.weights.h5`.
        history: the history.csv of the run.
        phase: the name of the current phase.
        patience: the number of epochs without a better one after which to stop.
    """

    def __init__(
        self,
        model: keras.Model,
        weights: pathlib.Path,
        history: pathlib.Path,
        phase: str,
        patience: int,
    ) -> None:
        super().__init__()
        self._kept = model
        self._weights = weights
        self._history = history
        self._phase = phase
        self._patience = patience

    def on_epoch_end(self, epoch, logs=None) -> None:
        distribution = distributing.current()
        best = epoch + 1
        with distribution.writing() as writes:
            if writes:
                best = best_epoch(self._history, self._phase)
            if writes and best == epoch + 1:
                with files.replacing(self._weights) as beside:
                    self._kept.save_weights(beside)
        if distribution.agree(epoch + 1 - best >= self._patience):
            self.model.stop_training = True

    def restore(self) -> None:
        """Loads the weights of the best epoch."""
        with files.reading(self._weights, "the best weights of a training"):
            self._kept.load_weights(self._weights)


def best_epoch(history: files.Path, phase: str) -> int:
    """The first epoch of a phase with the smallest val_loss, from 1; 0 without rows."""
    losses = _losses(history, phase)
    return losses.index(min(losses)) + 1 if losses else 0


def stopped_after(history: files.Path, phase: str, patience: int) -> int | None:
    """The epoch after which a phase stopped early; None if it did not."""
    losses = _losses(history, phase)
    best = best_epoch(history, phase)
    return len(losses) if losses and len(losses) - best >= patience else None


def _losses(history: files.Path, phase: str) -> list[float]:
    values = [
        float(row["val_loss"] or "nan")
        for row in read_history(history)
        if row["phase"] == phase
    ]
    return [math.inf if math.isnan(value) else value for value in values]

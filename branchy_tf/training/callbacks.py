"""Callbacks that let a killed training resume."""

from __future__ import annotations

import csv
import pathlib
import shutil

import keras

from branchy_tf import files
from branchy_tf.training import distributing


class AtomicBackup(keras.callbacks.BackupAndRestore):
    """`BackupAndRestore` with a backup that is always complete.

    Keras overwrites the weights and the epoch number, so a kill at that moment leaves
    no backup. Here each backup is written to a neighbouring folder, which then replaces
    the old one. The backup stays after training: a finished phase restores its weights
    and trains no further epoch.

    Args:
        folder: the folder of the backup.
    """

    def __init__(self, folder: files.Path) -> None:
        super().__init__(str(folder), delete_checkpoint=False)
        self._folder = pathlib.Path(folder)
        self._next = self._folder.with_name(self._folder.name + ".next")
        self._old = self._folder.with_name(self._folder.name + ".old")

    def on_train_begin(self, logs=None) -> None:
        with distributing.current().writing() as writes:
            if writes and not self._folder.exists() and self._old.exists():
                # It was killed between the two renames below.
                self._old.rename(self._folder)
        distributing.current().agree(None)
        mend = "Remove it to start the training again."
        with files.reading(self._folder, "the backup of a training", mend):
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None) -> None:
        with distributing.current().writing() as writes:
            if writes:
                self._back_up(epoch)

    def _back_up(self, epoch: int) -> None:
        for leftover in (self._next, self._old):
            shutil.rmtree(leftover, ignore_errors=True)
        writer = keras.callbacks.BackupAndRestore(str(self._next))
        writer.set_model(self.model)
        writer.on_epoch_end(epoch)
        if self._folder.exists():
            self._folder.rename(self._old)
        self._next.rename(self._folder)
        shutil.rmtree(self._old, ignore_errors=True)


def has_backup(folder: files.Path) -> bool:
    """Whether `AtomicBackup` would restore something from this folder."""
    folder = pathlib.Path(folder)
    return folder.exists() or folder.with_name(folder.name + ".old").exists()


class HistoryFile(keras.callbacks.Callback):
    """Writes history.csv, with one row for each epoch of each phase.

    Place it before `AtomicBackup`: a row is then written before its epoch is backed
    up, and replaced when an epoch without a backup is trained again. So no row is
    missing or duplicated.

    Args:
        path: the csv file.
        phase: the name of the current phase.
        names: the names of all exits, which determine the columns.
    """

    def __init__(self, path: files.Path, phase: str, names: list[str]) -> None:
        super().__init__()
        self._path = pathlib.Path(path)
        self._phase = phase
        figures = ["loss"]
        for name in names:
            figures += [f"{name}_loss", f"{name}_accuracy"]
        self._columns = ["phase", "epoch", *figures, *(f"val_{f}" for f in figures)]

    def on_train_begin(self, logs=None) -> None:
        # Reports a damaged file before the first epoch.
        read_history(self._path)

    def on_epoch_end(self, epoch, logs=None) -> None:
        rows = [
            row
            for row in read_history(self._path)
            if row["phase"] != self._phase or int(row["epoch"]) < epoch + 1
        ]
        figures = {key: f"{value:.6g}" for key, value in (logs or {}).items()}
        rows.append({"phase": self._phase, "epoch": str(epoch + 1)} | figures)
        with (
            files.replacing(self._path) as beside,
            open(beside, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(
                file, self._columns, restval="", extrasaction="ignore"
            )
            writer.writeheader()
            writer.writerows(rows)


def read_history(path: files.Path) -> list[dict[str, str]]:
    """The rows of a history.csv, in order; none if the file does not exist.

    Returns:
        `[{"phase": ..., "epoch": "1", "loss": ..., ...}, ...]`. A figure that the
        phase does not have is an empty string.

    Raises:
        BranchyError: the file is damaged: no columns `phase` and `epoch`, a row of
            another length, or a figure that is not a number.
    """
    if not files.path(path).exists():
        return []
    mend = "Remove it, or train into another --run_dir."
    with (
        files.reading(path, "the history of a training", mend),
        open(path, newline="", encoding="utf-8") as file,
    ):
        rows = list(csv.DictReader(file, strict=True))
        for number, row in enumerate(rows, start=1):
            if not {"phase", "epoch"} <= row.keys():
                raise ValueError("it has no columns phase and epoch")
            if None in row or None in row.values():
                raise ValueError(f"row {number} has the wrong number of cells")
            int(row["epoch"])
            for name in row.keys() - {"phase", "epoch"}:
                float(row[name] or "nan")
        return rows

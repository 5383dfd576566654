"""Callbacks that let a killed training go on where it was."""

from __future__ import annotations

import csv
import pathlib
import shutil

import keras

from branchy_tf import files


class AtomicBackup(keras.callbacks.BackupAndRestore):
    """`BackupAndRestore` whose backup is always whole.

    Keras writes weights and epoch number over the old ones, so a kill in that
    moment leaves neither. Here each backup is written to a folder beside and
    takes the old one's place when it is complete. It stays after training: a
    phase that is done restores its weights and trains no further epoch.

    Args:
        folder: where the backup lies.
    """

    def __init__(self, folder: files.Path) -> None:
        super().__init__(str(folder), delete_checkpoint=False)
        self._folder = pathlib.Path(folder)
        self._next = self._folder.with_name(self._folder.name + ".next")
        self._old = self._folder.with_name(self._folder.name + ".old")

    def on_train_begin(self, logs=None) -> None:
        if not self._folder.exists() and self._old.exists():
            # Killed between the two renames below.
            self._old.rename(self._folder)
        mend = "Remove it to train anew from the start."
        with files.reading(self._folder, "the backup of a training", mend):
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None) -> None:
        for leftover in (self._next, self._old):
            shutil.rmtree(leftover, ignore_errors=True)
        writer = keras.callbacks.BackupAndRestore(str(self._next))
        writer.set_model(self.model)
        writer.on_epoch_end(epoch, logs)
        if self._folder.exists():
            self._folder.rename(self._old)
        self._next.rename(self._folder)
        shutil.rmtree(self._old, ignore_errors=True)


class HistoryFile(keras.callbacks.Callback):
    """Keeps history.csv: one row for each epoch of each phase.

    Place it before `AtomicBackup`. A row is then written before its epoch
    counts as done; a row whose epoch was not backed up any more is dropped
    when that epoch is trained again. So there is no gap and no duplicate.

    Args:
        path: the csv file.
        phase: name of the phase now training.
        names: of the exits, which give the columns.
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
        # A damaged file is told before an epoch has been trained for nothing.
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
    """The rows of a history.csv, in order; none if there is no file yet.

    Raises:
        BranchyError: the file is damaged: no table with `phase` and `epoch`, or a cell
            that is missing, too many, or no number.
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
                raise ValueError(f"row {number} has another number of cells")
            int(row["epoch"])
            for name in row.keys() - {"phase", "epoch"}:
                float(row[name] or "nan")
        return rows

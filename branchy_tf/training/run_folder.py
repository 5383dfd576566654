"""The folder of a training run: its files and how to read them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator, Mapping

import keras
from absl import logging

from branchy_tf import files
from branchy_tf.errors import BranchyError, one_line
from branchy_tf.files import flagfiles, functions
from branchy_tf.files.keras_files import load_keras_file


class RunFolder:
    """The paths of a run, and what later commands read from it.

    Args:
        path: the folder, which need not exist.

    Example:

    ```python
    model = RunFolder("runs/lenet").load_model()
    ```
    """

    def __init__(self, path: files.Path) -> None:
        self.path = files.folder(path)
        self.model = self.path / "model.keras"
        self.baseline = self.path / "baseline.keras"
        self.history = self.path / "history.csv"
        self.picture = self.path / "training.png"
        self.logs = self.path / "logs"
        self.flags = self.path / "train.flags"
        self.data = self.path / "data.json"
        self.splits = self.path / "data.npz"
        self.backups = self.path / "backup"
        # Of a training of several fronts, each of which has a run folder inside.
        self.fronts = self.path / "fronts.json"
        self.thresholds = self.path / "thresholds.json"
        self.report = self.path / "report.html"
        self.pictures = self.path / "report"
        self.costs = self.path / "costs.json"
        self.evaluation = self.path / "evaluation.json"
        self.benchmark = self.path / "benchmark.json"
        self.benchmark_table = self.path / "benchmark.csv"
        self.benchmark_picture = self.path / "benchmark.png"
        self.load = self.path / "load.json"
        self.load_picture = self.path / "load.png"
        # Of a compressed run.
        self.compression = self.path / "compression.json"
        self.all_exits = self.path / "all_exits.tflite"

    def backup(self, phase: str) -> pathlib.Path:
        """The folder of a phase's backup.

        That of the last phase stays when the run is finished, for more epochs.
        """
        return self.backups / phase

    def best_weights(self, phase: str) -> pathlib.Path:
        """The weights of a phase's best epoch, with early stopping."""
        return self.backups / f"{phase}.best.weights.h5"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one training.

        The lock is the system's and is on the folder itself: it leaves no file, and ends
        with the process, even if that is killed.

        Raises:
            BranchyError: another training holds the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise BranchyError(
                f"Another process is training into {self.path}. Wait for it or end it, "
                "or train into another folder."
            ) from None
        except OSError as error:
            # Some network file systems have no locks.
            logging.warning(
                "%s cannot be locked (%s): do not train into it twice at once.",
                self.path,
                error.strerror,
            )
        try:
            yield
        finally:
            os.close(handle)

    def load_model(self) -> keras.Model:
        """The trained model.

        Raises:
            BranchyError: the run has no model.keras, or it cannot be loaded.
        """
        if not self.model.is_file():
            advice = "Pass the --run_dir of a finished training."
            if self.all_exits.is_file():
                advice = (
                    f"Training for int8 leaves only {self.all_exits.name}; its figures "
                    f"are in {self.compression.name}."
                )
            elif self.flags.is_file() and "model" in self.read_flags():
                advice = (
                    "Its training is not finished: run train again with "
                    f"--flagfile={self.flags} --run_dir={self.path}."
                )
            elif self.flags.is_file():
                advice = (
                    "Its training is not finished: call training.train again with the "
                    "same arguments."
                )
            if self.fronts.is_file():
                names = files.read_json(self.fronts).get("fronts", {})
                folders = ", ".join(str(self.path / name) for name in names)
                advice = f"It holds several fronts: pass the --run_dir of one, {folders}."
            raise BranchyError(f"{self.path} holds no model.keras. {advice}")
        self.import_modules()
        return load_keras_file(self.model)

    def import_modules(self) -> None:
        """Imports the modules that train.flags names, which may register layers.

        Raises:
            BranchyError: train.flags is damaged, or a module of --import fails.
        """
        recorded = self.read_flags() if self.flags.is_file() else {}
        for name in filter(None, recorded.get("import", "").split(",")):
            functions.load_module(name)
        heads = (
            entry.rpartition("=")[2] for entry in recorded.get("exits", "").split(";")
        )
        for text in (recorded.get("model", ""), *heads):
            if functions.names_function(text):
                # Most builders register nothing, and the model loads without them.
                with contextlib.suppress(BranchyError):
                    functions.load_module(text.partition(":")[0])

    def is_finished(self, epochs: int) -> bool:
        """Whether the run is trained, for at least `epochs` epochs of its last phase.

        Raises:
            BranchyError: train.flags is damaged.
        """
        if not self._has_result or not self.flags.is_file():
            return False
        return _epochs(self.read_flags(), self.flags) >= epochs

    def may_continue(self, old: Mapping[str, str], epochs: int) -> bool:
        """Whether `epochs` are more than those of a finished training.

        Args:
            old: its recorded settings.
            epochs: those asked for.
        """
        return self._has_result and _epochs(old, self.flags) < epochs

    @property
    def _has_result(self) -> bool:
        return self.model.is_file() or self.fronts.is_file()

    def read_flags(self) -> dict[str, str]:
        """`{flag: value}` of the training.

        Raises:
            BranchyError: the run has no train.flags, or it is damaged.
        """
        if not self.flags.is_file():
            raise BranchyError(
                f"{self.path} holds no train.flags. Pass the --run_dir of a training."
            )
        mend = "Train into another --run_dir, or pass the flags themselves."
        with files.reading(self.flags, "the flags of a training", mend):
            return parse_flags("\n".join(flagfiles.read(self.flags)))


def _epochs(flags: Mapping[str, str], source: pathlib.Path) -> int:
    text = flags.get("epochs", "")
    if not text.isdecimal():
        raise BranchyError(
            f"{source} has --epochs={one_line(text)}; expected a whole number. Train "
            "into another folder."
        )
    return int(text)


def changes(
    old: Mapping[str, str],
    now: Mapping[str, str | None],
    defaults: Mapping[str, str | None],
    form: str,
) -> list[str]:
    """What differs between a recorded training and the current one, in words.

    Args:
        old: the recorded settings, as `RunFolder.read_flags` gives them.
        now: the current ones, as text.
        defaults: those that a record without the setting stands for.
        form: how to write a name, e.g. "--{}".
    """
    found = []
    for name, value in now.items():
        before = old.get(name, defaults.get(name))
        if before != value:
            shown = form.format(name)
            found.append(f"{shown} was {before or 'unset'} and is now {value or 'unset'}")
    return found


def parse_flags(text: str) -> dict[str, str]:
    """`{flag: value}` from the lines `--flag=value` of a flagfile.

    The values of --front, which has a line for each front, are joined by " and ".
    """
    lines = (line.strip() for line in text.splitlines())
    pairs = (line[2:].partition("=") for line in lines if line.startswith("--"))
    found: dict[str, str] = {}
    for name, _, value in pairs:
        repeated = name == "front" and name in found
        found[name] = f"{found[name]} and {value}" if repeated else value
    return found

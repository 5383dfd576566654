"""The folder of a training run: its files and how to read them."""

from __future__ import annotations

import contextlib
import pathlib

import keras

from branchy_tf import files
from branchy_tf.errors import BranchyError
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
        self.backups = self.path / "backup"
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
        """The folder of a phase's backup, which exists until the run is finished."""
        return self.backups / phase

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
            elif self.flags.is_file():
                advice = (
                    "Its training is not finished: run train again with "
                    f"--flagfile={self.flags} --run_dir={self.path}."
                )
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


def parse_flags(text: str) -> dict[str, str]:
    """`{flag: value}` from the lines `--flag=value` of a flagfile."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line[2:].partition("=") for line in lines if line.startswith("--"))
    return {name: value for name, _, value in pairs}

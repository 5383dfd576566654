"""A finished run as one object."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from branchy_tf import exits, files, graphs
from branchy_tf.checks import ranges
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.thresholds import Calibration
from branchy_tf.training import RunFolder, load_dataset, read_data, read_history


def load(path: files.Path) -> Run:
    """The run in a folder that train, `training.train` or compress wrote.

    Args:
        path: the folder.

    Returns:
        A `Run`, which reads each file on first use.

    Raises:
        BranchyError: there is no run in the folder.

    Example:

    ```python
    run = branchy_tf.load("runs/lenet")
    branchy_tf.EarlyExitPredictor(run.model, run.policy).predict(run.dataset.test.images)
    ```
    """
    return Run(path)


class Run:
    """A training run; each attribute is read on first use.

    Args:
        path: the folder.

    Raises:
        BranchyError: there is no run in the folder. Each attribute raises it too if its
            file is missing or damaged.
    """

    def __init__(self, path: files.Path) -> None:
        self.folder = RunFolder(path)
        if not self.folder.model.is_file() and not self.folder.flags.is_file():
            raise BranchyError(
                f"{self.folder.path} holds no run: neither model.keras nor train.flags. "
                "Pass the folder of a training."
            )

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"

    @property
    def path(self) -> pathlib.Path:
        """The folder."""
        return self.folder.path

    @functools.cached_property
    def model(self) -> keras.Model:
        """The trained model."""
        return self.folder.load_model()

    @functools.cached_property
    def calibration(self) -> Calibration:
        """The content of thresholds.json: the policy and its figures."""
        names, weights = exits.exit_names(self.model), graphs.fingerprint(self.model)
        return Calibration.read(self.folder.thresholds, names, weights)

    @property
    def policy(self) -> ExitPolicy:
        """The calibrated policy."""
        return self.calibration.policy

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set that it was trained on, cut in the same way."""
        return load_dataset(self.folder)

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """A dict for each epoch: `phase`, `epoch`, and each figure or None."""
        return [
            {
                name: text
                if name == "phase"
                else int(text)
                if name == "epoch"
                else float(text)
                if text
                else None
                for name, text in row.items()
            }
            for row in read_history(self.folder.history)
        ]

    @functools.cached_property
    def inputs(self) -> Mapping[str, ranges.InputRange] | None:
        """The range of each input in training; None if it was not recorded."""
        return read_data(self.folder).get("inputs")

    @functools.cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, or None."""
        names = read_data(self.folder).get("class_names")
        return None if names is None else tuple(names)

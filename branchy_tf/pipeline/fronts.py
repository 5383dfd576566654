"""Several fronts that share a tail, from their training to their export.

Their run folder holds a run folder for each front, with the network from the front
through the tail, which every other command takes; and fronts.json, which says where each
front ends.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from branchy_tf import checks, data, exits, files, graphs, scoring, thresholds, units
from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import LogitsPredictor
from branchy_tf.thresholds import Calibration
from branchy_tf.training import RunFolder, Settings, load_dataset, recording, shared
from branchy_tf.training.callbacks import has_backup
from branchy_tf.training.precision import in_float32
from branchy_tf.training.run_folder import parse_flags
from branchy_tf.units.cutting import Unit, check_name


@dataclasses.dataclass(frozen=True)
class Front:
    """A front to train.

    Attributes:
        unit: its first part of a network, from `units.cut`.
        dataset: its data set.
        flags: the lines of train.flags that say how its network is built, for the
            modules to import when it is loaded.
    """

    unit: Unit
    dataset: Dataset
    flags: Sequence[str] = ()


def train_fronts(
    fronts: Mapping[str, Front],
    tail: Unit,
    settings: Settings,
    folder: RunFolder,
    flags: str,
    freeze_tail: bool = False,
) -> None:
    """Trains fronts and the tail that they share, jointly, and writes the run folder.

    A killed training resumes when called again with the same arguments.

    Args:
        fronts: by name, each with its data.
        tail: the unit that takes their features.
        settings: the settings; see `training.shared`.
        folder: the folder to write to.
        flags: the text of train.flags, written after all checks.
        freeze_tail: whether to keep the tail's weights, for new fronts of a tail that is
            already in use.

    Raises:
        BranchyError: a front, its data or the settings do not fit, or another process
            trains into the folder.

    Example:

    ```python
    road, tail = units.cut(branchy_resnet(depth=20), ["exit_1"])
    train_fronts({"road": Front(road, cifar)}, tail, settings, RunFolder("runs/x"), "")
    ```
    """
    _check_names(fronts, folder)
    parts = units.joined({name: front.unit for name, front in fronts.items()}, tail)
    sets = {
        # The network of units knows the inputs and the classes.
        name: data.fitted(units.as_network([parts[i], tail]), front.dataset)
        for i, (name, front) in enumerate(fronts.items())
    }
    count = {unit.name: len(unit.exits) for unit in parts}
    outputs = {
        name: [
            f"{name}_{exits.exit_name(k + 1)}"
            for k in range(count[name] + count[tail.name])
        ]
        for name in fronts
    }
    shared.check_shared(settings, outputs, sets)
    model = units.join(
        {name: front.unit for name, front in fronts.items()}, tail, freeze_tail
    )
    with folder.locked():
        if folder.is_finished(settings.epochs):
            logging.info("%s is already trained; nothing to do.", folder.path)
            return
        _prepare_more_epochs(folder)
        files.write_text(folder.flags, flags)
        shared.fit_shared(model, outputs, sets, settings, folder)
        # A frozen layer would stay so in its file.
        tail.model.trainable = True
        for unit in parts[:-1]:
            front = fronts[unit.name]
            _write(RunFolder(folder.path / unit.name), [unit, tail], front, flags)
        files.write_json(
            folder.fronts,
            {"tail": tail.name, "fronts": {name: count[name] for name in fronts}},
        )


def _check_names(fronts: Mapping[str, Front], folder: RunFolder) -> None:
    paths = [path for path in vars(folder).values() if isinstance(path, pathlib.Path)]
    known = {path.name for path in paths if path.parent == folder.path}
    for name in fronts:
        check_name(name)
        if name in known:
            raise BranchyError(
                f"A front cannot be named {name!r}, because a run folder has a file or "
                "folder of that name. Choose another name."
            )


def _prepare_more_epochs(folder: RunFolder) -> None:
    """Turns a finished training into an unfinished one that its backup resumes."""
    if not folder.fronts.is_file():
        return
    if not has_backup(folder.backup(shared.PHASE)):
        raise BranchyError(
            f"{folder.path} has no backup of its last epoch, so it cannot be trained for "
            "more. Train into another folder."
        )
    folder.fronts.unlink()


def _write(folder: RunFolder, parts: list[Unit], front: Front, flags: str) -> None:
    """Writes the run folder of one front."""
    network = in_float32(units.copied_network(parts))
    folder.path.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder.model) as beside:
        network.save(beside)
    recording.write_data(folder, network, front.dataset)
    epochs = parse_flags(flags).get("epochs", "1")
    lines = [
        "# One front of the training whose flags are in ../train.flags.",
        f"--epochs={epochs}",
        *front.flags,
    ]
    files.write_text(folder.flags, "\n".join(lines) + "\n")


@dataclasses.dataclass(frozen=True)
class FrontsRun:
    """A finished training of several fronts.

    Attributes:
        folder: its folder.
        tail: the name of the unit that the fronts share.
        ends: the number of exits of each front, by its name.
    """

    folder: RunFolder
    tail: str
    ends: Mapping[str, int]

    def run(self, front: str) -> RunFolder:
        """The run folder of one front."""
        return RunFolder(self.folder.path / front)

    def parts(self, front: str) -> list[Unit]:
        """A front and its copy of the tail, from its trained network.

        Raises:
            BranchyError: what `RunFolder.load_model` raises.
        """
        at = exits.exit_name(self.ends[front])
        return units.cut(self.run(front).load_model(), [at], [front, self.tail])


def read_fronts(path: files.Path) -> FrontsRun:
    """The training of several fronts in a folder.

    Raises:
        BranchyError: there is none, or its fronts.json is damaged.
    """
    folder = RunFolder(path)
    if not folder.fronts.is_file():
        raise BranchyError(
            f"{folder.path} holds no finished training of several fronts: there is no "
            f"{folder.fronts.name}. Pass the --run_dir of `train --front=...`."
        )
    value = files.read_json(folder.fronts)
    with files.reading(folder.fronts, "the fronts of a training", "Train again."):
        ends = {
            check_name(name): checks.whole_number(name, count, at_least=1)
            for name, count in value["fronts"].items()
        }
        return FrontsRun(folder, check_name(value["tail"]), ends)


@dataclasses.dataclass(frozen=True)
class Exportable:
    """The fronts of one or more trainings with the tail that they share.

    Attributes:
        units: the fronts and the tail, for `units.export`.
        policies: the calibrated policy of each front.
        class_names: the names of the classes of each front, or None.
    """

    units: list[Unit]
    policies: dict[str, ExitPolicy]
    class_names: dict[str, list[str] | None]


def exportable(paths: Sequence[files.Path]) -> Exportable:
    """The calibrated fronts of trainings, ready for `units.export`.

    Args:
        paths: the folders of trainings of fronts; all of them have the same tail.

    Raises:
        BranchyError: a front is not calibrated, two have one name, or the tails of two
            have other weights.
    """
    fronts: dict[str, Unit] = {}
    policies: dict[str, ExitPolicy] = {}
    names: dict[str, list[str] | None] = {}
    shared_tail: tuple[str, Unit] | None = None
    for path in paths:
        known = read_fronts(path)
        for name in known.ends:
            if name in fronts:
                raise BranchyError(f"Two fronts are named {name!r}; rename one of them.")
            run = known.run(name)
            fronts[name], tail = known.parts(name)
            if shared_tail is None:
                shared_tail = (str(run.path), tail)
            elif shared_tail[1].fingerprint != tail.fingerprint:
                raise BranchyError(
                    f"The fronts {shared_tail[0]} and {run.path} have tails of other "
                    f"weights ({shared_tail[1].fingerprint} and {tail.fingerprint}). "
                    "Train them jointly, or the new one with --tail=run:FOLDER "
                    "--freeze_tail."
                )
            policies[name] = _policy(run, [fronts[name], tail])
            recorded = recording.read_data(run).get("class_names")
            names[name] = None if recorded is None else list(recorded)
    assert shared_tail is not None
    return Exportable(units.joined(fronts, shared_tail[1]), policies, names)


def _policy(run: RunFolder, parts: list[Unit]) -> ExitPolicy:
    if not run.thresholds.is_file():
        raise BranchyError(
            f"There are no thresholds: {run.thresholds} is missing. Run python -m "
            f"branchy_tf.calibrate --run_dir={run.path.parent}."
        )
    names = [exits.exit_name(k + 1) for k in range(sum(len(p.exits) for p in parts))]
    weights = graphs.fingerprint(run.load_model())
    return Calibration.read(run.thresholds, names, weights).policy


def shared_temperatures(
    known: FrontsRun, guarantee: Any = None, seed: int = 0
) -> dict[str, list[float]]:
    """The temperature of every exit of each front, fitted on the validation splits.

    The exits of the tail are in one graph, so they have one temperature for all fronts,
    fitted on the rows of all of them.

    Args:
        known: the training.
        guarantee: with one, only those rows count that may propose thresholds; see
            `calibration.calibrate`.
        seed: of the guarantee's split.

    Returns:
        `{front: [N temperatures]}`.
    """
    every: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in known.ends:
        model = known.run(name).load_model()
        split = data.fitted(model, load_dataset(known.run(name))).validation
        logits = scoring.every_exit(LogitsPredictor(model), split)
        rows = np.arange(len(split))
        if guarantee is not None:
            rows, _ = thresholds.halves(len(split), seed)
        every[name] = logits[rows], split.labels[rows]
    first = next(iter(known.ends))
    own = known.ends[first]
    of_tail = [
        thresholds.fit_temperature(
            np.concatenate([x[:, known.ends[n] + k] for n, (x, _) in every.items()]),
            np.concatenate([labels for _, labels in every.values()]),
        )
        for k in range(every[first][0].shape[1] - own)
    ]
    return {
        name: [
            *(
                thresholds.fit_temperature(logits[:, k], labels)
                for k in range(known.ends[name])
            ),
            *of_tail,
        ]
        for name, (logits, labels) in every.items()
    }

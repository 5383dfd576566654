"""What routing costs, step by step: the same network with ever more of it.

All steps are timed in turn in one process with one thread, so that differences of a few
microseconds show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf import exits, stages
from branchy_tf.benchmarking import timing
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.saved_model import EarlyExitModule, plain
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.thresholds import forcing

_ROWS_IN_A_ROW = 64


@dataclasses.dataclass(frozen=True)
class _Program:
    """A loaded export and a call of it."""

    session: SessionModel
    signature: str
    feeds: dict[str, np.ndarray]

    def run(self) -> dict[str, np.ndarray]:
        return self.session.run(self.signature, self.feeds)

    def seconds(self, calls: int) -> float:
        """Of one call, over several in a row."""
        self.run()  # untimed: brings back what the others have pushed out of the caches
        start = time.perf_counter()
        for _ in range(calls):
            self.run()
        return (time.perf_counter() - start) / calls

    def operations(self) -> int:
        return len(self.session.operations(self.signature, self.feeds))


@dataclasses.dataclass(frozen=True)
class _Step:
    """A row of the table: a program, and the programs that it consists of."""

    name: str
    program: _Program
    over: tuple[str, ...] = ()


def time_steps(
    model: keras.Model,
    images: np.ndarray,
    criterion: str,
    batch_sizes: Sequence[int],
    seconds: float,
    folder: pathlib.Path,
    progress: Callable[[str], object] = lambda what: None,
) -> list[dict[str, Any]]:
    """Times the steps, and counts the operations that they run.

    Args:
        model: of one input, images.
        images: [n, ...], n at least the largest batch.
        criterion: name of the score.
        batch_sizes: to time.
        seconds: for each batch size.
        folder: an empty one, for the exports.
        progress: called with a word on what is done now.

    Returns:
        `[{"model", "batch", "step", "us", "added_us", "over", "operations"}, ...]`:
        microseconds of a call, and how many more than the steps named in `over`
        together; None and "" for what is compared with nothing.

    Raises:
        BranchyError: the model has no early exit or several inputs, or there are too
            few images.
    """
    _check(model, images, batch_sizes)
    progress("writing the exports")
    rows = []
    with _Exports(model, criterion, folder) as exports:
        for batch in batch_sizes:
            progress(f"batch {batch}")
            steps = {step.name: step for step in exports.steps(images[:batch])}
            calls = max(1, _ROWS_IN_A_ROW // batch)
            timers = {
                name: functools.partial(step.program.seconds, calls)
                for name, step in steps.items()
            }
            times = timing.interleave(timers, seconds)
            us = {name: 1e6 * float(median) for name, (_, median, _) in times.items()}
            rows += [
                {
                    "model": model.name,
                    "batch": batch,
                    "step": name,
                    "us": us[name],
                    "added_us": us[name] - sum(us[other] for other in step.over)
                    if step.over
                    else None,
                    "over": " + ".join(step.over),
                    "operations": step.program.operations(),
                }
                for name, step in steps.items()
            ]
    return rows


def _check(model: keras.Model, images: np.ndarray, batch_sizes: Sequence[int]) -> None:
    if len(exits.exit_names(model)) < 2:
        raise BranchyError(
            f"{model.name} has one exit, and nothing is routed. Add exits with "
            "exits.add_exits."
        )
    if len(model.inputs) > 1:
        raise BranchyError(
            f"{model.name} has {len(model.inputs)} inputs; expected one, of images."
        )
    if max(batch_sizes) > len(images):
        raise BranchyError(
            f"A batch of {max(batch_sizes)} needs as many images. Received {len(images)}."
        )


class _Exports(contextlib.ExitStack):
    """The network cut after its first, second and last exit, and parts without routing.

    The parts give logits alone, as an answer does: what else a stage carries would be
    copied out.
    """

    def __init__(self, model: keras.Model, criterion: str, folder: pathlib.Path) -> None:
        super().__init__()
        self._count = len(exits.exit_names(model))
        self._dtype = model.inputs[0].dtype
        self._first, second = stages.split(model)[:2]
        parts = {
            "stage_1": _logits(self._first),
            "stage_2": _logits(second),
            "whole": model,
        }
        for name, part in parts.items():
            plain.write_frozen(part, folder / name)
        for count in {1, 2, self._count}:
            policy = ExitPolicy.to_the_end(count).replace(criterion=criterion)
            module = EarlyExitModule(_cut(model, count), policy)
            module.save(folder / f"exits_{count}")
        self._sessions = {
            path.name: self._load(path) for path in sorted(folder.iterdir())
        }
        self._pooled = self._load(folder / "stage_1", inter_op_threads=1)

    def steps(self, images: np.ndarray) -> list[_Step]:
        """What is timed, for one batch."""
        last, rows = self._count, len(images)
        images = images.astype(self._dtype)
        _, carried = self._first([images])
        carried = [keras.ops.convert_to_numpy(tensor) for tensor in carried]
        stage_1 = self._plain("stage_1", [images])
        found = [
            _Step("stage 1", stage_1),
            _Step(
                "stage 1 in another thread",
                dataclasses.replace(stage_1, session=self._pooled),
                ("stage 1",),
            ),
            _Step("stage 2", self._plain("stage_2", carried)),
            _Step("scored", self._routed(1, images, forcing(0, 1)), ("stage 1",)),
            _Step("all leave", self._routed(2, images, forcing(0, 2)), ("scored",)),
            _Step(
                "all stay", self._routed(2, images, forcing(1, 2)), ("scored", "stage 2")
            ),
        ]
        if last > 2:
            leave = self._routed(last, images, forcing(0, last))
            found.append(_Step("all leave, all stages behind", leave, ("all leave",)))
        if rows > 1:
            half = self._plain("stage_2", [tensor[: rows // 2] for tensor in carried])
            limits = np.where(np.arange(rows) % 2, 0, np.inf)[:, None]
            parted = self._routed(2, images, limits)
            found += [
                _Step("stage 2, half the rows", half),
                _Step("half stay", parted, ("scored", "stage 2, half the rows")),
            ]
        stay = self._routed(last, images, forcing(last - 1, last))
        return [
            *found,
            _Step("all stages", self._plain("whole", [images])),
            _Step("all stay at every gate", stay, ("all stages",)),
        ]

    def _load(self, path: pathlib.Path, inter_op_threads: int = -1) -> SessionModel:
        session = SessionModel(path, 1, inter_op_threads)
        self.callback(session.close)
        return session

    def _plain(self, name: str, tensors: list[np.ndarray]) -> _Program:
        feeds = {f"x_{i}": tensor for i, tensor in enumerate(tensors)}
        return _Program(self._sessions[name], plain.SIGNATURE, feeds)

    def _routed(self, count: int, images: np.ndarray, limits: np.ndarray) -> _Program:
        session = self._sessions[f"exits_{count}"]
        (name,) = {*session.signatures["early_exit"].inputs} - {"thresholds"}
        feeds = {name: images, "thresholds": np.atleast_2d(np.float32(limits))}
        return _Program(session, "early_exit", feeds)


def _logits(stage: stages.Stage) -> keras.Model:
    return keras.Model(stage.model.inputs, stage.model.outputs[0], name=stage.model.name)


def _cut(model: keras.Model, count: int) -> keras.Model:
    """The network up to one of its exits."""
    tensors = list(exits.exit_tensors(model).items())[:count]
    return keras.Model(model.input, dict(tensors), name=f"{model.name}_{count}")

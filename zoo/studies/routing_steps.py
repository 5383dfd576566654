"""The cost of routing, step by step: the same network with more and more of its routing.

All steps are timed in turn in one process with 1 thread, so differences of a few
microseconds are visible.
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

# Rows to run back to back in one timing; a batch of 1 is repeated this often.
_ROWS_PER_TIMING = 64


@dataclasses.dataclass(frozen=True)
class _Program:
    """A loaded export and the feeds of a call."""

    session: SessionModel
    signature: str
    feeds: dict[str, np.ndarray]

    def run(self) -> dict[str, np.ndarray]:
        return self.session.run(self.signature, self.feeds)

    def seconds(self, calls: int) -> float:
        """Seconds per call, averaged over consecutive calls."""
        self.run()  # untimed: refills the caches after other programs ran
        start = time.perf_counter()
        for _ in range(calls):
            self.run()
        return (time.perf_counter() - start) / calls

    def operations(self) -> int:
        return len(self.session.operations(self.signature, self.feeds))


@dataclasses.dataclass(frozen=True)
class _Step:
    """A row of the table: a program and the steps that it is compared with."""

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
    """Times the steps and counts the operations of each.

    Args:
        model: a network whose only input is images.
        images: [n, ...], at least as many as the largest batch.
        criterion: name of the score.
        batch_sizes: batch sizes to time.
        seconds: time to spend on each batch size.
        folder: an empty folder for the exports.
        progress: called with a description of the current work.

    Returns:
        `[{"model", "batch", "step", "us": microseconds per call, "added_us":
        microseconds beyond the steps in `over` together, "over": names of these steps,
        "operations"}, ...]`. Steps that are compared with none have None and "".

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
            calls = max(1, _ROWS_PER_TIMING // batch)
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
            f"{model.name} has only one exit, so there is no routing to time. Add exits "
            "with exits.add_exits."
        )
    if len(model.inputs) > 1:
        raise BranchyError(
            f"{model.name} has {len(model.inputs)} inputs; expected one, for images."
        )
    if max(batch_sizes) > len(images):
        raise BranchyError(
            f"A batch of {max(batch_sizes)} needs at least that many images. Received "
            f"{len(images)}. Pass smaller --batch_sizes."
        )


class _Exports(contextlib.ExitStack):
    """The network truncated after some exits, and parts of it without routing.

    The parts return only logits, because returning the tensors that a stage hands on
    would add the time to copy them out of the session.
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
            policy = ExitPolicy.final_exit_only(count).replace(criterion=criterion)
            module = EarlyExitModule(_cut(model, count), policy)
            module.save(folder / f"exits_{count}")
        self._sessions = {
            path.name: self._load(path) for path in sorted(folder.iterdir())
        }
        self._pooled = self._load(folder / "stage_1", inter_op_threads=1)

    def steps(self, images: np.ndarray) -> list[_Step]:
        """The steps to time for one batch."""
        count, rows = self._count, len(images)
        images = images.astype(self._dtype)
        _, carried = self._first([images])
        carried = [keras.ops.convert_to_numpy(tensor) for tensor in carried]
        stage_1 = self._plain("stage_1", [images])
        steps = [
            _Step("stage 1", stage_1),
            _Step(
                "stage 1 in another thread",
                dataclasses.replace(stage_1, session=self._pooled),
                ("stage 1",),
            ),
            _Step("stage 2", self._plain("stage_2", carried)),
            _Step("scored", self._routed(1, images, forcing(0, 1)), ("stage 1",)),
            _Step("all exit", self._routed(2, images, forcing(0, 2)), ("scored",)),
            _Step(
                "none exit", self._routed(2, images, forcing(1, 2)), ("scored", "stage 2")
            ),
        ]
        if count > 2:
            whole = self._routed(count, images, forcing(0, count))
            steps.append(_Step("all exit, whole network", whole, ("all exit",)))
        if rows > 1:
            half = self._plain("stage_2", [tensor[: rows // 2] for tensor in carried])
            alternating = np.where(np.arange(rows) % 2, 0, np.inf)[:, None]
            split = self._routed(2, images, alternating)
            steps += [
                _Step("stage 2, half the rows", half),
                _Step("half exit", split, ("scored", "stage 2, half the rows")),
            ]
        routed = self._routed(count, images, forcing(count - 1, count))
        return [
            *steps,
            _Step("all stages", self._plain("whole", [images])),
            _Step("none exit at any gate", routed, ("all stages",)),
        ]

    def _load(self, path: pathlib.Path, inter_op_threads: int = -1) -> SessionModel:
        session = SessionModel(path, 1, inter_op_threads)
        self.callback(session.close)
        return session

    def _plain(self, name: str, tensors: list[np.ndarray]) -> _Program:
        feeds = {f"x_{i}": tensor for i, tensor in enumerate(tensors)}
        return _Program(self._sessions[name], plain.SIGNATURE, feeds)

    def _routed(self, count: int, images: np.ndarray, thresholds: np.ndarray) -> _Program:
        session = self._sessions[f"exits_{count}"]
        (name,) = {*session.signatures["early_exit"].inputs} - {"thresholds"}
        feeds = {name: images, "thresholds": np.atleast_2d(np.float32(thresholds))}
        return _Program(session, "early_exit", feeds)


def _logits(stage: stages.Stage) -> keras.Model:
    return keras.Model(stage.model.inputs, stage.model.outputs[0], name=stage.model.name)


def _cut(model: keras.Model, count: int) -> keras.Model:
    """The network up to its exit number `count`."""
    tensors = list(exits.exit_tensors(model).items())[:count]
    return keras.Model(model.input, dict(tensors), name=f"{model.name}_{count}")

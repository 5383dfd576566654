"""What routing costs, step by step: the same network with ever more of it.

Each step is an export of its own, and adds one thing to the step before. All are timed
in turn in one process with one thread, so that differences of a few microseconds show.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from branchy_tf import costs, exits, stages
from branchy_tf.errors import BranchyError
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


def measure(
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
        images: [n, ...], what the model takes; n at least the largest batch.
        criterion: name of the score.
        batch_sizes: to time.
        seconds: for each batch size.
        folder: an empty one, for the exports.
        progress: called with a word on what is done now.

    Returns:
        `[{"batch", "step", "us", "added_us", "operations"}, ...]`, microseconds of a
        call. `added_us` is over the parts that the step consists of; None for the parts
        themselves.

    Raises:
        BranchyError: the model has no early exit, or there are too few images.
    """
    if len(exits.exit_names(model)) < 2:
        raise BranchyError(
            f"{model.name} has one exit, and nothing is routed. Add exits with "
            "exits.add_exits."
        )
    if max(batch_sizes) > len(images):
        raise BranchyError(
            f"A batch of {max(batch_sizes)} needs as many images. Received {len(images)}."
        )
    progress("writing the exports")
    made = _Exports(model, criterion, folder)
    rows = []
    for batch in batch_sizes:
        progress(f"batch {batch}")
        programs = made.programs(images[:batch])
        calls = max(1, _ROWS_IN_A_ROW // batch)
        timers = {
            name: functools.partial(program.seconds, calls)
            for name, program in programs.items()
        }
        times = costs.interleave(timers, seconds)
        us = {name: 1e6 * float(median) for name, (_, median, _) in times.items()}
        for step, name, base in made.steps(batch):
            rows.append(
                {
                    "batch": batch,
                    "step": step,
                    "us": us[name],
                    "added_us": us[name] - sum(sign * us[other] for sign, other in base)
                    if base
                    else None,
                    "operations": programs[name].operations(),
                }
            )
    return rows


class _Exports:
    """The network cut after each exit, its first two stages, and it without routing."""

    def __init__(self, model: keras.Model, criterion: str, folder: pathlib.Path) -> None:
        self.count = len(exits.exit_names(model))
        parts = stages.split(model)
        self._sessions = {}
        write: dict[str, Callable[[pathlib.Path], None]] = {
            "stage_1": functools.partial(plain.write_frozen, parts[0].model),
            "stage_2": functools.partial(plain.write_frozen, parts[1].model),
            "unrouted": functools.partial(plain.write_frozen, model),
        }
        for exit_count in sorted({1, 2, self.count}):
            write[f"exits_{exit_count}"] = functools.partial(
                _write_routed, _first_exits(model, exit_count), criterion
            )
        for name, writes in write.items():
            writes(folder / name)
            self._sessions[name] = SessionModel(folder / name, intra_op_threads=1)

    def programs(self, images: np.ndarray) -> dict[str, _Program]:
        """What is timed, for one batch."""
        rows = len(images)
        alone = self._plain("stage_1", [images])
        _, *carried = _in_order(alone.run())
        halves = np.where(np.arange(rows) % 2, 0, np.inf).astype(np.float32)[:, None]
        found = {
            "stage_1": alone,
            "stage_2": self._plain("stage_2", carried),
            "unrouted": self._plain("unrouted", [images]),
            "one": self._routed(1, images, forcing(0, 1)),
            "two leave": self._routed(2, images, forcing(0, 2)),
            "two stay": self._routed(2, images, forcing(1, 2)),
            "all leave": self._routed(self.count, images, forcing(0, self.count)),
            "all stay": self._routed(
                self.count, images, forcing(self.count - 1, self.count)
            ),
        }
        if rows > 1:
            found["half"] = self._routed(2, images, halves)
            some = [tensor[: rows // 2] for tensor in carried]
            found["half of stage_2"] = self._plain("stage_2", some)
        return found

    def steps(self, batch: int) -> list[tuple[str, str, list[tuple[int, str]]]]:
        """`[(what it is, its program, what it is compared with: (sign, program))]`."""
        found: list[tuple[str, str, list[tuple[int, str]]]] = [
            ("stage 1 alone", "stage_1", []),
            ("+ checks of the request, softmax and score", "one", [(1, "stage_1")]),
            ("+ gate at which all leave", "two leave", [(1, "one")]),
        ]
        if self.count > 2:
            more = f"+ stages behind stage 2, not entered: {self.count - 2}"
            found.append((more, "all leave", [(1, "two leave")]))
        found.append(
            (
                "or gate at which all stay + stage 2",
                "two stay",
                [(1, "one"), (1, "stage_2")],
            )
        )
        if batch > 1:
            base = [(1, "two stay"), (-1, "stage_2"), (1, "half of stage_2")]
            found.append(("or gate at which every other row stays", "half", base))
        found += [
            ("all stages, without routing", "unrouted", []),
            (
                f"+ gates at which all stay: {self.count - 1}",
                "all stay",
                [(1, "unrouted")],
            ),
        ]
        return found

    def _plain(self, name: str, tensors: list[np.ndarray]) -> _Program:
        feeds = {f"x_{i}": tensor for i, tensor in enumerate(tensors)}
        return _Program(self._sessions[name], plain.SIGNATURE, feeds)

    def _routed(self, exit_count: int, images: np.ndarray, limits: np.ndarray):
        session = self._sessions[f"exits_{exit_count}"]
        (name,) = {*session.signatures["early_exit"].inputs} - {"thresholds"}
        feeds = {name: images, "thresholds": np.atleast_2d(limits)}
        return _Program(session, "early_exit", feeds)


def _first_exits(model: keras.Model, count: int) -> keras.Model:
    tensors = list(exits.exit_tensors(model).items())[:count]
    return keras.Model(model.input, dict(tensors), name=f"{model.name}_{count}")


def _write_routed(model: keras.Model, criterion: str, path: pathlib.Path) -> None:
    gates = len(exits.exit_names(model)) - 1
    module = EarlyExitModule(model, [0.0] * gates, criterion)
    tf.saved_model.save(module, str(path), signatures=module.functions)


def _in_order(values: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [values[f"y_{i}"] for i in range(len(values))]

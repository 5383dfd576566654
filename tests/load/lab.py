"""Shared by the load and fault commands: distinct versions, servers, findings."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "serving"))

import keras
import numpy as np
import servers
from absl import logging
from commands import call

import branchy_tf
from branchy_tf import data, exits, saved_model, zoo
from branchy_tf.benchmarking import load
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.answers import ExpectedAnswers

__all__ = ["call"]  # for commands, which find it only by the path above

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Findings:
    """The result of a command.

    Attributes:
        line: the figures as text.
        figures: the same by name.
        problems: what went wrong; empty on success.
    """

    line: str
    figures: dict[str, Any]
    problems: list[str] = dataclasses.field(default_factory=list)

    def require(self, condition: object, problem: str) -> None:
        """Adds `problem` unless `condition` holds."""
        if not condition:
            self.problems.append(problem)

    def require_all_right(self, outcome: load.Outcome) -> None:
        """Adds problems for failed requests and wrong answers."""
        self.require(not outcome.errors, f"requests failed: {outcome.errors}")
        self.require(not outcome.wrong, f"{outcome.wrong} answers are wrong")

    def finish(self) -> None:
        """Prints them and ends the program, with status 1 for problems."""
        print(self.line, *(f"PROBLEM: {text}" for text in self.problems), sep="\n")
        sys.exit(bool(self.problems))


class Pair:
    """A model in two versions whose answers always differ.

    Odd versions are the model. Even ones have its classes shifted by one and other
    temperatures, so labels, probabilities and scores all identify the version. High
    temperatures make answers unsure, so no two images have the same answer.

    Args:
        folder: an empty folder for the exports.
        model: two exits, from uint8 images.
        images: uint8 [n, ...].

    Attributes:
        images: the same.
        thresholds: float32 [K, 1], at which no rows exit early, some, half, most, all.
    """

    def __init__(
        self, folder: pathlib.Path, model: keras.Model, images: np.ndarray
    ) -> None:
        self.images = images
        self._models = {1: model, 0: _shifted(model)}
        self._predictors = {
            odd: branchy_tf.EarlyExitPredictor(each, _policy(odd))
            for odd, each in self._models.items()
        }
        self._expected = {
            odd: ExpectedAnswers(*predictor.all_exits(images))
            for odd, predictor in self._predictors.items()
        }
        scores = np.concatenate([e.scores[:, 0] for e in self._expected.values()])
        some = np.quantile(scores, [0.1, 0.25, 0.5, 0.75])
        self.thresholds = np.float32([0, *some, np.inf])[:, None]
        self._exports = {
            odd: self.export(folder / str(odd), odd).parent for odd in self._models
        }

    def export(self, folder: pathlib.Path, number: int, freeze: str = "auto") -> Any:
        """Exports version `number`; returns its folder, named 1."""
        odd = number % 2
        return saved_model.export(
            self._models[odd],
            folder,
            servers.MODEL,
            _policy(odd),
            freeze=freeze,
        )

    def add(self, base: pathlib.Path, number: int) -> pathlib.Path:
        """Adds version `number` to a served folder atomically."""
        servers.add_version(self._exports[number % 2], base, number)
        return base / str(number)

    def expected(self, number: int | None) -> ExpectedAnswers:
        """The expected answers of version `number` to `images`."""
        assert number is not None
        return self._expected[number % 2]

    def predictor(self, number: int) -> branchy_tf.EarlyExitPredictor:
        """The predictor of version `number`."""
        return self._predictors[number % 2]

    def traffic(
        self,
        client: EarlyExitClient,
        rows: int = 1,
        expected: Callable[[int | None], ExpectedAnswers] | None = None,
    ) -> load.Traffic:
        """Requests of `rows` images with checked answers."""
        expected = expected or self.expected
        return load.Traffic(client, self.images, rows, self.thresholds, expected)


def _policy(odd: int) -> branchy_tf.ExitPolicy:
    """What versions of odd and of even numbers are exported with."""
    return branchy_tf.ExitPolicy(thresholds=[0.5], temperatures=[3 - odd] * 2)


def _shifted(model: keras.Model) -> keras.Model:
    """The same network with its classes shifted by one."""
    classes = exits.num_classes(model)
    shifted = keras.models.clone_model(model)
    shifted.set_weights(model.get_weights())
    for layer in shifted.layers:
        if isinstance(layer, keras.layers.Dense) and layer.units == classes:
            layer.set_weights([np.roll(w, 1, axis=-1) for w in layer.get_weights()])
    return shifted


@contextlib.contextmanager
def serving(
    base: pathlib.Path, log: pathlib.Path, flags: Sequence[str] = ()
) -> Iterator[servers.ServeProcess]:
    """Serves `base` in another process until the context ends."""
    server = servers.ServeProcess(base, log, flags)
    try:
        assert server.address
        yield server
    finally:
        if server.alive:
            server.stop()


@contextlib.contextmanager
def asking(server: servers.ServeProcess, **options: Any) -> Iterator[EarlyExitClient]:
    """A client of `server` that has asked for its signature."""
    with EarlyExitClient(server.address, servers.MODEL, **options) as client:
        client.wait_until_ready()
        client.describe()
        yield client


@contextlib.contextmanager
def under_load(
    ask: load.Ask, callers: int, timeout: float, seconds: float
) -> Iterator[futures.Future]:
    """Runs a closed loop during the block, for at most `seconds`; yields its outcome."""
    stop = threading.Event()
    with futures.ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(load.closed_loop, ask, callers, timeout, seconds, stop=stop)
        try:
            yield outcome
        finally:
            stop.set()


def memory(server: servers.ServeProcess) -> float:
    """Memory of the server's process in MB."""
    statm = pathlib.Path(f"/proc/{server.process.pid}/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def parser(text: str) -> argparse.ArgumentParser:
    """A parser with --server_flags."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--server_flags",
        default=[],
        type=shlex.split,
        help="more flags of branchy_tf.serve, in one string, e.g. "
        "--server_flags='--enable_batching'",
    )
    return found


@contextlib.contextmanager
def shipped_pair() -> Iterator[tuple[Pair, pathlib.Path]]:
    """The shipped B-LeNet as a pair with real digits, and a work folder."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        digits = data.load("mnist_5k").test.images
        pair = Pair(folder / "exports", zoo.branchy_lenet(weights="mnist"), digits)
        (folder / "work").mkdir()
        yield pair, folder / "work"

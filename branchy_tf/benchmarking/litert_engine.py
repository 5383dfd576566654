"""LiteRT: early exit as exported, the full network, and single stages."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from branchy_tf.benchmarking.rows import Arrays, count, in_batches
from branchy_tf.litert import LiteRTEngine
from branchy_tf.litert.interpreters import TFLiteFile

_ROWS = 32


class LiteRTContenders:
    """Runs version folders and parts.

    Args:
        programs: `{contender: {"version": a folder}}`, or `{contender: {"files": {"one",
            "any"}, "behind": the files of the earlier stages}}`.
        threads: inside one operation.
    """

    def __init__(self, programs: dict[str, dict[str, Any]], threads: int) -> None:
        self._programs = programs
        self._threads = threads
        self._loaded: dict[str, TFLiteFile] = {}

    def prepare(self, contender: str, batches: list[Arrays]) -> Callable[[int], Any]:
        """See `worker.Engine`."""
        program = self._programs[contender]
        if "version" in program:
            engine = LiteRTEngine(program["version"], self._threads)
            limits = engine.description.policy.limits
            feeds = [{**batch, "thresholds": limits} for batch in batches]
            return lambda i: engine.early_exit(feeds[i])
        file = self._file(program["files"], count(batches[0]))
        lives = [self._live(program["behind"], batch) for batch in batches]
        return lambda i: file.run(lives[i])

    def answer(self, contender: str, inputs: Arrays) -> tuple[Any, Any]:
        """See `worker.Engine`."""
        # In one batch, thousands of rows would count towards the memory in service.
        batches: list[Arrays] = list(in_batches(inputs, _ROWS))
        run = self.prepare(contender, batches)
        values = [run(i) for i in range(len(batches))]
        if isinstance(values[0], dict):
            labels = [value["probabilities"].argmax(axis=-1) for value in values]
            exits = np.concatenate([value["exit"] for value in values])
            return np.concatenate(labels), exits
        return np.concatenate([value[0].argmax(axis=-1) for value in values]), None

    def _file(self, files: dict[str, str], rows: int) -> TFLiteFile:
        path = files["one" if rows == 1 else "any"]
        if path not in self._loaded:
            self._loaded[path] = TFLiteFile(pathlib.Path(path), self._threads)
        return self._loaded[path]

    def _live(self, behind: Sequence[dict[str, str]], inputs: Arrays) -> list[np.ndarray]:
        live = list(inputs.values())
        for files in behind:
            _, *live = self._file(files, count(inputs)).run(live)
        return live


load = LiteRTContenders

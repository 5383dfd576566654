"""A worker process of the comparison: runs one program on request.

Requests and answers are lines of JSON, on stdin and stdout:

| request | answer |
| --- | --- |
| {"do": "answer", "contender", "rows"} | {"labels": [rows], "exits": [rows] or null} |
| {"do": "time", "contender", "batch"} | {"seconds": of one pass} |
| {"do": "memory"} | {"imports_mb", "peak_mb"} |
| {"do": "load"} | {} once the program is loaded, or {"error"} |

The number of threads is fixed for the process: TensorFlow keeps the thread pool of its
first session.

A pass runs several batches of real images. Early exit is slow for some and fast for
others, so the median over single batches would not reflect the mean.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from branchy_tf.benchmarking.machine import resident_most, resident_now
from branchy_tf.benchmarking.rows import Arrays, count, in_batches, take


class Engine(Protocol):
    """Runs the contenders of one process."""

    def prepare(self, contender: str, batches: list[Arrays]) -> Callable[[int], Any]:
        """A function that runs batch i; only that is timed."""

    def answer(self, contender: str, inputs: Arrays) -> tuple[Any, Any]:
        """Labels [B] and exits [B], 0-based; exits are None without routing."""


class _Worker:
    def __init__(self, spec: dict[str, Any]) -> None:
        module = importlib.import_module(
            f"branchy_tf.benchmarking.{spec['engine']}_engine"
        )
        self._imports_mb = resident_now() / 2**20
        self._inputs = {name: np.load(path) for name, path in spec["inputs"].items()}
        self._engine: Engine = module.load(spec["programs"], spec["threads"])
        self._prepared: dict[str, Callable[[int], Any]] = {}
        self._batches: list[Arrays] = []
        self._batch = 0

    def answer(self, contender: str, rows: int) -> dict[str, Any]:
        inputs = take(self._inputs, slice(rows))
        labels, exits = self._engine.answer(contender, inputs)
        return {
            "labels": np.asarray(labels).tolist(),
            "exits": None if exits is None else np.asarray(exits).tolist(),
        }

    def time(self, contender: str, batch: int) -> dict[str, float]:
        if batch != self._batch:
            self._batches, self._batch = split(self._inputs, batch), batch
            self._prepared = {}
        # Kept between turns: preparing a late stage runs all earlier ones.
        if contender not in self._prepared:
            self._prepared[contender] = self._engine.prepare(contender, self._batches)
        run = self._prepared[contender]
        run(0)  # untimed: warms the caches after the other contenders
        start = time.perf_counter()
        for i in range(len(self._batches)):
            run(i)
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict[str, float]:
        return {"imports_mb": self._imports_mb, "peak_mb": resident_most() / 2**20}


def split(inputs: Arrays, batch: int) -> list[Arrays]:
    """The batches of one pass; the same for every contender."""
    rows = rows_of_pass(count(inputs), batch)
    return list(in_batches(take(inputs, slice(rows)), batch))


def rows_of_pass(rows: int, batch: int) -> int:
    """The number of rows in a pass: full batches only."""
    return batch * min(rows // batch, max(4, min(64, 512 // batch)))


def main() -> None:
    # Output of libraries goes to stderr; stdout carries the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    worker: _Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("do")
        try:
            if task == "load":
                worker, reply = _Worker(spec), {}
            else:
                assert worker is not None
                reply = getattr(worker, task)(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    main()

"""How long the steps of a training take: those of its phases, by `fit` itself."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf.data import Dataset
from branchy_tf.errors import BranchyError
from branchy_tf.training.batches import Batches
from branchy_tf.training.fitting import Phase, compiled, make_batches
from branchy_tf.training.settings import Settings

# How much longer than by multiply-adds joint training may take.
ALLOWED = 1.15


class StepTimer:
    """Trains some steps at each call and tells how many seconds one took.

    Args:
        phase: what to train.
        dataset: each call goes over its training split once; see `some_steps`.
        settings: how.
        jit: whether to compile the step; None leaves it to Keras, as `train` does.

    Raises:
        BranchyError: Keras does not compile this model's step.
    """

    def __init__(
        self, phase: Phase, dataset: Dataset, settings: Settings, jit: bool | None = None
    ) -> None:
        self._batches = make_batches(phase, dataset, settings)
        self._trainer = compiled(phase, settings, len(self._batches))
        if jit is not None:
            with warnings.catch_warnings():
                # Of what is said below.
                warnings.simplefilter("ignore")
                self._trainer.jit_compile = jit
            if self._trainer.jit_compile != jit:
                raise BranchyError(
                    f"Keras on {keras.backend.backend()} does not compile the steps of "
                    "this model. TensorFlow compiles none that must be deterministic."
                )
        self._seconds = self._waited = 0.0

    def __call__(self) -> float:
        """Seconds that a step took."""
        clock = _Clock(self._batches)
        self._trainer.fit(self._batches, shuffle=False, verbose=0, callbacks=[clock])
        self._seconds += clock.seconds
        self._waited += clock.waited
        return clock.seconds / (len(self._batches) - 1)

    @property
    def waiting(self) -> float:
        """Share of its time, over all calls, that training waited for batches."""
        return self._waited / self._seconds


class BatchTimer:
    """Makes batches at each call, and nothing else; tells the seconds for one.

    Args:
        phase: whose batches.
        dataset: as for `StepTimer`.
        settings: their size and augmentation.
    """

    def __init__(self, phase: Phase, dataset: Dataset, settings: Settings) -> None:
        self._batches = make_batches(phase, dataset, settings)

    def __call__(self) -> float:
        """Seconds that a batch took."""
        start = time.perf_counter()
        self._batches.start_epoch(0)
        for index in range(len(self._batches)):
            self._batches[index]
        return (time.perf_counter() - start) / len(self._batches)


class _Clock(keras.callbacks.Callback):
    """Times all steps but the first, at which Keras builds the graph."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self._batches = batches

    def on_train_batch_end(self, batch, logs=None) -> None:
        if batch in (0, len(self._batches) - 1):
            # A device may still be at work until its figure is here.
            float(logs["loss"])
            now, waited = time.perf_counter(), self._batches.waited
            if batch == 0:
                self._start, self._waited = now, waited
            else:
                self.seconds = now - self._start
                self.waited = waited - self._waited


def some_steps(dataset: Dataset, steps: int, batch_size: int) -> Dataset:
    """The data set with as many rows to train on as make the first step and `steps`."""
    rows = np.resize(np.arange(len(dataset.train)), (steps + 1) * batch_size)
    return dataclasses.replace(dataset, train=dataset.train.take(rows))


def figures(quartiles: Iterable[float], batch_size: int) -> dict[str, float]:
    """What a table says of the times of a step.

    Args:
        quartiles: low, median and high, in seconds.
        batch_size: rows of the step.
    """
    low, median, high = quartiles
    return {
        "ms_per_step": 1e3 * median,
        "low": 1e3 * low,
        "high": 1e3 * high,
        "images_per_second": batch_size / median,
    }


def joint_over_baseline(
    steps: Sequence[Mapping[str, Any]], macs_ratio: float
) -> list[dict[str, Any]]:
    """How much longer a step of all exits takes than one of the baseline.

    Args:
        steps: `[{"phase", "precision", "jit", "ms_per_step"}, ...]`.
        macs_ratio: multiply-adds with all exits over those of the baseline.

    Returns:
        `[{"precision", "jit", "ratio", "allowed", "within"}, ...]`, where both phases
        were timed alike.
    """
    times = {
        (row["phase"], row["precision"], row["jit"]): row["ms_per_step"] for row in steps
    }
    allowed = ALLOWED * macs_ratio
    found = []
    for (phase, precision, jit), joint in times.items():
        baseline = times.get(("baseline", precision, jit))
        if phase != "baseline" and baseline is not None:
            ratio = joint / baseline
            found.append(
                {"precision": precision, "jit": jit, "ratio": ratio}
                | {"allowed": allowed, "within": ratio <= allowed}
            )
    return found

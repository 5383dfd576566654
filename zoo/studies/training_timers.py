"""Times the training steps of a phase, as run by `fit` itself."""

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

# Time ratio of joint to baseline steps that is allowed, over their multiply-add ratio.
ALLOWED = 1.15


class StepTimer:
    """Trains some steps at each call and returns the seconds per step.

    Args:
        phase: what to train.
        dataset: each call runs through its training split once; see `some_steps`.
        settings: batch size, optimizer and augmentation.
        jit: whether to compile the step; None lets Keras decide, as `train` does.

    Raises:
        BranchyError: Keras cannot compile this model's step.
    """

    def __init__(
        self, phase: Phase, dataset: Dataset, settings: Settings, jit: bool | None = None
    ) -> None:
        self._batches = make_batches(phase, dataset, settings)
        self._trainer = compiled(phase, settings, len(self._batches))
        if jit is not None:
            with warnings.catch_warnings():
                # The error below says it better than Keras's warning.
                warnings.simplefilter("ignore")
                self._trainer.jit_compile = jit
            if self._trainer.jit_compile != jit:
                raise BranchyError(
                    f"Keras on {keras.backend.backend()} does not compile this model's "
                    "training step. TensorFlow compiles no deterministic step; turn "
                    "determinism off."
                )
        self._seconds = self._waited = 0.0

    def __call__(self) -> float:
        """Seconds per step, without the first."""
        clock = _Clock(self._batches)
        self._trainer.fit(self._batches, shuffle=False, verbose=0, callbacks=[clock])
        self._seconds += clock.seconds
        self._waited += clock.waited
        return clock.seconds / (len(self._batches) - 1)

    @property
    def waiting(self) -> float:
        """Share of the time of all calls that was spent waiting for batches."""
        return self._waited / self._seconds


class BatchTimer:
    """Makes batches without training at each call and returns the seconds per batch.

    Args:
        phase: the phase whose batches to make.
        dataset: as for `StepTimer`.
        settings: batch size and augmentation.
    """

    def __init__(self, phase: Phase, dataset: Dataset, settings: Settings) -> None:
        self._batches = make_batches(phase, dataset, settings)

    def __call__(self) -> float:
        """Seconds per batch."""
        start = time.perf_counter()
        self._batches.start_epoch(0)
        for index in range(len(self._batches)):
            self._batches[index]
        return (time.perf_counter() - start) / len(self._batches)


class _Clock(keras.callbacks.Callback):
    """Times all steps but the first, during which Keras builds the graph."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self._batches = batches

    def on_train_batch_end(self, batch, logs=None) -> None:
        if batch in (0, len(self._batches) - 1):
            # Reading the loss waits for a device that is still working.
            float(logs["loss"])
            now, waited = time.perf_counter(), self._batches.waited
            if batch == 0:
                self._start, self._waited = now, waited
            else:
                self.seconds = now - self._start
                self.waited = waited - self._waited


def some_steps(dataset: Dataset, steps: int, batch_size: int) -> Dataset:
    """The data set with training rows for `steps` steps and one before them."""
    rows = np.resize(np.arange(len(dataset.train)), (steps + 1) * batch_size)
    return dataclasses.replace(dataset, train=dataset.train.take(rows))


def figures(quartiles: Iterable[float], batch_size: int) -> dict[str, float]:
    """Times and throughput of a step, for a table.

    Args:
        quartiles: lower quartile, median and upper quartile, in seconds.
        batch_size: rows in the step.
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
    """Time of a joint step over that of a baseline step.

    Args:
        steps: `[{"phase", "precision", "jit", "ms_per_step"}, ...]`.
        macs_ratio: multiply-adds of all exits together over those of the baseline.

    Returns:
        `[{"precision", "jit", "ratio", "allowed", "within"}, ...]`, for each precision
        and jit with which both phases were timed.
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

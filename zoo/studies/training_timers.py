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
from branchy_tf.training.fitting import Phase, compiled, feed, steps_per_epoch
from branchy_tf.training.settings import Settings

# Time ratio of joint to baseline steps that is allowed, over their multiply-add ratio.
ALLOWED = 1.15


class StepTimer:
    """Trains some steps at each call and returns the seconds per step.

    Args:
        phase: what to train.
        dataset: each call runs through its training split once; see `some_steps`.
        settings: batch size, optimizer, augmentation and steps per call.
        jit: whether to compile the step; None lets Keras decide, as `train` does.

    Attributes:
        batches: what it trains on.
        first_seconds: from the start to the end of the very first call of Keras, in
            which it builds and compiles the step.

    Raises:
        BranchyError: Keras cannot compile this model's step.
    """

    def __init__(
        self, phase: Phase, dataset: Dataset, settings: Settings, jit: bool | None = None
    ) -> None:
        steps = steps_per_epoch(dataset, settings)
        self._steps = steps - (settings.steps_per_call or 1)
        self._trainer = compiled(phase, settings, steps)
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
        self.batches = feed(self._trainer, phase, dataset, settings)
        self._device = None
        if self._trainer.train_function is not None:
            self._device = _Device(self._trainer)
        self.first_seconds: float | None = None
        self._seconds = self._waited = self._computing = 0.0

    def __call__(self) -> float:
        """Seconds per step, without the first call."""
        clock = _Clock(self.batches, self._device)
        self._trainer.fit(self.batches, shuffle=False, verbose=0, callbacks=[clock])
        if self.first_seconds is None:
            self.first_seconds = clock.first_seconds
        self._seconds += clock.seconds
        self._waited += clock.waited
        self._computing += clock.computing
        return clock.seconds / self._steps

    @property
    def waiting(self) -> float:
        """Share of the time of all calls that was spent waiting for batches."""
        return self._waited / self._seconds

    @property
    def outside(self) -> float | None:
        """Share of the time in which the training did not wait for the device.

        What goes on in that time, such as preparing and starting a call, delays the
        steps. None where it cannot be told, which is everywhere but under JAX with the
        data on the device.
        """
        return None if self._device is None else 1 - self._computing / self._seconds


class BatchTimer:
    """Makes batches without training at each call and returns the seconds per step.

    Args:
        batches: the batches.
        steps: the number of steps that they are for.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        self._batches = batches
        self._steps = steps

    def __call__(self) -> float:
        """Seconds per step."""
        start = time.perf_counter()
        self._batches.start_epoch(0)
        for index in range(len(self._batches)):
            self._batches[index]
        return (time.perf_counter() - start) / self._steps


class _Device:
    """Waits for the end of each call of a trainer under JAX, and for how long.

    Attributes:
        seconds: spent waiting so far.
    """

    def __init__(self, trainer: keras.Model) -> None:
        self.seconds = 0.0
        self._call = trainer.train_function
        trainer.train_function = self

    def __call__(self, *arguments: Any) -> Any:
        import jax

        result = self._call(*arguments)
        start = time.perf_counter()
        jax.block_until_ready(result)
        self.seconds += time.perf_counter() - start
        return result


class _Clock(keras.callbacks.Callback):
    """Times all calls but the first, during which Keras builds the graph."""

    def __init__(self, batches: Batches, device: _Device | None) -> None:
        super().__init__()
        self._batches = batches
        self._device = device
        self._start: tuple[float, ...] | None = None

    def on_train_begin(self, logs=None) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None) -> None:
        # Reading the loss waits for a device that is still working.
        float(logs["loss"])
        computing = 0.0 if self._device is None else self._device.seconds
        now = time.perf_counter(), self._batches.waited, computing
        if self._start is None:
            self._start = now
            self.first_seconds = now[0] - self._begin
        self.seconds, self.waited, self.computing = np.subtract(now, self._start).tolist()


def some_steps(
    dataset: Dataset, steps: int, batch_size: int, steps_per_call: int = 1
) -> Dataset:
    """The data set with training rows for `steps` steps and one call before them."""
    count = (steps + steps_per_call) * batch_size
    rows = np.resize(np.arange(len(dataset.train)), count)
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

"""What a model costs: multiply-adds by exit, and measured time."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from branchy_tf import exits, stages
from branchy_tf.macs import macs

__all__ = ["cumulative_macs", "full_macs", "interleave", "macs", "measure_interleaved"]


def by_stage(model: keras.Model) -> list[dict[str, int | str]]:
    """What each stage adds: multiply-adds of an example, and parameters.

    Returns:
        `[{"exit": "exit_1", "macs": ..., "parameters": ...}, ...]`. A layer that
        several stages share counts at the first; macs count each time.
    """
    rows: list[dict[str, int | str]] = []
    seen: set[int] = set()
    for stage in stages.split(model):
        own = {id(w): math.prod(w.shape) for w in stage.model.weights}
        parameters = sum(size for key, size in own.items() if key not in seen)
        seen |= own.keys()
        rows.append(
            {"exit": stage.name, "macs": macs(stage.model), "parameters": parameters}
        )
    return rows


def cumulative_macs(model: keras.Model) -> list[int]:
    """Multiply-adds spent on an example that leaves at each exit.

    Returns:
        N whole numbers, increasing: entry n is what exit n costs, all branches
        on the way to it included.
    """
    by_stage = [macs(stage.model) for stage in stages.split(model)]
    return [int(total) for total in np.cumsum(by_stage)]


def full_macs(model: keras.Model) -> int:
    """Multiply-adds of the network without its branches."""
    return macs(exits.baseline(model))


def measure_interleaved(
    calls: dict[str, Callable[[], object]],
    seconds: float = 2.0,
    warm_up: int = 5,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
) -> dict[str, np.ndarray]:
    """Times several calls in turn, so that noise falls on all alike.

    Args:
        calls: what to time, by name.
        seconds: about how long to measure, over all calls.
        warm_up: untimed rounds before.
        quantiles: which quantiles of the times to return.

    Returns:
        `{name: seconds at each quantile}`.
    """
    timers = {name: functools.partial(_time, call) for name, call in calls.items()}
    return interleave(timers, seconds, warm_up, quantiles)


def interleave(
    timers: Mapping[str, Callable[[], float]],
    seconds: float = 2.0,
    warm_up: int = 5,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
) -> dict[str, np.ndarray]:
    """Like `measure_interleaved`, of calls that tell how many seconds they took."""
    for _ in range(warm_up):
        for timer in timers.values():
            timer()
    times: dict[str, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, timer in timers.items():
            times[name].append(timer())
    return {name: np.quantile(values, quantiles) for name, values in times.items()}


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

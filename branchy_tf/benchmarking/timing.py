"""Times calls in turn, so that noise affects all alike."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def time_calls(
    calls: dict[str, Callable[[], object]],
    seconds: float = 2.0,
    warm_up: int = 5,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
) -> dict[str, np.ndarray]:
    """Times several calls in turn, so that noise affects all alike.

    Args:
        calls: what to time, by name.
        seconds: to measure, over all calls.
        warm_up: untimed rounds first.
        quantiles: of the times, to return.

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
    """Like `time_calls`, for calls that return the seconds they took."""
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

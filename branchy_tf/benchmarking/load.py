"""Load tests of a server with closed and open loops.

In a closed loop each of several callers sends its next request after an answer, which
shows the server's capacity. An open loop sends requests at a given rate, as real traffic
does. Its latency counts from the time a request was due, so queueing is included.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from branchy_tf import checks
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving.answers import ExpectedAnswers

# Threads, and requests of an open loop, which are sampled in advance.
_MOST_CALLERS, _MOST_ARRIVALS = 10_000, 10_000_000
OK, WRONG, LATE = "OK", "WRONG", "DEADLINE_EXCEEDED"

# Sends a request, given its number and timeout in seconds; returns the rows answered.
# Raises `ServerError` or `WrongAnswer`.
Ask = Callable[[int, float], int]


class WrongAnswer(Exception):
    """An answer is not the expected one."""


class Sample(NamedTuple):
    """One request.

    Attributes:
        start: `time.monotonic()` when it was sent, or in an open loop due.
        end: when it was answered or failed.
        status: "OK", "WRONG" or the name of a gRPC status.
        rows: the rows answered.
    """

    start: float
    end: float
    status: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a load test.

    Attributes:
        samples: of all requests.
        seconds: from the first request to the last answer.
    """

    samples: list[Sample]
    seconds: float

    @property
    def wrong(self) -> int:
        """The number of wrong answers."""
        return sum(sample.status == WRONG for sample in self.samples)

    @property
    def errors(self) -> dict[str, int]:
        """The number of failed requests by status."""
        failed = (s.status for s in self.samples if s.status not in (OK, WRONG))
        return dict(sorted(collections.Counter(failed).items()))

    @property
    def latencies(self) -> np.ndarray:
        """Milliseconds of each answered request."""
        answered = [s for s in self.samples if s.status in (OK, WRONG)]
        return np.array([1e3 * (s.end - s.start) for s in answered])

    def summary(self) -> dict[str, Any]:
        """The figures in load.json."""
        latencies = self.latencies
        found = np.percentile(latencies, [50, 95, 99, 100]) if len(latencies) else None
        names = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": self.seconds,
            "requests": len(self.samples),
            "answered": len(latencies),
            "wrong": self.wrong,
            "errors": self.errors,
            "requests_per_second": len(latencies) / seconds,
            "rows_per_second": sum(s.rows for s in self.samples) / seconds,
        } | {name: None if found is None else found[i] for i, name in enumerate(names)}


class Traffic:
    """Requests with known images, each row with its own thresholds.

    Request k sends B rows from k B on, cyclically. Rows take the thresholds in turn,
    so over time each row meets all of them.

    Args:
        client: an `EarlyExitClient`, or another object with its `predict`.
        inputs: [n, ...]; a dict by name for several.
        rows: B, per request.
        thresholds: [K, N-1]; default: sends none.
        expected: returns the known answers of a version to `inputs`; needs thresholds.
            Default: answers are not checked.
    """

    def __init__(
        self,
        client: Any,
        inputs: Any,
        rows: int = 1,
        thresholds: Any = None,
        expected: Callable[[int | None], ExpectedAnswers] | None = None,
    ) -> None:
        assert expected is None or thresholds is not None
        self._client = client
        self._inputs = inputs
        arrays = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        self._count = len(next(iter(arrays)))
        self._rows = checks.whole_number("rows", rows, at_least=1)
        self._thresholds = None
        if thresholds is not None:
            self._thresholds = checks.real_array("thresholds", thresholds)
            if self._thresholds.ndim != 2 or not self._thresholds.size:
                raise BranchyError(
                    "`thresholds` must be [K, N-1], K times one for each exit but the "
                    f"final one. Received {checks.shown(thresholds)}."
                )
            self._thresholds = self._thresholds.astype(np.float32)
        self._expected = expected

    def __call__(self, number: int, timeout: float) -> int:
        """Sends request `number`; returns its rows.

        Raises:
            ServerError: as the client's `predict`.
            WrongAnswer: a row is wrong.
        """
        place = number * self._rows + np.arange(self._rows)
        rows = place % self._count
        limits = None
        if self._thresholds is not None:
            turn = rows + place // self._count
            limits = self._thresholds[turn % len(self._thresholds)]
        answer = self._client.predict(self._take(rows), limits, timeout=timeout)
        if self._expected is not None:
            assert limits is not None
            expected = self._expected(answer.model_version)
            right = expected.right(answer, rows, limits)
            if not right.all():
                first = int(np.argmin(right))
                raise WrongAnswer(
                    f"row {rows[first]}, thresholds {limits[first].tolist()}, version "
                    f"{answer.model_version}: exit index {answer.exits[first]}, score "
                    f"{answer.scores[first]:.6f}, label {answer.labels[first]}; every "
                    f"exit's scores: {expected.scores[rows[first]].tolist()}"
                )
        return self._rows

    def _take(self, rows: np.ndarray) -> Any:
        if isinstance(self._inputs, Mapping):
            return {name: array[rows] for name, array in self._inputs.items()}
        return self._inputs[rows]


def closed_loop(
    ask: Ask,
    callers: int,
    timeout: float,
    seconds: float = math.inf,
    requests: int | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Callers that each send their next request after an answer.

    Args:
        ask: called from several threads at a time.
        callers: number of threads.
        timeout: seconds per request.
        seconds: to send requests for.
        requests: to send in all.
        stop: ends the loop once set.

    Returns:
        The outcome of all requests.
    """
    callers = checks.whole_number("callers", callers, at_least=1, at_most=_MOST_CALLERS)
    timeout = checks.real_number("timeout", timeout, above=0)
    seconds = checks.real_number("seconds", seconds, above=0, infinite=True)
    if requests is not None:
        requests = checks.whole_number("requests", requests, at_least=0)
    elif stop is None and seconds == math.inf:
        raise BranchyError("Pass `seconds`, `requests` or `stop`, so that it ends.")
    numbers = itertools.count() if requests is None else iter(range(requests))
    stop = stop or threading.Event()
    begin = time.monotonic()

    def call() -> list[Sample]:
        samples: list[Sample] = []
        try:
            while not stop.is_set() and time.monotonic() - begin < seconds:
                number = next(numbers, None)
                if number is None:
                    break
                samples.append(_sample(ask, number, time.monotonic(), timeout))
        except BaseException:
            stop.set()
            raise
        return samples

    with futures.ThreadPoolExecutor(callers) as pool:
        parts = [pool.submit(call) for _ in range(callers)]
    return _outcome(begin, [sample for part in parts for sample in part.result()])


def open_loop(
    ask: Ask,
    rate: float,
    timeout: float,
    seconds: float,
    callers: int = 256,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> Outcome:
    """Requests that arrive at random at a given rate, as a Poisson process.

    Args:
        ask: called from several threads at a time.
        rate: requests per second.
        timeout: seconds per request, from when it is due.
        seconds: to send requests for.
        callers: concurrent requests; others wait, which counts as latency.
        seed: of the arrivals.
        stop: ends the loop once set.

    Returns:
        The outcome of all requests.
    """
    callers = checks.whole_number("callers", callers, at_least=1, at_most=_MOST_CALLERS)
    timeout = checks.real_number("timeout", timeout, above=0)
    seconds = checks.real_number("seconds", seconds, above=0)
    rate = checks.real_number("rate", rate, above=0, at_most=_MOST_ARRIVALS / seconds)
    random = np.random.default_rng(checks.whole_number("seed", seed, at_least=0))
    arrivals = np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))
    stop = stop or threading.Event()
    begin = time.monotonic()

    def call(number: int, due: float) -> Sample:
        try:
            return _sample(ask, number, due, timeout)
        except BaseException:
            stop.set()
            raise

    with futures.ThreadPoolExecutor(callers) as pool:
        parts = []
        for number, due in enumerate((begin + arrivals).tolist()):
            if stop.wait(max(due - time.monotonic(), 0)):
                break
            parts.append(pool.submit(call, number, due))
    return _outcome(begin, [part.result() for part in parts])


def run_loops(
    ask: Ask,
    callers: Sequence[int],
    rates: Sequence[float],
    seconds: float,
    timeout: float,
    progress: Callable[[str], object] = lambda what: None,
) -> list[dict[str, Any]]:
    """A closed loop for each number of callers, an open one for each rate.

    Args:
        ask: as for the loops.
        callers: numbers of callers.
        rates: requests per second.
        seconds: per loop.
        timeout: seconds per request.
        progress: called with a description of each loop.

    Returns:
        For each loop its `Outcome.summary()` with `loop`, "closed" or "open", `callers`
        and `rate`, one of which is None.
    """
    results = []
    for count in callers:
        progress(f"{count} callers")
        outcome = closed_loop(ask, count, timeout, seconds)
        loop = {"loop": "closed", "callers": count, "rate": None}
        results.append(loop | outcome.summary())
    for rate in rates:
        progress(f"{rate:g} requests a second")
        outcome = open_loop(ask, rate, timeout, seconds)
        loop = {"loop": "open", "callers": None, "rate": rate}
        results.append(loop | outcome.summary())
    return results


def _sample(ask: Ask, number: int, start: float, timeout: float) -> Sample:
    left = start + timeout - time.monotonic()
    status, rows = LATE, 0
    if left > 0:
        try:
            rows = ask(number, left)
            status = OK
        except ServerError as error:
            status = error.code
        except WrongAnswer as error:
            logging.log_first_n(logging.WARNING, "Wrong answer: %s", 5, error)
            status = WRONG
    return Sample(start, time.monotonic(), status, rows)


def _outcome(begin: float, samples: list[Sample]) -> Outcome:
    end = max((sample.end for sample in samples), default=begin)
    return Outcome(samples, end - begin)

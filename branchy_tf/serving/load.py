"""Load for a server, and how it fared: closed loops and open ones.

In a closed loop each of several callers asks again once it is answered; that shows
what a server can do. An open loop asks at a rate, whatever the server does, as the
world does: latency counts from when a request was due, so that waiting for its turn
is not hidden.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from branchy_tf.errors import ServerError
from branchy_tf.serving.answers import KnownAnswers

OK, WRONG, LATE = "OK", "WRONG", "DEADLINE_EXCEEDED"

# Asks with a request's number and the seconds it has; gives the rows answered.
# Raises `ServerError`, or `WrongAnswer`.
Ask = Callable[[int, float], int]


class WrongAnswer(Exception):
    """An answer that is not what it must be."""


class Sample(NamedTuple):
    """One request.

    Attributes:
        start: when it was sent, or due in an open loop, in `time.monotonic()`.
        end: when it was answered or given up.
        status: "OK", "WRONG" or the name of a gRPC status.
        rows: that were answered.
    """

    start: float
    end: float
    status: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a load.

    Attributes:
        samples: of all requests.
        seconds: from the first request to the last answer.
    """

    samples: list[Sample]
    seconds: float

    @property
    def wrong(self) -> int:
        """How many answers were not what they must be."""
        return sum(sample.status == WRONG for sample in self.samples)

    @property
    def errors(self) -> dict[str, int]:
        """How many requests failed, by status."""
        failed = (s.status for s in self.samples if s.status not in (OK, WRONG))
        return dict(sorted(collections.Counter(failed).items()))

    @property
    def latencies(self) -> np.ndarray:
        """Milliseconds of each request that was answered."""
        answered = [s for s in self.samples if s.status in (OK, WRONG)]
        return np.array([1e3 * (s.end - s.start) for s in answered])

    def summary(self) -> dict[str, Any]:
        """The figures, as load.json has them."""
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
    """Requests about known images, each row with thresholds of its own.

    Request k asks about the rows from k B on, over and over. Rows take the
    thresholds in turn, and each image meets all of them in time.

    Args:
        client: an `EarlyExitClient`, or what has its `predict`.
        images: [n, ...], what the model takes.
        rows: B, of each request.
        thresholds: [K, N-1]; default: none are sent.
        expected: called with the version that answered, gives what it must
            answer to `images`; needs thresholds. Default: answers are not checked.
    """

    def __init__(
        self,
        client: Any,
        images: np.ndarray,
        rows: int = 1,
        thresholds: Any = None,
        expected: Callable[[int | None], KnownAnswers] | None = None,
    ) -> None:
        assert expected is None or thresholds is not None
        self._client = client
        self._images = images
        self._rows = rows
        self._thresholds = None if thresholds is None else np.float32(thresholds)
        self._expected = expected

    def __call__(self, number: int, timeout: float) -> int:
        """Sends request `number`; gives its rows.

        Raises:
            ServerError: as the client's `predict`.
            WrongAnswer: a row is not what it must be.
        """
        place = number * self._rows + np.arange(self._rows)
        rows = place % len(self._images)
        limits = None
        if self._thresholds is not None:
            turn = rows + place // len(self._images)
            limits = self._thresholds[turn % len(self._thresholds)]
        answer = self._client.predict(self._images[rows], limits, timeout=timeout)
        if self._expected is not None:
            assert limits is not None
            expected = self._expected(answer.model_version)
            right = expected.right(answer, rows, limits)
            if not right.all():
                first = int(np.argmin(right))
                raise WrongAnswer(
                    f"image {rows[first]}, thresholds {limits[first].tolist()}, version "
                    f"{answer.model_version}: exit index {answer.exits[first]}, score "
                    f"{answer.scores[first]:.6f}, label {answer.labels[first]}; every "
                    f"exit's scores: {expected.scores[rows[first]].tolist()}"
                )
        return self._rows


def closed_loop(
    ask: Ask,
    callers: int,
    timeout: float,
    seconds: float = math.inf,
    requests: int | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Callers that each ask again once they are answered.

    Args:
        ask: called from several threads at a time.
        callers: how many threads.
        timeout: seconds for each request.
        seconds: after which no request is sent any more.
        requests: after how many none is.
        stop: none is sent once this is set.

    Returns:
        The outcome of all requests.
    """
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
    """Requests that arrive by chance at a given rate, a Poisson process.

    Args:
        ask: called from several threads at a time.
        rate: requests a second.
        timeout: seconds for each request, from when it is due.
        seconds: after which none arrives any more.
        callers: requests under way at a time; others wait, which counts.
        seed: of the arrivals.
        stop: none arrives once this is set.

    Returns:
        The outcome of all requests.
    """
    random = np.random.default_rng(seed)
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


def measure(
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
        rates: requests a second.
        seconds: for each.
        timeout: seconds for each request.
        progress: called with a word on what is measured now.

    Returns:
        For each `Outcome.summary()` with `loop`, "closed" or "open", `callers` and
        `rate`, one of which is None.
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

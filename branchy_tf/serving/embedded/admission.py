"""How many requests run, how many wait, and what becomes of the rest."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator

import grpc

from branchy_tf.serving.embedded.statuses import Refusal


class Admission:
    """Lets so many requests run and so many wait; more are refused at once.

    More would only wait until their clients have gone. grpc's own
    `maximum_concurrent_rpcs` counts calls of every method, so that a server full of
    predictions would refuse probes too, and nothing would count what it refuses.

    Args:
        running: requests at a time.
        waiting: requests that may wait for their turn.

    Attributes:
        places: requests inside at most, and so the threads that they hold.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.places = running + waiting
        self._places = threading.Semaphore(self.places)
        self._turns = Turns(running)

    @contextlib.contextmanager
    def turn(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Waits for a turn, at most until the request's deadline.

        Raises:
            Refusal: RESOURCE_EXHAUSTED where no place is free, DEADLINE_EXCEEDED
                where the turn comes too late for the client.
        """
        if not self._places.acquire(blocking=False):
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The server holds {self.places} requests and takes no more for now.",
            )
        try:
            in_time = self._turns.take(_left(context))
            try:
                if not in_time or not context.is_active():
                    raise Refusal(
                        grpc.StatusCode.DEADLINE_EXCEEDED, "It came too late to run."
                    )
                yield
            finally:
                if in_time:
                    self._turns.give_back()
        finally:
            self._places.release()


class Turns:
    """A semaphore that serves who came first.

    With `threading.Semaphore` whoever comes just then gets what has become free, before
    a thread that waits has woken up. Of 72 threads that asked for 8 turns again and
    again, the last percent waited for 6 s there and for 0.5 s here.

    Args:
        count: turns at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._queue: collections.deque[threading.Lock] = collections.deque()
        self._lock = threading.Lock()

    def take(self, timeout: float) -> bool:
        """Waits for a turn, at most `timeout` seconds; -1: for ever. Whether it came."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            called = threading.Lock()
            called.acquire()
            self._queue.append(called)
        if called.acquire(timeout=timeout):
            return True
        with self._lock:
            try:
                self._queue.remove(called)
            except ValueError:
                return True  # called at the last moment
            return False

    def give_back(self) -> None:
        """Hands a turn to who has waited longest."""
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1


def _left(context: grpc.ServicerContext) -> float:
    """Seconds until the deadline, as far as a lock can wait; -1: there is none."""
    left = context.time_remaining()
    return -1 if left is None else min(max(left, 0.0), threading.TIMEOUT_MAX)

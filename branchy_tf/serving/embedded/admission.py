"""How many requests run, how many wait, and what becomes of the rest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import grpc

from branchy_tf.serving.embedded.refusals import Refusal


class Admission:
    """Lets so many requests run and so many wait; more are refused at once.

    More would only wait until their clients have gone.

    Args:
        running: requests at a time.
        waiting: requests that may wait for their turn.

    Attributes:
        places: requests inside at most, and so the threads that they hold.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.places = running + waiting
        self._places = threading.Semaphore(self.places)
        self._turns = threading.Semaphore(running)

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
            in_time = self._turns.acquire(timeout=_left(context))
            try:
                if not in_time or not context.is_active():
                    raise Refusal(
                        grpc.StatusCode.DEADLINE_EXCEEDED, "It came too late to run."
                    )
                yield
            finally:
                if in_time:
                    self._turns.release()
        finally:
            self._places.release()


def _left(context: grpc.ServicerContext) -> float | None:
    """Seconds until the deadline, where there is one that a lock can wait for."""
    left = context.time_remaining()
    return None if left is None else min(max(left, 0.0), threading.TIMEOUT_MAX)

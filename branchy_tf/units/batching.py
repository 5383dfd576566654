"""Merges rows of several requests into one call to a unit.

A call takes whatever rows wait when a slot is free, so batches grow with the load and a
lone request does not wait for others.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from branchy_tf.errors import ServerError
from branchy_tf.units.interfaces import FEATURES, ONWARD
from branchy_tf.units.links import Link, Reply
from branchy_tf.units.metrics import CascadeMetrics


@dataclasses.dataclass
class _Waiting:
    """Rows of one request.

    Attributes:
        inputs: by name, with thresholds for every row.
        rows: how many.
        deadline: in `time.monotonic()`.
        version: the version that must answer; None: any.
        answer: receives the `Reply` for these rows.
    """

    inputs: Mapping[str, np.ndarray]
    rows: int
    deadline: float
    version: int | None
    answer: asyncio.Future


class Batcher:
    """Runs a unit on merged batches.

    Args:
        link: to the unit.
        metrics: counts calls, rows and bytes.
    """

    def __init__(self, link: Link, metrics: CascadeMetrics) -> None:
        self._link = link
        self._metrics = metrics
        self._most = link.config.max_batch_rows
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._calls = 0
        self._tasks: set[asyncio.Task] = set()

    async def run(
        self,
        inputs: Mapping[str, np.ndarray],
        deadline: float,
        version: int | None = None,
    ) -> Reply:
        """The unit's reply for these rows.

        Args:
            inputs: by name, with thresholds for every row.
            deadline: in `time.monotonic()`.
            version: the version that must answer.

        Raises:
            ServerError: the unit failed, or the deadline has passed.
        """
        rows = len(next(iter(inputs.values())))
        if rows > self._most:
            parts = [
                {name: value[i : i + self._most] for name, value in inputs.items()}
                for i in range(0, rows, self._most)
            ]
            calls = (self.run(part, deadline, version) for part in parts)
            return _join(await asyncio.gather(*calls))
        if self._calls < self._link.width:
            # A future and a task would only add the time to wake up.
            self._calls += 1
            try:
                return await self._ask(inputs, rows, deadline, version)
            finally:
                self._next()
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(inputs, rows, deadline, version, answer))
        try:
            return await asyncio.wait_for(answer, deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise ServerError(
                "DEADLINE_EXCEEDED",
                f"Unit {self._link.config.name!r} did not answer in time.",
            ) from None

    def _next(self) -> None:
        """Ends a call; requests that wait take its place."""
        group = self._take()
        if group:
            task = asyncio.ensure_future(self._answer(group))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        else:
            self._calls -= 1

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self._next()

    def _take(self) -> list[_Waiting]:
        """The next requests that share a call; skips those that gave up."""
        group: list[_Waiting] = []
        rows = 0
        while self._queue:
            first = self._queue[0]
            if first.answer.done():
                self._queue.popleft()
                continue
            fits = rows + first.rows <= self._most and first.version == (
                group[0].version if group else first.version
            )
            if group and not fits:
                break
            group.append(self._queue.popleft())
            rows += first.rows
        return group

    async def _answer(self, group: list[_Waiting]) -> None:
        """Answers requests in one call."""
        # The whole call may take as long as the most patient request; the others give up
        # on their own.
        deadline = max(waiting.deadline for waiting in group)
        inputs = group[0].inputs
        if len(group) > 1:
            inputs = {
                name: np.concatenate([waiting.inputs[name] for waiting in group])
                for name in inputs
            }
        rows = sum(waiting.rows for waiting in group)
        try:
            reply = await self._ask(inputs, rows, deadline, group[0].version)
        except Exception as error:
            for waiting in group:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, part in zip(group, _split(reply, group), strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(part)

    async def _ask(
        self,
        inputs: Mapping[str, np.ndarray],
        rows: int,
        deadline: float,
        version: int | None,
    ) -> Reply:
        timeout = deadline - time.monotonic()
        if timeout <= 0:
            raise ServerError("DEADLINE_EXCEEDED", "No time was left for the unit.")
        unit = self._link.config.name
        with self._metrics.watch(unit, rows) as call:
            reply = await self._link.run(inputs, timeout, version)
            call.count(reply.sent, reply.received)
        _check(reply, rows, unit)
        return reply


def _check(reply: Reply, rows: int, unit: str) -> None:
    """Raises `ServerError` unless a reply has its rows."""
    outputs = reply.outputs
    onward = int(outputs[ONWARD].sum()) if ONWARD in outputs else 0
    for name, value in outputs.items():
        wanted = onward if name.startswith(FEATURES) else rows
        if not value.ndim or len(value) != wanted:
            raise ServerError(
                "INTERNAL",
                f"Unit {unit!r} answered {rows} rows with {name} of shape {value.shape}.",
            )


def _join(replies: list[Reply]) -> Reply:
    """The reply for all rows, from those for the parts of a large request.

    Raises:
        ServerError: two versions answered.
    """
    versions = {reply.version for reply in replies}
    if len(versions) > 1:
        raise ServerError(
            "ABORTED", "A unit changed its version during one request; ask again."
        )
    outputs = {
        name: np.concatenate([reply.outputs[name] for reply in replies])
        for name in replies[0].outputs
    }
    return replies[0]._replace(outputs=outputs)


def _split(reply: Reply, group: list[_Waiting]) -> list[Reply]:
    """The part of a reply for each request."""
    if len(group) == 1:
        return [reply]
    ends = np.cumsum([waiting.rows for waiting in group])
    onward = reply.outputs.get(ONWARD, np.zeros(ends[-1], bool))
    # Features exist only for the rows that go on.
    feature_ends = np.concatenate([[0], np.cumsum(onward)])[ends]
    parts = []
    for i in range(len(group)):
        outputs = {}
        for name, value in reply.outputs.items():
            bounds = feature_ends if name.startswith(FEATURES) else ends
            outputs[name] = value[bounds[i - 1] if i else 0 : bounds[i]]
        parts.append(reply._replace(outputs=outputs))
    return parts

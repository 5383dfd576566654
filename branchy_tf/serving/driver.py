"""The common base of both clients: runs a conversation over gRPC."""

from __future__ import annotations

import abc
from typing import Any

import grpc

from branchy_tf.errors import ServerError
from branchy_tf.policy import InputsLike, trained_inputs
from branchy_tf.serving import channels
from branchy_tf.serving.conversation import Conversation, Pause, Send, Steps, T
from branchy_tf.serving.messages import Target
from branchy_tf.serving.metrics import ClientMetrics
from branchy_tf.serving.tls import Tls


class Driver(abc.ABC):
    """Runs the steps of a conversation.

    Args:
        server, model, version, timeout, label, tls, max_rows, metrics, inputs: as for
            `EarlyExitClient`.
    """

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None = None,
        timeout: float = 10.0,
        *,
        label: str | None = None,
        tls: Tls | grpc.ChannelCredentials | None = None,
        max_rows: int | None = None,
        metrics: ClientMetrics | None = None,
        inputs: InputsLike | None = None,
    ) -> None:
        self._target = Target(server, model, version, label)
        self._conversation = Conversation(
            self._target, timeout, max_rows, metrics, trained_inputs(inputs)
        )
        self._route = channels.Route.to(server, tls)
        self._closed = False
        self._prepare()

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Prepares to open channels."""

    async def _hold(self, steps: Steps[T]) -> T:
        """Runs the steps of a conversation to its result."""
        try:
            step = next(steps)
            while True:
                try:
                    replies = await self._do(step)
                except ServerError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(replies)
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    async def _do(self, step: Send | Pause) -> list[bytes]:
        with channels.explaining(self._target, self._route, lambda: self._closed):
            if isinstance(step, Send):
                return await self._send(step)
            await self._pause(step.seconds)
            return []

    @abc.abstractmethod
    async def _send(self, step: Send) -> list[bytes]:
        """Sends requests and returns their responses in order."""

    @abc.abstractmethod
    async def _pause(self, seconds: float) -> None:
        """Sleeps."""


def finish(coroutine: Any) -> Any:
    """The result of a coroutine that blocks instead of awaiting an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    finally:
        coroutine.close()
    raise AssertionError("a blocking client never waits for an event loop")

"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.results import AllExits, Predictions
from branchy_tf.serving.conversation import IN_FLIGHT, Send
from branchy_tf.serving.driver import Driver
from branchy_tf.serving.messages import Signature


class AsyncEarlyExitClient(Driver):
    """`EarlyExitClient` with coroutines; bound to the first event loop that uses it.

    Cancelling a call cancels its requests. Takes the arguments of `EarlyExitClient`.

    Example:

    ```python
    async with AsyncEarlyExitClient("localhost:8500", model="branchy_lenet") as client:
        answers = await asyncio.gather(*map(client.predict, batches))
    ```
    """

    def _prepare(self) -> None:
        # Opened by the first call: a client may be created before its loop runs.
        self._opened: tuple[asyncio.AbstractEventLoop, Any] | None = None

    async def __aenter__(self) -> AsyncEarlyExitClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; pending calls fail."""
        self._closed = True
        if self._opened is not None:
            await self._channel().close()

    async def predict(
        self, images: Any, thresholds: Any = None, timeout: float | None = None
    ) -> Predictions:
        """See `EarlyExitClient.predict`."""
        return await self._hold(self._conversation.predict(images, thresholds, timeout))

    async def all_exits(self, images: Any, timeout: float | None = None) -> AllExits:
        """See `EarlyExitClient.all_exits`."""
        return await self._hold(self._conversation.all_exits(images, timeout))

    async def describe(
        self, timeout: float | None = None
    ) -> tuple[dict[str, checks.TensorSpec], int]:
        """See `EarlyExitClient.describe`."""
        return await self._hold(self._conversation.describe(timeout))

    async def signature(self, timeout: float | None = None) -> Signature:
        """See `EarlyExitClient.signature`."""
        return await self._hold(self._conversation.signature(timeout))

    async def wait_until_ready(self, timeout: float = 60.0) -> int:
        """See `EarlyExitClient.wait_until_ready`."""
        return await self._hold(self._conversation.wait_until_ready(timeout))

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _send(self, step: Send) -> list[bytes]:
        ask, slots = (
            self._channel().unary_unary(step.method),
            asyncio.Semaphore(IN_FLIGHT),
        )

        async def one(request: Callable[[], bytes]) -> bytes:
            async with slots:
                return await ask(request(), timeout=step.left())

        tasks = [asyncio.ensure_future(one(request)) for request in step.requests]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                # Cancelled by closing the channel, not by the caller.
                if task.cancelled():
                    raise grpc.FutureCancelledError
                task.result()
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _channel(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._opened is None:
            self._opened = loop, self._route.open(grpc.aio)
        if self._opened[0] is not loop:
            raise BranchyError(
                "The client belongs to another event loop; create one client per loop."
            )
        return self._opened[1]

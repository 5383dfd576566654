"""Asks a server for early-exit answers over gRPC, blocking.

Imports numpy, grpc and protobuf, no TensorFlow. Works with TF Serving and with
the embedded server alike.
"""

from __future__ import annotations

import collections
import os
import time
from typing import Any

import grpc

from branchy_tf import checks
from branchy_tf.results import AllExits, Predictions
from branchy_tf.serving.conversation import IN_FLIGHT, Send
from branchy_tf.serving.driver import Driver, finish


class EarlyExitClient(Driver):
    """Asks one model on one server; may be shared between threads.

    Args:
        server: "host:port" of its gRPC endpoint, "[::1]:8500" for IPv6. One on this
            machine is asked directly, another through the proxy of the environment
            (http_proxy, no_proxy), as gRPC does.
        model: name of the model.
        version: which version to ask; default: the newest.
        timeout: seconds after which a call is given up, all of its parts together.
        label: of a version, e.g. "stable", instead of its number.
        tls: a `Tls`, or `grpc.ChannelCredentials`; default: without TLS.
        max_rows: the most rows to send in one request. Larger batches are sent in
            parts, a few at a time, and answered by one version. Default: 1,000, or
            what 2 MiB hold. Pass what the server merges at most where it batches.
        metrics: where to count calls, exits and scores; clients may share it.

    Raises:
        BranchyError: invalid arguments, or files of `tls`.

    Example:

    ```python
    with EarlyExitClient("localhost:8500", model="branchy_lenet") as client:
        answer = client.predict(images)                   # calibrated thresholds
        answer = client.predict(images, thresholds=[0.1])
        answer.labels, answer.exits, answer.model_version
    ```
    """

    def _prepare(self) -> None:
        # A process that was forked opens its own and leaves its parent's alone.
        self._channels = {os.getpid(): self._route.open(grpc)}

    def __enter__(self) -> EarlyExitClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._closed = True
        channel = self._channels.get(os.getpid())
        if channel is not None:
            channel.close()

    def predict(
        self, images: Any, thresholds: Any = None, timeout: float | None = None
    ) -> Predictions:
        """Asks for each row's answer, at the first exit that is sure enough.

        Args:
            images: [B, ...], B > 0, of the shape and dtype that the served model
                takes (zoo models: raw pixels, uint8); for several inputs a dict.
            thresholds: N-1 numbers or [B, N-1]; default: the calibrated ones that
                the model was exported with.
            timeout: seconds; default: the client's.

        Returns:
            `Predictions` of B rows.

        Raises:
            BranchyError: images or thresholds do not fit what is served, or the
                client is closed.
            ServerError: no server, a refusal, no answer in time, or one that is
                none.
        """
        return finish(self._hold(self._conversation.predict(images, thresholds, timeout)))

    def all_exits(self, images: Any, timeout: float | None = None) -> AllExits:
        """Asks for what every exit says of each row.

        Args:
            images: as for `predict`.
            timeout: seconds; default: the client's.

        Returns:
            `AllExits` of B rows.

        Raises:
            BranchyError, ServerError: as for `predict`.
        """
        return finish(self._hold(self._conversation.all_exits(images, timeout)))

    def describe(
        self, timeout: float | None = None
    ) -> tuple[dict[str, checks.TensorSpec], int]:
        """Asks what the served model takes.

        Returns:
            `({input: checks.TensorSpec}, number of exits)`.

        Raises:
            BranchyError: the model is no early-exit export.
            ServerError: as for `predict`.
        """
        return finish(self._hold(self._conversation.describe(timeout)))

    def wait_until_ready(self, timeout: float = 60.0) -> int:
        """Waits until the server has the model loaded, and its label if one is asked.

        Returns:
            The newest version that is ready, or the label's.

        Raises:
            ServerError: it is not, after `timeout` seconds.
        """
        return finish(self._hold(self._conversation.wait_until_ready(timeout)))

    async def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def _send(self, step: Send) -> list[bytes]:
        pid = os.getpid()
        if pid not in self._channels:
            self._channels.setdefault(pid, self._route.open(grpc))
        ask = self._channels[pid].unary_unary(step.method)
        if len(step.requests) == 1:
            return [ask(step.requests[0](), timeout=step.left())]
        replies: list[bytes] = []
        under_way: collections.deque[Any] = collections.deque()
        try:
            for request in step.requests:
                if len(under_way) == IN_FLIGHT:
                    replies.append(under_way.popleft().result())
                under_way.append(ask.future(request(), timeout=step.left()))
            while under_way:
                replies.append(under_way.popleft().result())
        finally:
            for call in under_way:
                call.cancel()
        return replies

"""The blocking gRPC client of TF Serving and of the embedded server.

Imports numpy, grpc and protobuf, not TensorFlow.
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
from branchy_tf.serving.messages import Signature


class EarlyExitClient(Driver):
    """Queries one model on one server; thread-safe.

    Args:
        server: "host:port" of its gRPC endpoint, "[::1]:8500" for IPv6. A server on this
            machine is contacted directly, others through the proxy that the environment
            sets (http_proxy, no_proxy), as gRPC does.
        model: name of the model.
        version: number of the version; default: the newest.
        timeout: seconds for a whole call, all of its parts together.
        label: label of a version, e.g. "stable", instead of its number.
        tls: a `Tls`, or `grpc.ChannelCredentials`; default: no TLS.
        max_rows: the most rows in one request. Larger batches are split, sent a few
            parts at a time, and answered by one version. Default: 1,000 rows, or as many
            as fit 2 MiB. For a batching server pass its `max_batch_size`.
        metrics: counts calls, exits and scores; clients may share it.
        inputs: what the model was trained on: the path of its branchy.json, exported
            version or thresholds.json, or its policy. Rows of another scale are then
            refused before they are sent, and doubtful ones warned of once;
            `checks.ranges` has the rule. Default: unknown, as a server does not say it.

    Raises:
        BranchyError: invalid arguments or TLS files.

    Example:

    ```python
    with EarlyExitClient("localhost:8500", model="branchy_lenet") as client:
        answer = client.predict(images)                   # calibrated thresholds
        answer = client.predict(images, thresholds=[0.1])
        answer.labels, answer.exits, answer.model_version
    ```
    """

    def _prepare(self) -> None:
        # A forked process opens its own channel and does not touch its parent's.
        self._channels = {os.getpid(): self._route.open(grpc)}

    def __enter__(self) -> EarlyExitClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; pending calls fail."""
        self._closed = True
        channel = self._channels.get(os.getpid())
        if channel is not None:
            channel.close()

    def predict(
        self, images: Any, thresholds: Any = None, timeout: float | None = None
    ) -> Predictions:
        """Classifies rows, each at the first exit that is sure enough.

        Args:
            images: [B, ...], B > 0, with the model's input shape and dtype (zoo models:
                raw pixels, uint8); for several inputs a dict.
            thresholds: N-1 numbers or [B, N-1]; default: the calibrated thresholds of
                the export.
            timeout: seconds; default: the client's.

        Returns:
            `Predictions` of B rows.

        Raises:
            BranchyError: images or thresholds do not fit the served model, or the
                client is closed.
            ServerError: the server is unreachable, refuses, is too slow, or gives an
                unexpected response.
        """
        return finish(self._hold(self._conversation.predict(images, thresholds, timeout)))

    def all_exits(self, images: Any, timeout: float | None = None) -> AllExits:
        """The answers of every exit.

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
        """The inputs and the number of exits of the served model.

        Returns:
            `({input: checks.TensorSpec}, number of exits)`.

        Raises:
            BranchyError: the model is not an early-exit export.
            ServerError: as for `predict`.
        """
        return finish(self._hold(self._conversation.describe(timeout)))

    def signature(self, timeout: float | None = None) -> Signature:
        """All that the server tells about the served version.

        Returns:
            A `Signature`, with the default thresholds and, of a cascade, the unit of each
            exit, where the server tells them.

        Raises:
            BranchyError, ServerError: as for `describe`.
        """
        return finish(self._hold(self._conversation.signature(timeout)))

    def wait_until_ready(self, timeout: float = 60.0) -> int:
        """Waits until the model, or the version with the label, is available.

        Returns:
            The newest available version, or the one with the label.

        Raises:
            ServerError: it is not available after `timeout` seconds.
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

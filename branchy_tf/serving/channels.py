"""How clients connect, and what gRPC says when that fails."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from branchy_tf.errors import BranchyError
from branchy_tf.serving import wire
from branchy_tf.serving.messages import Target
from branchy_tf.serving.tls import Tls

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                # Only what certainly did not reach a model is tried again.
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # A server that refuses most requests is not asked four times as often.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # gRPC keeps no request above 256 KB to send it again.
    ("grpc.per_rpc_retry_buffer_size", wire.MOST_BYTES),
    # gRPC alone would refuse answers over 4 MB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is noticed within a second, at a new address too.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A machine that vanished is given up after 5 seconds, not TCP's quarter of an
    # hour: gRPC sets TCP_USER_TIMEOUT so where it may ping. It may every 5 minutes;
    # servers hang up on who pings more often.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Nothing is shared with other clients, nor with those of a process that forked.
    ("grpc.use_local_subchannel_pool", 1),
]


def opener(library: Any, server: str, tls: Tls | None) -> Callable[[], Any]:
    """Gives what opens a channel; that connects when it is first used.

    Args:
        library: `grpc` or `grpc.aio`.
        server: host:port.
        tls: default: none. Its files are read here and now.

    Raises:
        BranchyError: files of `tls` do not do.
    """
    if tls is None:
        return lambda: library.insecure_channel(server, options=_OPTIONS)
    credentials, options = tls.credentials(), list(_OPTIONS)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return lambda: library.secure_channel(server, credentials, options=options)


@contextlib.contextmanager
def explaining(target: Target, is_closed: Callable[[], bool]) -> Iterator[None]:
    """Puts a `ServerError` in the place of gRPC's exceptions.

    Args:
        target: who is asked.
        is_closed: whether the client is closed, which may happen meanwhile.

    Raises:
        BranchyError: it was closed before.
    """
    if is_closed():
        raise BranchyError("The client is closed; make another one to ask again.")
    try:
        yield
        return
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
    except (grpc.FutureCancelledError, grpc.aio.UsageError, ValueError):
        # The ways to say that a channel was closed.
        if not is_closed():
            raise
        code, details = "CANCELLED", ""
    if is_closed():
        details = "The client was closed before the answer came."
    raise target.explain(code, details)

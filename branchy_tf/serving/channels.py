"""Channels to servers, and explanations of gRPC's errors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from branchy_tf import checks
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import addresses, wire
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
                # Retries only requests that certainly did not reach a model.
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Spares a server that refuses most requests four times the load.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # By default gRPC does not retry requests above 256 KB.
    ("grpc.per_rpc_retry_buffer_size", wire.MOST_BYTES),
    # By default gRPC refuses responses over 4 MB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Notices within a second that a server is back, at a new address too.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Gives up a machine that vanished after 5 seconds, not TCP's quarter of an hour:
    # with pings on, gRPC sets TCP_USER_TIMEOUT to the ping timeout. Servers hang up on
    # clients that ping more often than every 5 minutes.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Shares no connection with other clients or a forked process.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclasses.dataclass(frozen=True)
class Route:
    """How to reach a server.

    Attributes:
        server: host:port, or another of gRPC's names.
        credentials: for TLS; None: no TLS.
        server_name: the name in the server's certificate; None: its host.
        proxy: the proxy, see `addresses.proxy_for`; None: a direct connection.
    """

    server: str
    credentials: grpc.ChannelCredentials | None = None
    server_name: str | None = None
    proxy: str | None = None

    @classmethod
    def to(cls, server: str, tls: Tls | grpc.ChannelCredentials | None) -> Route:
        """The route to a server; reads the files of `tls`.

        Raises:
            BranchyError: `tls` has another type, or its files are invalid.
        """
        proxy = addresses.proxy_for(server)
        if isinstance(tls, Tls):
            return cls(server, tls.credentials(), tls.server_name, proxy)
        if tls is None or isinstance(tls, grpc.ChannelCredentials):
            return cls(server, tls, None, proxy)
        raise BranchyError(
            "`tls` must be a Tls, such as Tls(ca='ca.pem'), or grpc.ChannelCredentials. "
            f"Received {checks.shown(tls)}."
        )

    def open(self, library: Any, retries: bool = True) -> Any:
        """A channel, which connects on first use.

        Args:
            library: `grpc` or `grpc.aio`.
            retries: whether it retries requests that did not reach a model; a caller
                with several servers asks the next one instead.
        """
        options = list(_OPTIONS)
        if not retries:
            # Overrides the option above.
            options.append(("grpc.enable_retries", 0))
        if self.proxy is None:
            # By default gRPC uses a proxy even for servers on this machine.
            options.append(("grpc.enable_http_proxy", 0))
        if self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        if self.credentials is None:
            return library.insecure_channel(self.server, options=options)
        return library.secure_channel(self.server, self.credentials, options=options)


@contextlib.contextmanager
def explaining(
    target: Target, route: Route, is_closed: Callable[[], bool]
) -> Iterator[None]:
    """Replaces gRPC's exceptions with a `ServerError`.

    Args:
        target: the model that is queried.
        route: to its server.
        is_closed: whether the client is closed, which may happen meanwhile.

    Raises:
        BranchyError: the client was already closed.
    """
    if is_closed():
        raise BranchyError("The client is closed; create another one.")
    try:
        yield
        return
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
    except (grpc.FutureCancelledError, grpc.aio.UsageError, ValueError):
        # gRPC's exceptions for a closed channel.
        if not is_closed():
            raise
        code, details = "CANCELLED", ""
    if is_closed():
        details = "The client was closed before the answer came."
    raise explain(target, route, code, details)


def explain(target: Target, route: Route, code: str, details: str) -> ServerError:
    """The error for a gRPC status, with what to do about it."""
    details = " ".join(details.split())
    hint: str | None
    if code == "UNAVAILABLE" or (code == "UNIMPLEMENTED" and "http2 header" in details):
        hint = _unreached(route, details)
        code = "UNAVAILABLE"
    else:
        hint = {
            "DEADLINE_EXCEEDED": f"{route.server} did not answer in time"
            f"{_through(route)}; pass a longer timeout or send fewer rows.",
            "NOT_FOUND": f"{route.server} does not serve {target}; correct the "
            "name, or wait until it is loaded.",
            "RESOURCE_EXHAUSTED": f"{route.server} has no room for the request; send "
            "fewer rows at a time, or retry later.",
        }.get(code)
    if hint is None:
        return ServerError(code, details)
    return ServerError(code, hint + (f" ({details})" if details else ""))


def _unreached(route: Route, details: str) -> str:
    """What to do when no server was reached, from gRPC's details."""
    server, proxied = route.server, _through(route)
    # With a proxy gRPC connects only to the proxy, so an error before the server's
    # protocol begins is the proxy's.
    if route.proxy is not None and not re.search(_PROTOCOL, details, re.IGNORECASE):
        return (
            f"The proxy {route.proxy} does not lead to {server}; add its host to "
            "no_proxy to connect directly, or fix the proxy."
        )
    if re.search("socket closed|connection reset|broken pipe", details, re.IGNORECASE):
        if route.credentials is None:
            return (
                f"{server} hangs up{proxied}; pass `tls` if it uses TLS, correct the "
                "port if it is not gRPC's, or retry if the server was restarting."
            )
        return (
            f"{server} hangs up{proxied} during the TLS handshake; correct the port, or "
            "`tls`: it may require a client certificate, or not use TLS."
        )
    for pattern, hint in _HINTS:
        if re.search(pattern, details, re.IGNORECASE):
            return hint.format(server=server, proxied=proxied)
    port = ""
    if addresses.has_no_port(server):
        port = f" Without a port gRPC asks port 443: write {server}:8500."
    # A name may have several addresses, such as localhost in IPv4 and IPv6, and gRPC
    # reports only one of them.
    tls = "pass `tls` if it uses TLS"
    if route.credentials is not None:
        tls = "correct `tls`, or omit it if the server does not use TLS"
    return (
        f"No server answers at {server}{proxied}; start one (python -m "
        f"branchy_tf.serve), correct host:port (gRPC, not REST), or {tls}.{port}"
    )


_PROTOCOL = "ssl|tls|handshake|HTTP/2|http1|http2"
# (pattern in gRPC's details, what to do), the most specific first.
_HINTS = [
    (
        "WRONG_VERSION_NUMBER|HTTP_REQUEST",
        "{server} does not speak TLS{proxied}; omit `tls`, or correct the port.",
    ),
    (
        "ssl|tls|handshake|verification|certificate",
        "{server} and this client do not agree on TLS{proxied}; correct Tls(ca=..., "
        "certificate=..., key=..., server_name=...).",
    ),
    (
        "HTTP/2|http1|http2 header",
        "{server} answers{proxied}, but is not a gRPC server; pass gRPC's port (--port, "
        "such as 8500), not the REST port (--rest_api_port, such as 8501).",
    ),
    (
        "resolving|lookup|domain name|resolution",
        "The name in {server} does not resolve{proxied}; correct the host in host:port.",
    ),
    (
        "timed? ?out|no route|unreachable",
        "{server} cannot be reached{proxied}; correct host:port, or open the network and "
        "its firewalls.",
    ),
]


def _through(route: Route) -> str:
    return "" if route.proxy is None else f" through the proxy {route.proxy}"

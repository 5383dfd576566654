"""How clients connect, and what gRPC says when that fails."""

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


@dataclasses.dataclass(frozen=True)
class Route:
    """How a server is reached.

    Attributes:
        server: host:port, or another of gRPC's names.
        credentials: of TLS; None: without.
        server_name: the name in the server's certificate; None: its host.
        proxy: the proxy on the way, as `addresses.proxy_for` names it; None: none.
    """

    server: str
    credentials: grpc.ChannelCredentials | None = None
    server_name: str | None = None
    proxy: str | None = None

    @classmethod
    def to(cls, server: str, tls: Tls | grpc.ChannelCredentials | None) -> Route:
        """The route to a server. Files of `tls` are read here and now.

        Raises:
            BranchyError: `tls` is neither of the two, or its files are invalid.
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

    def open(self, library: Any) -> Any:
        """A channel, which connects when it is first used.

        Args:
            library: `grpc` or `grpc.aio`.
        """
        options = list(_OPTIONS)
        if self.proxy is None:
            # By itself gRPC would ask a proxy for a server on this very machine.
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
        target: who is asked.
        route: how.
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
    raise explain(target, route, code, details)


def explain(target: Target, route: Route, code: str, details: str) -> ServerError:
    """The error for a gRPC status: what is wrong, and what to do about it."""
    details = " ".join(details.split())
    hint: str | None
    if code == "UNAVAILABLE" or (code == "UNIMPLEMENTED" and "http2 header" in details):
        hint = _unreached(route, details)
        code = "UNAVAILABLE"
    else:
        hint = {
            "DEADLINE_EXCEEDED": f"{route.server} did not answer in time"
            f"{_through(route)}; pass a longer timeout or send fewer rows.",
            "NOT_FOUND": f"{route.server} does not serve {target}; mend the name, or "
            "wait until it is loaded.",
            "RESOURCE_EXHAUSTED": f"{route.server} has no room for the request; send "
            "fewer rows at a time, or later.",
        }.get(code)
    if hint is None:
        return ServerError(code, details)
    return ServerError(code, hint + (f" ({details})" if details else ""))


def _unreached(route: Route, details: str) -> str:
    """What to do where no server was reached, as far as gRPC's details tell."""
    server, proxied = route.server, _through(route)
    # gRPC connects to the proxy and to nothing else: what fails before the server's own
    # protocol begins is the proxy's.
    if route.proxy is not None and not re.search(_PROTOCOL, details, re.IGNORECASE):
        return (
            f"The proxy {route.proxy} does not lead to {server}; add its host to "
            "no_proxy to ask it directly, or mend the proxy."
        )
    if re.search("socket closed|connection reset|broken pipe", details, re.IGNORECASE):
        if route.credentials is None:
            return (
                f"{server} hangs up{proxied}; pass `tls` if it wants TLS, mend the port "
                "if that is not gRPC's, or ask again if it was only restarted."
            )
        return (
            f"{server} hangs up{proxied} instead of agreeing on TLS; mend the port, or "
            "`tls`: it may want a client's certificate, or no TLS."
        )
    for pattern, hint in _HINTS:
        if re.search(pattern, details, re.IGNORECASE):
            return hint.format(server=server, proxied=proxied)
    port = ""
    if addresses.has_no_port(server):
        port = f" Without a port gRPC asks port 443: write {server}:8500."
    # A name has several addresses, such as localhost in IPv4 and IPv6, and gRPC tells
    # of one of them: another may have answered, but not as it should.
    tls = "pass `tls` if it wants TLS"
    if route.credentials is not None:
        tls = "mend `tls`, or leave it out if the server has none"
    return (
        f"No server answers at {server}{proxied}; start one (python -m "
        f"branchy_tf.serve), mend host:port (of gRPC, not REST), or {tls}.{port}"
    )


_PROTOCOL = "ssl|tls|handshake|HTTP/2|http1|http2"
# (what gRPC's details say, what to do), the most telling first.
_HINTS = [
    (
        "WRONG_VERSION_NUMBER|HTTP_REQUEST",
        "{server} does not speak TLS{proxied}; leave `tls` out, or mend the port.",
    ),
    (
        "ssl|tls|handshake|verification|certificate",
        "{server} and this client do not agree on TLS{proxied}; mend Tls(ca=..., "
        "certificate=..., key=..., server_name=...).",
    ),
    (
        "HTTP/2|http1|http2 header",
        "{server} answers{proxied}, but not as a gRPC server; pass gRPC's port (--port, "
        "such as 8500), not that of REST and metrics (--rest_api_port, such as 8501).",
    ),
    (
        "resolving|lookup|domain name|resolution",
        "The name in {server} does not resolve{proxied}; mend the host in host:port.",
    ),
    (
        "timed? ?out|no route|unreachable",
        "{server} cannot be reached{proxied}; mend host:port, or let the network and its "
        "firewalls pass it.",
    ),
]


def _through(route: Route) -> str:
    return "" if route.proxy is None else f" through the proxy {route.proxy}"

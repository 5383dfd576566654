"""Addresses of servers: checks for what gRPC misreads, and the proxy in use."""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from typing import Any

from branchy_tf import checks
from branchy_tf.errors import BranchyError

# gRPC's naming schemes; anything else is host:port.
_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):")
# The variables that gRPC reads, in its order. It ignores upper case.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_WITHOUT = ("no_grpc_proxy", "no_proxy")


def check_server(server: Any) -> str:
    """The address of a server as gRPC takes it.

    Args:
        server: host:port, [IPv6]:port, or one of gRPC's names, such as unix:PATH.

    Raises:
        BranchyError: not a string, or an address that gRPC would misread.
    """
    checks.text("server", server)
    if _SCHEME.match(server):
        return server
    if "://" in server:
        rest = urllib.parse.urlsplit(server).netloc.rpartition("@")[2] or "host:8500"
        tls = ", and pass `tls`" if server.startswith("https") else ""
        raise BranchyError(
            f"`server` is host:port, not a URL: write {rest}{tls}. Received {server!r}."
        )
    host, port = split(server)
    if ":" in host and "[" not in server:
        raise BranchyError(
            f"An IPv6 address needs brackets before its port, such as [{_v6(host)}]"
            f":8500. Received `server` {server!r}."
        )
    if (
        not host
        or re.search(r"[\s/?#@]", server)
        or (port is not None and not (port.isdecimal() and 0 < int(port) < 65536))
    ):
        raise BranchyError(
            "`server` must be host:port, with a port from 1 to 65535, such as "
            f"localhost:8500. Received {server!r}."
        )
    return server


def split(server: str) -> tuple[str, str | None]:
    """`(host, port)` of host:port; the port is None if there is none.

    An IPv6 address without brackets is all host.
    """
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        # Text after the bracket without a colon is not a port.
        return host, (rest[1:] if rest.startswith(":") else "") if rest else None
    if server.count(":") > 1:
        return server, None
    host, colon, port = server.partition(":")
    return host, port if colon else None


def has_no_port(server: str) -> bool:
    """Whether the port is missing; gRPC then uses 443."""
    return not _SCHEME.match(server) and split(server)[1] is None


def _v6(host: str) -> str:
    """The address without its port: "::1:8500" means ::1."""
    address, _, port = host.rpartition(":")
    return address if len(port) == 4 and port.isdecimal() and _ip(address) else host


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_local(server: str) -> bool:
    """Whether a server is on this machine."""
    scheme = _SCHEME.match(server)
    if scheme:
        if scheme[1].startswith("unix"):
            return True
        # dns:///host:port and dns://resolver/host:port, ipv4:host:port.
        server = server[scheme.end() :].rpartition("/")[2]
    host = split(server)[0].lower()
    address = _ip(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def proxy_for(server: str) -> str | None:
    """The proxy that gRPC uses for a server.

    Returns:
        `variable=URL` of the environment, without a password; None for a direct
        connection: to local servers and to those in no_proxy.
    """
    variable = next((name for name in _PROXIES if os.environ.get(name)), None)
    if variable is None or is_local(server) or _is_excepted(server):
        return None
    url = urllib.parse.urlsplit(os.environ[variable])
    if url.scheme != "http":
        return None  # gRPC supports no others and connects directly
    return f"{variable}={url.scheme}://{url.netloc.rpartition('@')[2]}"


def _is_excepted(server: str) -> bool:
    scheme = _SCHEME.match(server)
    if scheme:
        server = server[scheme.end() :].rpartition("/")[2]
    host = split(server)[0].lower()
    address = _ip(host)
    for variable in _WITHOUT:
        if os.environ.get(variable):
            entries = os.environ[variable].lower().split(",")
            return any(_matches(host, address, entry.strip()) for entry in entries)
    return False


def _matches(host: str, address: Any, entry: str) -> bool:
    if not entry:
        return False
    if entry == "*" or host.endswith(entry):
        return True
    try:
        return address is not None and address in ipaddress.ip_network(entry, False)
    except ValueError:
        return False


def join(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_host(host: Any) -> str:
    """An address to listen on, without IPv6 brackets.

    Raises:
        BranchyError: not an address, or an address with a port.
    """
    checks.text("host", host)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    address, _, zone = bare.partition("%")
    if (":" in bare and (_ip(address) is None or ":" in zone)) or re.search(
        r"[\s/\[\]]", bare
    ):
        raise BranchyError(
            "`host` is an address to listen on, without a port, such as 127.0.0.1, "
            f"0.0.0.0, ::1 or ::. Received {host!r}."
        )
    return bare

"""Processes that train together: they start together, and one that ends, ends them all.

JAX connects the processes, but it aborts them with a stack trace when one does not come
or is killed. So they first call the roll, at the address that JAX then uses, and keep
these connections: the system closes them when a process ends, however it ends.

Messages are lines of JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from branchy_tf.errors import BranchyError, first_line

_AGAIN = (
    "Start all processes again with the same flags: the training resumes from its last "
    "backup."
)


class Peer:
    """The connection to another process.

    Args:
        connection: the socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        # Notices a machine that is cut off, within a minute.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3),
        ):  # fmt: skip
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = connection
        self._file = connection.makefile("r", encoding="utf-8", newline="\n")

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message, unless the other process has gone."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next message; None if the other process has gone or sends none in time."""
        self._socket.settimeout(seconds)
        with contextlib.suppress(OSError, ValueError):
            message = json.loads(self._file.readline())
            return message if isinstance(message, dict) else None
        return None

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()


@dataclasses.dataclass
class Group:
    """All processes of a training, as one of them sees them.

    Attributes:
        processes: their number.
        process: the number of this one.
        peers: all others by number for process 0, and process 0 for the others.
        lost: called with a message when another process has ended.
    """

    processes: int
    process: int
    peers: dict[int, Peer]
    lost: Callable[[str], None]
    _leaving: bool = False

    def watch(self) -> None:
        """Waits in threads for the end of other processes."""
        for number in self.peers:
            threading.Thread(target=self._watch, args=(number,), daemon=True).start()

    def _watch(self, number: int) -> None:
        message = self.peers[number].receive()
        if self._leaving or (message or {}).get("done"):
            return
        reason = f"Process {number} has ended, so process {self.process} ends too."
        if message is not None:
            reason = str(message.get("failed", reason))
        if self.process == 0:
            self._tell({"failed": reason})
        self.lost(reason if _AGAIN in reason else f"{reason} {_AGAIN}")

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self.peers.values():
            peer.send(message)

    def fail(self, error: BaseException) -> None:
        """Ends the others; call it before this process ends with an error."""
        self._leaving = True
        reason = f"failed: {first_line(error)}"
        if not isinstance(error, Exception):
            reason = "was stopped."
        self._tell({"failed": f"Process {self.process} {reason}"})
        # Runs before JAX's own, which would wait for the others and then abort.
        atexit.register(_leave, getattr(error, "code", 1) or 1)

    @contextlib.contextmanager
    def together(self, wait: Callable[[], Any]) -> Iterator[None]:
        """Ends the others if this process fails, and leaves together with them.

        Args:
            wait: waits for all processes.
        """
        try:
            yield
            wait()
        except BaseException as error:
            self.fail(error)
            raise
        self._leaving = True
        self._tell({"done": True})
        import jax

        jax.distributed.shutdown()


def join(
    coordinator: str,
    processes: int,
    process: int,
    seconds: float = 300,
    settings: str = "",
    lost: Callable[[str], None] | None = None,
) -> Group:
    """Waits for all processes and connects them with JAX.

    Args:
        coordinator: host:port of process 0.
        processes: their number.
        process: the number of this one.
        seconds: how long to wait for them.
        settings: lines that must be the same everywhere.
        lost: see `distributing.distribute`.

    Raises:
        BranchyError: a process did not come, the settings differ, or process 0 cannot
            listen at the address.
    """
    call = _answer if process else _call
    peers = call(coordinator, processes, process, seconds, settings)
    group = Group(processes, process, peers, lost or _end)
    group.watch()
    import jax

    jax.distributed.initialize(coordinator, processes, process)
    return group


def _leave(status: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else 1)


def _end(message: str) -> None:
    logging.error("%s", message)
    logging.flush()
    os._exit(1)


def _call(
    coordinator: str, processes: int, process: int, seconds: float, settings: str
) -> dict[int, Peer]:
    """Process 0 waits for the others."""
    deadline = time.monotonic() + seconds
    port = int(coordinator.rpartition(":")[2])
    try:
        listener = _listener(port, processes)
    except OSError as error:
        raise BranchyError(
            f"Process 0 cannot listen at port {port} of --coordinator={coordinator}: "
            f"{error.strerror}. Choose a free port."
        ) from None
    peers: dict[int, Peer] = {}
    with listener:
        while len(peers) < processes - 1:
            try:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                peer = Peer(listener.accept()[0])
            except TimeoutError:
                raise _absent(peers, processes, seconds) from None
            wrong = _enrol(peer, peers, processes, settings)
            if wrong is not None:
                for other in (peer, *peers.values()):
                    other.send({"failed": wrong})
                raise BranchyError(wrong)
    for peer in peers.values():
        peer.send({"go": True})
    return peers


def _listener(port: int, backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=backlog)


def _absent(peers: dict[int, Peer], processes: int, seconds: float) -> BranchyError:
    absent = [str(k) for k in range(1, processes) if k not in peers]
    reason = (
        f"{len(absent)} of {processes} processes did not come within {seconds:g} seconds "
        f"(--process_id={','.join(absent)}). Start all of them with the same "
        "--coordinator and --num_processes."
    )
    for peer in peers.values():
        peer.send({"failed": reason})
    return BranchyError(reason)


def _enrol(
    peer: Peer, peers: dict[int, Peer], processes: int, settings: str
) -> str | None:
    """Takes a process into `peers`; returns why it cannot be, if so."""
    message = peer.receive(10)
    if message is None or not isinstance(message.get("process"), int):
        peer.close()  # a port scanner, or the probe of a service
        return None
    number = message["process"]
    if message.get("processes") != processes:
        return (
            f"Process {number} was started with --num_processes="
            f"{message.get('processes')} and process 0 with {processes}. Pass the same."
        )
    if number in peers:
        return f"Two processes were started with --process_id={number}. Number them."
    ours, theirs = set(settings.splitlines()), message.get("settings", "").splitlines()
    if ours ^ set(theirs):
        return (
            f"Process {number} has the settings {_some(set(theirs) - ours)} and process "
            f"0 {_some(ours - set(theirs))}. Start all with the same."
        )
    peers[number] = peer
    return None


def _some(lines: set[str]) -> str:
    return " ".join(sorted(lines)) or "(unset)"


def _answer(
    coordinator: str, processes: int, process: int, seconds: float, settings: str
) -> dict[int, Peer]:
    """The others connect to process 0."""
    deadline = time.monotonic() + seconds
    host, _, port = coordinator.rpartition(":")
    hello = {"process": process, "processes": processes, "settings": settings}
    reason = ""
    while time.monotonic() < deadline:
        left = max(0.01, deadline - time.monotonic())
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), left)
        except OSError as error:
            # It may not have started yet, nor its name be known.
            reason = error.strerror or str(error)
            time.sleep(min(0.2, left))
            continue
        peer = Peer(connection)
        peer.send(hello)
        message = peer.receive(max(0.01, deadline - time.monotonic()) + 10)
        if message is not None and message.get("go"):
            return {0: peer}
        if message is not None and "failed" in message:
            raise BranchyError(str(message["failed"]))
        peer.close()
        reason = "it closed the connection"
        time.sleep(0.2)
    raise BranchyError(
        f"Process {process} did not reach process 0 at --coordinator={coordinator} "
        f"within {seconds:g} seconds: {reason}. Check that process 0 runs there and that "
        "no firewall closes the port."
    )

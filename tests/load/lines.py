"""Lines that take time and carry only so much a second, in user space.

Exact command, which `hosts` runs:

  python tests/load/lines.py NAME_1 PID_1 NAME_2 PID_2

It moves two tunnel devices into the network namespaces of two processes and carries
packets between them. On its input it reads "SECONDS BYTES_PER_SECOND" whenever they are
to change.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_PACKETS = 0x0001 | 0x1000  # IFF_TUN, IFF_NO_PI
_PIECE = 65_536


class Line:
    """Carries pieces both ways, each late and at a limited rate.

    Args:
        seconds: that a byte takes, one way.
        bytes_per_second: each way.
    """

    def __init__(self, seconds: float, bytes_per_second: float) -> None:
        self.seconds = seconds
        self.bytes_per_second = bytes_per_second

    def carry(
        self, receive: Callable[[], bytes], send: Callable[[bytes], object]
    ) -> None:
        """Carries what one end receives to the other, until that is empty.

        Args:
            receive: waits for a piece.
            send: receives the pieces and the empty one at the end.
        """
        pending: queue.Queue = queue.Queue()
        for job, end in ((self._receive, receive), (self._send, send)):
            threading.Thread(target=job, args=(end, pending), daemon=True).start()

    def _receive(self, receive: Callable[[], bytes], pending: queue.Queue) -> None:
        with contextlib.suppress(OSError):
            while content := receive():
                pending.put((time.monotonic(), content))
        pending.put((time.monotonic(), b""))

    def _send(self, send: Callable[[bytes], object], pending: queue.Queue) -> None:
        free = 0.0
        with contextlib.suppress(OSError):
            while True:
                came, content = pending.get()
                # A piece leaves when those before it have, and then travels.
                free = max(free, came) + len(content) / self.bytes_per_second
                time.sleep(max(free + self.seconds - time.monotonic(), 0))
                send(content)
                if not content:
                    return


class Proxy(Line):
    """A line to a server, which forwards connections.

    It needs no rights. It delays bytes, not packets: there is no loss and no congestion,
    a connection opens at once, and each has the whole rate.

    Args:
        server: host:port.
        seconds: that a byte takes, one way.
        bytes_per_second: of each connection, each way.

    Attributes:
        address: host:port to call.
    """

    def __init__(self, server: str, seconds: float, bytes_per_second: float) -> None:
        super().__init__(seconds, bytes_per_second)
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for one in [self._listener, *self._sockets]:
            # A thread may be reading from it: wake it.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
                onward = socket.create_connection(self._server)
            except OSError:
                return
            for one in (caller, onward):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(one)
            for source, target in ((caller, onward), (onward, caller)):
                self.carry(_receiving(source), _sending(target))


def _receiving(source: socket.socket) -> Callable[[], bytes]:
    return lambda: source.recv(4096)


def _sending(target: socket.socket) -> Callable[[bytes], None]:
    def send(content: bytes) -> None:
        if content:
            target.sendall(content)
        else:
            target.shutdown(socket.SHUT_WR)

    return send


def _tunnel(name: str, process: str) -> int:
    """A tunnel device in the network namespace of a process; its file descriptor."""
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _PACKETS))
    # It stays open from here, wherever it is.
    command = ["ip", "link", "set", "dev", name, "netns", process]
    subprocess.run(command, check=True)
    return file


def _writing(tunnel: int) -> Callable[[bytes], None]:
    def send(packet: bytes) -> None:
        # Until the device is up, packets are lost.
        with contextlib.suppress(OSError):
            os.write(tunnel, packet)

    return send


def main() -> None:
    ends = [_tunnel(*sys.argv[i : i + 2]) for i in (1, 3)]
    line = Line(0.0, float("inf"))
    for source, target in (ends, ends[::-1]):
        line.carry(functools.partial(os.read, source, _PIECE), _writing(target))
    print("carrying", flush=True)
    for text in sys.stdin:
        line.seconds, line.bytes_per_second = map(float, text.split())
        print("changed", flush=True)


if __name__ == "__main__":
    main()

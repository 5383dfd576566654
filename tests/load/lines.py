"""A line to a server that takes time and carries only so much a second."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time


class Line:
    """Forwards connections to a server, each way late and at a limited rate.

    Unlike `tc netem`, it needs no rights and no kernel module. It delays bytes, not
    packets: there is no loss and no congestion, and a connection opens at once.

    Args:
        server: host:port.
        seconds: that a byte takes, one way.
        bytes_per_second: of each connection, each way.

    Attributes:
        address: host:port to call.
    """

    def __init__(self, server: str, seconds: float, bytes_per_second: float) -> None:
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._seconds = seconds
        self._rate = bytes_per_second
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Line:
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
                pending: queue.Queue = queue.Queue()
                for job, end in ((self._receive, source), (self._send, target)):
                    thread = threading.Thread(
                        target=job, args=(end, pending), daemon=True
                    )
                    thread.start()

    def _receive(self, source: socket.socket, pending: queue.Queue) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(4096):
                pending.put((time.monotonic(), content))
        pending.put((time.monotonic(), b""))

    def _send(self, target: socket.socket, pending: queue.Queue) -> None:
        free = 0.0
        with contextlib.suppress(OSError):
            while True:
                came, content = pending.get()
                # A piece leaves when those before it have, and then travels.
                free = max(free, came) + len(content) / self._rate
                time.sleep(max(free + self._seconds - time.monotonic(), 0))
                if not content:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(content)

"""A slow connection to a server."""

from __future__ import annotations

import contextlib
import socket
import threading


class SlowLine:
    """Forwards bytes between callers and a server, in one direction only a few at a time.

    Args:
        server: host:port.
        slow: "requests" or "answers", the way that is slow.
        bytes_per_second: of each connection, on that way.

    Attributes:
        address: host:port to call.
    """

    def __init__(self, server: str, slow: str, bytes_per_second: int) -> None:
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._slow = slow
        self._piece = max(bytes_per_second // 10, 1)
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Small enough to block a server that waits for its reader.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> SlowLine:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._over.set()
        for one in [self._listener, *self._sockets]:
            # A thread may be reading from it: wake it.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                caller, _ = self._listener.accept()
                onward = socket.socket()
                onward.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                onward.connect(self._server)
            except OSError:
                return
            self._sockets += [caller, onward]
            for way in (
                (caller, onward, self._slow == "requests"),
                (onward, caller, self._slow == "answers"),
            ):
                threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(self._piece if slow else 65536):
                target.sendall(content)
                if slow and self._over.wait(0.1):
                    return
            target.shutdown(socket.SHUT_WR)

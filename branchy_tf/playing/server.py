"""The server of the page: one process, stateless requests, standard library alone.

Every request brings its image and thresholds, so several people can use one page.
"""

from __future__ import annotations

import http
import http.server
import ipaddress
import json
import math
import socket
import socketserver
import sys
import time
import urllib.parse
from typing import Any

import numpy as np
from absl import logging

from branchy_tf import files, images
from branchy_tf.data import Split
from branchy_tf.errors import BranchyError, ServerError, first_line
from branchy_tf.playing import page, pictures
from branchy_tf.playing.subjects import Answer, Subject

# The largest file that the page sends.
MOST_BYTES = 64 * 2**20
# Samples on one page of the list.
SAMPLES = 24
# Classes shown at each exit.
_MOST_CLASSES = 5
# Rows that tell whether images are dark on light.
_LOOKED_AT = 100


class PlayServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves the page.

    Args:
        subject: the model to ask.
        samples: images to choose from, or None.
        host: the address to listen on; the default can be reached from this machine only.
        port: the port, 0 for a free one.

    Raises:
        BranchyError: the address is not available.

    Example:

    ```python
    with PlayServer(playing.of_model(model, policy), dataset.test) as server:
        print(server.url)
        server.serve_forever()
    ```
    """

    daemon_threads = True
    # A page reloads before the system has forgotten the last server.
    allow_reuse_address = True

    def __init__(
        self,
        subject: Subject,
        samples: Split | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.subject = subject
        self.samples = samples
        height, width, channels = subject.facts.shape
        # A drawing needs a size, and is grey.
        self.draws = channels == 1 and None not in (height, width)
        self.dark_on_light = False
        blank = np.zeros((height or 224, width or 224, channels), np.uint8)
        first = subject.as_input(blank)
        if samples is not None and len(samples):
            looked_at = samples.images[: min(_LOOKED_AT, len(samples))]
            first = looked_at[0]
            self.dark_on_light = pictures.is_dark_on_light(subject.as_pixels(looked_at))
        # Also the first call, which is slow.
        self.classes = subject.ask(first, None).probabilities.shape[-1]
        self.milliseconds = subject.time_exits(first)
        self.page = page.render(self)
        try:
            if ":" in host:
                self.address_family = socket.AF_INET6
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise BranchyError(
                f"Cannot listen on {host}, port {port}: {error.strerror or error}. Pass "
                "another --port, or --port=0 for a free one."
            ) from None
        self.is_local = _is_loopback(self.server_name)

    def server_bind(self) -> None:
        """Binds without asking a name server for this machine's name, which may hang."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs a failure in one line; a page that was closed is none."""
        error = sys.exc_info()[1]
        if error and not isinstance(error, (ConnectionError, TimeoutError)):
            logging.warning("A request failed: %s", first_line(error))

    @property
    def url(self) -> str:
        """The address of the page."""
        host = self.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Refusal(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: http.HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PlayServer
    # Keeps connections open: a stroke sends many requests.
    protocol_version = "HTTP/1.1"
    server_version = "branchy_tf"
    sys_version = ""
    # Seconds; ends connections that say nothing.
    timeout = 60
    # Head and body leave in one packet. Otherwise the body may wait for the head's
    # acknowledgement, 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._respond({"/": self._page, "/samples": self._samples})

    def do_POST(self) -> None:
        self._respond({"/answer": self._answer})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Stays quiet: a page asks often, and answers say what was wrong."""

    def _respond(self, known: dict[str, Any]) -> None:
        self._start = time.perf_counter()
        try:
            self._check_origin()
            target = urllib.parse.urlsplit(self.path)
            if target.path not in known:
                raise _Refusal(http.HTTPStatus.NOT_FOUND, "There is no such page.")
            query = dict(urllib.parse.parse_qsl(target.query))
            known[target.path](query)
        except _Refusal as refusal:
            self._send_error(refusal.status, str(refusal))
        except BranchyError as error:
            self._send_error(http.HTTPStatus.BAD_REQUEST, str(error))
        except ServerError as error:
            self._send_error(http.HTTPStatus.BAD_GATEWAY, str(error))

    def _check_origin(self) -> None:
        """Refuses requests that other sites send through a visitor's browser."""
        forbidden = http.HTTPStatus.FORBIDDEN
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refusal(forbidden, "Requests of other sites are refused.")
        # A foreign name that resolves to this machine would otherwise pass as its site.
        host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.server.is_local and host != "localhost" and not _is_loopback(host):
            raise _Refusal(forbidden, f"This page is not {files.printable(host)!r}.")

    def _page(self, query: dict[str, str]) -> None:
        text, policy = self.server.page
        self._send(
            http.HTTPStatus.OK,
            text.encode("utf-8"),
            "text/html; charset=utf-8",
            {"Content-Security-Policy": policy},
        )

    def _samples(self, query: dict[str, str]) -> None:
        split = self.server.samples
        if split is None:
            raise _Refusal(http.HTTPStatus.NOT_FOUND, "There are no samples.")
        first = _whole_number(query, "first", len(split))
        rows = np.arange(first, min(first + SAMPLES, len(split)))
        shown = self.server.subject.as_pixels(split.images[rows])
        self._send_json(
            {
                "samples": [
                    {"row": row, "label": label, "picture": pictures.data_url(pixels)}
                    for row, label, pixels in zip(
                        rows.tolist(), split.labels[rows].tolist(), shown, strict=True
                    )
                ]
            }
        )

    def _answer(self, query: dict[str, str]) -> None:
        content = self._body()
        thresholds = _thresholds(query)
        image, label, notes = self._image(query, content)
        subject = self.server.subject
        answer = subject.ask(image, thresholds)
        self._send_json(
            _as_json(answer)
            | {
                "label": label,
                "notes": notes,
                "seen": pictures.data_url(subject.as_pixels(image)),
            }
        )

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not _is_count(length):
            self.close_connection = True
            raise _Refusal(
                http.HTTPStatus.LENGTH_REQUIRED, "The request lacks its Content-Length."
            )
        if int(length) > MOST_BYTES:
            # Unread: the connection cannot be used any more.
            self.close_connection = True
            raise _Refusal(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file has {int(length):,} bytes; expected at most {MOST_BYTES:,}.",
            )
        return self.rfile.read(int(length))

    def _image(
        self, query: dict[str, str], content: bytes
    ) -> tuple[np.ndarray, int | None, list[str]]:
        """The image of a request, its label if known, and what was done to it."""
        server, subject = self.server, self.server.subject
        height, width, channels = subject.facts.shape
        if "sample" in query:
            if server.samples is None:
                raise _Refusal(http.HTTPStatus.NOT_FOUND, "There are no samples.")
            row = _whole_number(query, "sample", len(server.samples))
            rows = np.array([row])
            label = int(server.samples.labels[row])
            return server.samples.images[rows][0], label, []
        if query.get("kind") == "drawing":
            if height is None or width is None or channels != 1:
                raise _Refusal(
                    http.HTTPStatus.BAD_REQUEST, "Only grey images can be drawn."
                )
            dark = server.dark_on_light
            drawn = pictures.fit_drawing(content, height, width, dark)
            return subject.as_input(drawn[..., None]), None, []
        pixels, notes = images.decode_bytes(
            content, query.get("name") or "The file", (height, width, channels)
        )
        return subject.as_input(pixels), None, notes

    def _send_json(self, value: dict[str, Any]) -> None:
        text = json.dumps(value, allow_nan=False)
        self._send(http.HTTPStatus.OK, text.encode("utf-8"), "application/json")

    def _send_error(self, status: http.HTTPStatus, text: str) -> None:
        body = json.dumps({"error": text}).encode("utf-8")
        # Whoever was refused before the body was read may still be sending it.
        self.close_connection = True
        self._send(status, body, "application/json", {"Connection": "close"})

    def _send(
        self,
        status: http.HTTPStatus,
        body: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            # How long the request took here; the browser's tools show it.
            "Server-Timing": f"total;dur={1e3 * (time.perf_counter() - self._start):.2f}",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _as_json(answer: Answer) -> dict[str, Any]:
    """The answer, with the most probable classes of each exit."""
    every = []
    for probabilities, score in zip(answer.probabilities, answer.scores, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:_MOST_CLASSES]
        # None are left of a unit that did not answer.
        best = best[~np.isnan(probabilities[best])]
        every.append(
            {
                "score": _finite(score),
                "classes": [[int(c), float(probabilities[c])] for c in best],
            }
        )
    return {
        "exit": answer.exit,
        "degraded": answer.degraded,
        "milliseconds": answer.milliseconds,
        "exits": every,
    }


def _finite(value: Any) -> float | None:
    """The number for JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None


def _whole_number(query: dict[str, str], name: str, below: int) -> int:
    text = query.get(name, "0")
    if not _is_count(text) or int(text) >= below:
        raise BranchyError(
            f"{name}={files.printable(text)[:40]}: expected a whole number from 0 to "
            f"{below - 1}."
        )
    return int(text)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 16


def _thresholds(query: dict[str, str]) -> list[float] | None:
    """The thresholds of a request; None for the calibrated ones."""
    text = query.get("thresholds")
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BranchyError(
            f"thresholds={files.printable(text)[:40]}: expected comma-separated numbers."
        ) from None

"""Metrics of the embedded server, and the HTTP port that serves them."""

from __future__ import annotations

import collections
import http.server
import socket
import threading
import urllib.parse
from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, exposition
from prometheus_client.metrics_core import Metric

from branchy_tf import exits
from branchy_tf.errors import BranchyError
from branchy_tf.serving import addresses

# TF Serving's: microseconds, from 10 up to about 20 minutes.
_BUCKETS = [10 * 1.8**k for k in range(33)]


class Metrics:
    """TF Serving's metrics under its names, and exits by model.

    | name | labels |
    | --- | --- |
    | :tensorflow:serving:request_count | model_name, status |
    | :tensorflow:serving:request_latency | model_name, API, entrypoint, status |
    | :branchy:serving:exit_count | model_name, exit |

    Latencies are in microseconds; exits count rows.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _Count(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ("model_name", "status"),
        )
        self._exits = _Count(
            ":branchy:serving:exit_count",
            "Rows that left at an exit.",
            ("model_name", "exit"),
        )
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Wall time of a request, in microseconds.",
            ("model_name", "API", "entrypoint", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(self._requests)
        self.registry.register(self._exits)

    def count_request(self, model: str, status: str, microseconds: float) -> None:
        """Counts one Predict and its wall time."""
        self._requests.add((model, status), 1)
        self._latency.labels(model, "Predict", "GRPC", status).observe(microseconds)

    def count_exits(self, model: str, indices: np.ndarray) -> None:
        """Counts the rows of an answer by their exit, 0-based."""
        for index, rows in enumerate(np.bincount(indices).tolist()):
            if rows:
                self._exits.add((model, exits.exit_name(index + 1)), rows)


class _Count:
    """A counter with labels and without the suffix _total, as in TF Serving."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._values: collections.Counter[tuple[str, ...]] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, labels: tuple[str, ...], amount: int) -> None:
        with self._lock:
            self._values[labels] += amount

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        # The library adds the suffix to metrics of type counter.
        metric = Metric(self._name, self._text, "unknown")
        with self._lock:
            found = dict(self._values)
        for labels, value in sorted(found.items()):
            metric.add_sample(
                self._name, dict(zip(self._labels, labels, strict=True)), value
            )
        yield metric


class MetricsServer:
    """Serves the metrics over HTTP from a thread.

    Args:
        metrics: the metrics.
        host: address to listen on.
        port: port to listen on.
        path: URL path of the metrics, such as /metrics; None: serves none.

    Raises:
        BranchyError: the port is in use.
    """

    def __init__(self, metrics: Metrics, host: str, port: int, path: str | None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 10  # for silent clients

            def do_GET(self) -> None:
                # prometheus_client's server answers every path, REST's too, and sends
                # OpenMetrics to Prometheus, which drops the colons of these names.
                known = urllib.parse.urlsplit(self.path).path == path
                body = (
                    exposition.generate_latest(metrics.registry)
                    if known
                    else b"The embedded server has metrics here, and no REST.\n"
                )
                self.send_response(200 if known else 404)
                kind = exposition.CONTENT_TYPE_LATEST if known else "text/plain"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Logs no scrapes."""

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise BranchyError(
                f"Cannot listen on {addresses.join(host, port)}: {error.strerror}. Pass "
                "another --rest_api_port."
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def start(self) -> None:
        """Starts to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stops serving and frees the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

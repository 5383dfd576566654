"""Prometheus metrics of a cascade."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from branchy_tf.errors import ServerError

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class CascadeMetrics:
    """Metrics of a cascade, by unit.

    - `branchy_cascade_rows_total{unit}`: rows that entered the unit.
    - `branchy_cascade_bytes_total{unit, direction}`: bytes `sent` to it and `received`
      from it; 0 for a unit in this process.
    - `branchy_cascade_calls_total{unit, code}`: calls by gRPC status.
    - `branchy_cascade_call_seconds{unit}`: their durations.
    - `branchy_cascade_call_rows{unit}`: rows in one call.
    - `branchy_cascade_degraded_rows_total{unit, code}`: rows that an earlier unit
      answered because this one failed, by the status of the failure.
    - `branchy_cascade_requests_total{model, code}`: requests to the gateway.
    - `branchy_cascade_exits_total{model, exit}`: rows by exit.

    Args:
        registry: a prometheus_client.CollectorRegistry; default: a new one.
    """

    def __init__(self, registry: Any = None) -> None:
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry() if registry is None else registry

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(name, text, labels, registry=self.registry)

        self._rows = counter("branchy_cascade_rows", "Rows that entered a unit.", "unit")
        self._bytes = counter(
            "branchy_cascade_bytes", "Bytes to and from a unit.", "unit", "direction"
        )
        self._calls = counter("branchy_cascade_calls", "Calls to a unit.", "unit", "code")
        self._degraded = counter(
            "branchy_cascade_degraded_rows",
            "Rows that an earlier unit answered because this one failed.",
            "unit",
            "code",
        )
        self._requests = counter(
            "branchy_cascade_requests", "Requests to the gateway.", "model", "code"
        )
        self._exits = counter("branchy_cascade_exits", "Rows by exit.", "model", "exit")
        self._seconds = prometheus.Histogram(
            "branchy_cascade_call_seconds",
            "Seconds per call to a unit.",
            ["unit"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._call_rows = prometheus.Histogram(
            "branchy_cascade_call_rows",
            "Rows per call to a unit.",
            ["unit"],
            buckets=_ROWS,
            registry=self.registry,
        )
        # Looking labels up takes longer than counting.
        self._children: dict[tuple[Any, ...], Any] = {}

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        if key not in self._children:
            self._children[key] = metric.labels(*labels)
        return self._children[key]

    @contextlib.contextmanager
    def watch(self, unit: str, rows: int) -> Iterator[_Call]:
        """Times a call to a unit and counts it by its outcome."""
        start, code = time.perf_counter(), "OK"
        self._child(self._rows, unit).inc(rows)
        self._child(self._call_rows, unit).observe(rows)
        try:
            yield _Call(self, unit)
        except ServerError as error:
            code = error.code
            raise
        except BaseException:
            code = "UNKNOWN"
            raise
        finally:
            self._child(self._seconds, unit).observe(time.perf_counter() - start)
            self._child(self._calls, unit, code).inc()

    def count_bytes(self, unit: str, sent: int, received: int) -> None:
        """Counts the bytes of a call to a unit."""
        self._child(self._bytes, unit, "sent").inc(sent)
        self._child(self._bytes, unit, "received").inc(received)

    def count_degraded(self, unit: str, code: str, rows: int) -> None:
        """Counts rows that this unit should have answered."""
        self._child(self._degraded, unit, code).inc(rows)

    def count_request(self, model: str, code: str) -> None:
        """Counts a request to the gateway."""
        self._child(self._requests, model, code).inc()

    def count_exits(self, model: str, names: list[str], rows: list[int]) -> None:
        """Counts the rows of an answer by exit."""
        for name, count in zip(names, rows, strict=True):
            if count:
                self._child(self._exits, model, name).inc(count)


class _Call:
    def __init__(self, metrics: CascadeMetrics, unit: str) -> None:
        self._metrics = metrics
        self._unit = unit

    def count(self, sent: int, received: int) -> None:
        """Counts the bytes of the call."""
        self._metrics.count_bytes(self._unit, sent, received)

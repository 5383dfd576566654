"""Prometheus metrics of clients."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

from branchy_tf import checks
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import Predictions, exit_name

# From a fraction of a millisecond to the default deadline.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
# Entropy thresholds are small; the maximum is log(classes), 6.9 for 1,000 classes.
_SCORES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)


class ClientMetrics:
    """Metrics that any number of clients share.

    - `branchy_client_requests_total{model, method, code}`: method calls. The code is OK,
      a gRPC status, or NOT_SENT for calls that the client rejected.
    - `branchy_client_request_seconds{model, method}`: their durations, all parts
      together.
    - `branchy_client_exits_total{model, exit}`: predicted rows by exit, "exit_1" and so
      on.
    - `branchy_client_score{model, exit}`: scores at that exit.

    Args:
        registry: a prometheus_client.CollectorRegistry; default: the global one.

    Raises:
        BranchyError: the registry already has these metrics.

    Example:

    ```python
    metrics = ClientMetrics()
    prometheus_client.start_http_server(9000)
    client = EarlyExitClient("localhost:8500", model="branchy_lenet", metrics=metrics)
    ```
    """

    def __init__(self, registry: Any = None) -> None:
        # Imported here, so that clients without metrics start faster.
        import prometheus_client as prometheus

        if registry is None:
            registry = prometheus.REGISTRY
        if not isinstance(registry, prometheus.CollectorRegistry):
            raise BranchyError(
                "`registry` must be a prometheus_client.CollectorRegistry. Received "
                f"{checks.shown(registry)}."
            )
        counter = functools.partial(prometheus.Counter, registry=registry)
        histogram = functools.partial(prometheus.Histogram, registry=registry)
        try:
            self._requests = counter(
                "branchy_client_requests", "Method calls.", ["model", "method", "code"]
            )
            self._seconds = histogram(
                "branchy_client_request_seconds",
                "Seconds per method call.",
                ["model", "method"],
                buckets=_SECONDS,
            )
            self._exits = counter(
                "branchy_client_exits", "Predicted rows by exit.", ["model", "exit"]
            )
            self._scores = histogram(
                "branchy_client_score",
                "Scores of predicted rows at their exit; lower is surer.",
                ["model", "exit"],
                buckets=_SCORES,
            )
        except ValueError:
            raise BranchyError(
                "The registry already holds a ClientMetrics; expected one per registry. "
                "Create one and pass it to all clients."
            ) from None

    @contextlib.contextmanager
    def watch(self, model: str, method: str) -> Iterator[None]:
        """Times a call and counts it by its outcome."""
        start, code = time.perf_counter(), "UNKNOWN"
        try:
            yield
            code = "OK"
        except ServerError as error:
            code = error.code
            raise
        except BranchyError:
            code = "NOT_SENT"
            raise
        except GeneratorExit:
            code = "CANCELLED"  # the caller gave up
            raise
        finally:
            self._seconds.labels(model, method).observe(time.perf_counter() - start)
            self._requests.labels(model, method, code).inc()

    def count(self, model: str, answer: Predictions) -> None:
        """Counts the rows of an answer."""
        for k in sorted(set(answer.exits.tolist())):
            name = exit_name(k + 1)
            scores = answer.scores[answer.exits == k].tolist()
            self._exits.labels(model, name).inc(len(scores))
            histogram = self._scores.labels(model, name)
            for score in scores:
                histogram.observe(score)

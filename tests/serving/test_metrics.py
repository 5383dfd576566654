from __future__ import annotations

import numpy as np
import prometheus_client
import pytest
import servers

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import ClientMetrics, EarlyExitClient

MODEL = servers.MODEL


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def client(connect, fake, registry):
    metrics = ClientMetrics(registry=registry)
    with connect(fake.address, MODEL, max_rows=2, metrics=metrics) as client:
        yield client


def requests(registry):
    """`{(method, code): calls}`, without those that are none."""
    return {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "branchy_client_requests_total"
    }


def test_counts_calls_by_outcome(fake, client, registry, digits):
    client.predict(digits[:5])
    client.all_exits(digits[:5])
    client.describe()
    client.wait_until_ready()
    with pytest.raises(BranchyError):
        client.predict(digits[:5], [-1])
    fake.fail(1, "RESOURCE_EXHAUSTED")
    with pytest.raises(ServerError):
        client.predict(digits[:1])
    assert requests(registry) == {
        # A call counts once, whatever its parts.
        ("predict", "OK"): 1,
        ("all_exits", "OK"): 1,
        ("describe", "OK"): 1,
        ("wait_until_ready", "OK"): 1,
        ("predict", "NOT_SENT"): 1,
        ("predict", "RESOURCE_EXHAUSTED"): 1,
    }
    seconds = {"model": MODEL, "method": "predict"}
    assert registry.get_sample_value("branchy_client_request_seconds_count", seconds) == 3


def test_times_calls(fake, client, registry, digits):
    client.describe()
    fake.answer = lambda *_: (fake.over.wait(0.1), servers.respond(1))[1]
    client.predict(digits[:1])
    seconds = registry.get_sample_value(
        "branchy_client_request_seconds_sum", {"model": MODEL, "method": "predict"}
    )
    assert 0.1 <= seconds < 5


def test_counts_exits_and_scores(fake, client, registry, digits):
    def answer(request, _):
        rows = servers.rows_of(request)
        response = servers.respond(rows, scores=np.full(rows, 0.25, np.float32))
        response.outputs["exit"].int_val[:] = []
        response.outputs["exit"].tensor_content = np.arange(
            rows, dtype=np.int32
        ).tobytes()
        return response

    fake.answer = answer
    client.predict(digits[:5])  # parts of 2, 2 and 1
    for name, rows in {"exit_1": 3, "exit_2": 2}.items():
        labels = {"model": MODEL, "exit": name}
        assert registry.get_sample_value("branchy_client_exits_total", labels) == rows
        assert registry.get_sample_value("branchy_client_score_sum", labels) == rows / 4
        for bound, below in {"0.2": 0, "0.3": rows, "+Inf": rows}.items():
            value = registry.get_sample_value(
                "branchy_client_score_bucket", labels | {"le": bound}
            )
            assert value == below, bound


def test_clients_share_metrics(fake, registry, digits):
    metrics = ClientMetrics(registry=registry)
    for model in ("one", "other", "one"):
        with EarlyExitClient(fake.address, model, metrics=metrics) as client:
            client.predict(digits[:2])
    counts = {
        model: registry.get_sample_value(
            "branchy_client_exits_total", {"model": model, "exit": "exit_1"}
        )
        for model in ("one", "other")
    }
    assert counts == {"one": 4, "other": 2}


def test_a_registry_takes_one(registry):
    ClientMetrics(registry)
    with pytest.raises(BranchyError, match="pass it to all clients"):
        ClientMetrics(registry)


def test_abandoned_calls_count_as_cancelled(registry):
    metrics = ClientMetrics(registry)

    def call():
        with metrics.watch(MODEL, "predict"):
            yield

    steps = call()
    next(steps)
    steps.close()
    assert requests(registry) == {("predict", "CANCELLED"): 1}

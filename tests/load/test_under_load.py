"""The load and fault commands, shortened to seconds."""

from __future__ import annotations

import sys
import time

import batching
import faults
import kill
import lab
import latency
import malformed
import mangling
import numpy as np
import overload
import pytest
import soak
import swap

from branchy_tf import zoo
from branchy_tf.benchmarking import load
from branchy_tf.serving.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def pair(mnist_5k, tmp_path_factory) -> lab.Pair:
    model = zoo.branchy_lenet(weights="mnist")
    return lab.Pair(tmp_path_factory.mktemp("pair"), model, mnist_5k.test.images)


def assert_found(found: lab.Findings) -> None:
    assert not found.problems, f"{found.line}\n" + "\n".join(found.problems)


def test_detects_every_mix_up(pair):
    rows = np.arange(len(pair.images))
    limits = pair.thresholds[rows % len(pair.thresholds)]
    for number in (1, 2):
        answer = pair.predictor(number).predict(pair.images, limits)
        own, other = pair.expected(number), pair.expected(number + 1)
        assert own.right(answer, rows, limits).all()
        assert not other.right(answer, rows, limits).any()
        # Another image's, or another threshold's.
        assert own.right(answer, np.roll(rows, 1), limits).mean() < 0.01
        assert own.right(answer, rows, np.roll(limits, 1, axis=0)).mean() < 0.7
        assert 0.2 < answer.exits.mean() < 0.8


def test_versions_and_thresholds_change_under_load(pair, tmp_path):
    found = swap.run(pair, tmp_path, requests=600, swaps=3)
    assert_found(found)
    assert found.figures["requests"] >= 600


def test_a_kill_fails_clearly_and_recovers_soon(pair, tmp_path):
    assert_found(kill.run(pair, tmp_path, kills=1))


def test_malformed_requests_get_correct_statuses(pair, tmp_path):
    found = malformed.run(pair, tmp_path, requests=40 * len(mangling._KINDS))
    assert_found(found)
    # Some kinds are answered, most refused.
    assert found.figures["answers"]["OK"] > 100
    assert found.figures["answers"]["INVALID_ARGUMENT"] > 200


def test_memory_is_watched(pair, tmp_path):
    found = soak.run(pair, tmp_path, minutes=0.2, settling=0.05, rate=20)
    # Too short for real growth; this checks that it runs and measures.
    growth = [text for text in found.problems if "memory has grown" in text]
    assert found.problems == growth
    assert abs(found.figures["growth"]) < 0.5
    assert set(found.figures["errors"]) - {"INTERNAL", "UNIMPLEMENTED"} >= {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
    }


def test_damaged_versions_leave_the_old_one_serving(pair, tmp_path):
    assert_found(faults.damaged(pair, tmp_path))


def test_reports_a_full_disk(tmp_path):
    assert_found(faults.full_disk(tmp_path, kilobytes=[300]))


def test_slow_clients_delay_nobody(pair, tmp_path):
    assert_found(faults.slow_clients(pair, tmp_path, clients=20, requests=100))


def test_ignores_changes_of_the_wall_clock(pair, tmp_path, monkeypatch):
    """Deadlines, polling and latencies with a clock that is days off at every reading."""
    base = tmp_path / "branchy_lenet"
    pair.add(base, 1)
    real, random = time.time, np.random.default_rng(0)

    def jumping():
        # grpc hands what it sees to its engine, whose clock stays as it is.
        if sys._getframe(1).f_globals["__name__"].startswith("grpc."):
            return real()
        return real() + 86400.0 * random.integers(-1000, 1000)

    monkeypatch.setattr("time.time", jumping)
    with EmbeddedServer(base, "branchy_lenet", port=0) as server:
        address = f"127.0.0.1:{server.port}"
        with lab.EarlyExitClient(address, "branchy_lenet", timeout=10) as client:
            versions: list[int | None] = []

            def expected(version):
                versions.append(version)
                return pair.expected(version)

            traffic = pair.traffic(client, expected=expected)
            pair.add(base, 2)
            with lab.under_load(traffic, 2, 5, 60) as loaded:
                lab.servers.until(lambda: versions[-1:] == [2])
    outcome = loaded.result()
    assert not outcome.errors
    assert not outcome.wrong
    assert 0 < outcome.latencies.min() <= outcome.latencies.max() < 5000


def test_the_same_number_makes_the_same_malformed_request(pair):
    for number in range(2 * len(mangling._KINDS)):
        assert mangling.make(pair.images, number) == mangling.make(pair.images, number)


def test_notices_wrong_answers(pair, tmp_path):
    """The verdicts on version 2 when version 1 should answer."""
    base = tmp_path / "branchy_lenet"
    pair.add(base, 2)
    with (
        lab.serving(base, tmp_path / "log") as server,
        malformed.stranger(server, pair) as ask,
    ):
        outcome = load.closed_loop(ask, 1, 10, requests=len(mangling._KINDS))
    assert outcome.wrong >= 3
    assert any("as it should be" in text for text in ask.problems)


def test_overload_is_shed_and_the_rest_answered_soon(pair, tmp_path):
    # Few threads: what a request waits for depends on how many are taken in. The bound
    # holds on a busy machine too, and is far below the deadline, which is what requests
    # would take that nothing sheds.
    flags = ["--grpc_max_threads=4"]
    assert_found(overload.run(pair, tmp_path, 4, 3, bound=8, timeout=20, flags=flags))


def test_compares_with_and_without_batching(pair, tmp_path):
    base = tmp_path / "branchy_lenet"
    pair.add(base, 1)
    found = batching.run(base, "mnist_5k", callers=8, seconds=0.5, rounds=1)
    # The gain needs a quiet machine.
    assert [p for p in found.problems if "batching brings" not in p] == []
    figures = found.figures
    assert figures["gain"] == figures["on"] / figures["off"] > 0
    assert figures["most"] > 0


def test_serving_is_compared_with_the_model_alone(pair, tmp_path):
    base = tmp_path / "branchy_lenet"
    pair.add(base, 1)
    figures = latency.run(base, None, seconds=1).figures
    assert 0 < figures["in_process"] < figures["served"]
    assert figures["added"] == figures["served"] - figures["in_process"]


@pytest.mark.parametrize(
    "command", [batching, faults, kill, latency, malformed, overload, soak, swap]
)
def test_commands_document_their_usage(command):
    path = f"tests/load/{command.__name__}.py"
    assert (lab.ROOT / path).is_file()
    assert f"\n  python {path}" in command.__doc__

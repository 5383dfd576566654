from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from branchy_tf.benchmarking import load
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import Predictions
from branchy_tf.serving.answers import ExpectedAnswers


class Asked:
    """Answers as told and keeps what it was asked."""

    def __init__(self, answer=lambda number: 1):
        self.numbers = []
        self.timeouts = []
        self.threads = set()
        self._answer = answer

    def __call__(self, number, timeout):
        self.numbers.append(number)
        self.timeouts.append(timeout)
        self.threads.add(threading.get_ident())
        return self._answer(number)


def fails(number):
    if number % 4 == 1:
        raise ServerError("UNAVAILABLE", "gone")
    if number % 4 == 2:
        raise load.WrongAnswer("another one's")
    return 3


def test_a_closed_loop_has_each_caller_ask_again():
    together = threading.Barrier(5, timeout=10)
    ask = Asked(lambda number: together.wait() and 0)
    outcome = load.closed_loop(ask, 5, timeout=7, requests=20)
    assert sorted(ask.numbers) == list(range(20))
    assert len(ask.threads) == 5
    assert 6 < min(ask.timeouts) <= max(ask.timeouts) <= 7
    assert len(outcome.samples) == 20


def test_a_closed_loop_ends_on_time_or_on_request():
    outcome = load.closed_loop(Asked(lambda _: time.sleep(0.01) or 1), 2, 1, seconds=0.2)
    assert 0.2 <= outcome.seconds < 2
    assert 2 <= len(outcome.samples) <= 42
    stop = threading.Event()
    ask = Asked(lambda number: number < 50 or stop.set() or 1)
    assert len(load.closed_loop(ask, 1, 1, stop=stop).samples) == 51


def test_an_open_loop_keeps_its_rate():
    ask = Asked(lambda _: time.sleep(0.1) or 1)
    outcome = load.open_loop(ask, rate=200, timeout=5, seconds=1)
    starts = np.sort([sample.start for sample in outcome.samples])
    assert len(starts) == pytest.approx(200, abs=5 * 200**0.5)
    assert starts[-1] - starts[0] < 1
    # By chance: gaps spread as widely as they are long on average.
    gaps = np.diff(starts)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.3)
    assert ask.numbers == list(range(len(starts)))


def test_an_open_loop_counts_the_time_in_the_queue():
    ask = Asked(lambda _: time.sleep(0.02) or 1)
    outcome = load.open_loop(ask, rate=200, timeout=5, seconds=0.5, callers=1)
    count = len(outcome.samples)
    # One at a time takes 20 ms each; the last ones wait for all before them.
    assert outcome.latencies.max() > 20 * count - 700
    assert np.mean(ask.timeouts[-5:]) < 5 - 0.02 * count + 0.7


def test_does_not_send_requests_past_their_deadline():
    ask = Asked(lambda _: time.sleep(0.3) or 1)
    outcome = load.open_loop(ask, rate=100, timeout=0.1, seconds=0.2, callers=1)
    assert len(ask.numbers) < len(outcome.samples)
    late = len(outcome.samples) - len(ask.numbers)
    assert outcome.errors == {"DEADLINE_EXCEEDED": late}


def test_counts_answered_wrong_and_failed_requests():
    outcome = load.closed_loop(Asked(fails), 2, 1, requests=40)
    found = outcome.summary()
    assert found["requests"] == 40
    assert found["errors"] == {"UNAVAILABLE": 10}
    assert found["wrong"] == 10
    assert found["answered"] == 30
    assert found["requests_per_second"] == pytest.approx(30 / found["seconds"])
    assert found["rows_per_second"] == pytest.approx(60 / found["seconds"])


def test_percentiles_by_hand():
    samples = [load.Sample(1.0, 1.0 + ms / 1e3, "OK", 1) for ms in range(101)]
    samples.append(load.Sample(1.0, 99.0, "UNAVAILABLE", 0))
    found = load.Outcome(samples, 1.0).summary()
    for name, value in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)):
        assert found[f"{name}_ms"] == pytest.approx(value)
    nothing = load.Outcome(samples[-1:], 1.0).summary()
    assert nothing["p50_ms"] is None
    assert nothing["requests_per_second"] == 0


@pytest.mark.parametrize("loop", [load.closed_loop, load.open_loop])
def test_an_unexpected_exception_ends_the_load(loop):
    def ask(number, timeout):
        raise BranchyError("no such shape")

    with pytest.raises(BranchyError, match="no such shape"):
        loop(ask, 20, 1, seconds=60)


class Client:
    """Answers an image by what is in it, at the exit that the threshold says."""

    def __init__(self, mixed_up=False):
        self.sent = []
        self._mixed_up = mixed_up

    def predict(self, images, thresholds=None, timeout=None):
        self.sent.append((images, thresholds))
        rows = images[::-1] if self._mixed_up else images
        exits = np.where(np.isinf(thresholds[:, 0]), 0, 1).astype(np.int32)
        return Predictions(PROBABILITIES[rows, exits], exits, SCORES[rows, exits], 4)


IMAGES = np.arange(7)
PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(3), (7, 2))
SCORES = np.random.default_rng(2).uniform(0.1, 1, (7, 2))


def test_traffic_asks_about_all_images_with_all_thresholds():
    client, versions = Client(), []

    def expected(version):
        versions.append(version)
        return ExpectedAnswers(PROBABILITIES, SCORES)

    traffic = load.Traffic(client, IMAGES, 3, [[0], [np.inf]], expected)
    assert [traffic(number, 1) for number in range(14)] == [3] * 14
    pairs = {
        (image, float(limit))
        for images, limits in client.sent
        for image, limit in zip(images, limits[:, 0], strict=True)
    }
    assert pairs == {(image, limit) for image in range(7) for limit in (0, np.inf)}
    assert versions == [4] * 14


def test_traffic_takes_several_inputs():
    class Named(Client):
        def predict(self, images, thresholds=None, timeout=None):
            assert (images["b"] == -images["a"]).all()
            return super().predict(images["a"], thresholds, timeout)

    wanted = ExpectedAnswers(PROBABILITIES, SCORES)
    inputs = {"a": IMAGES, "b": -IMAGES}
    traffic = load.Traffic(Named(), inputs, 3, [[0]], lambda _: wanted)
    assert [traffic(number, 1) for number in range(5)] == [3] * 5


def test_traffic_notices_the_answer_to_another_image():
    wanted = ExpectedAnswers(PROBABILITIES, SCORES)
    thresholds = [[0], [np.inf]]
    traffic = load.Traffic(Client(True), IMAGES, 3, thresholds, lambda _: wanted)
    with pytest.raises(load.WrongAnswer, match=r"row 0, thresholds \[0\.0\], version 4"):
        traffic(0, 1)
    assert load.Traffic(Client(True), IMAGES, 3, thresholds)(0, 1) == 3

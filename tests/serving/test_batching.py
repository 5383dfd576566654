from __future__ import annotations

from concurrent import futures

import numpy as np
import pytest
import servers
import small
import tensorflow as tf

from branchy_tf import saved_model
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving import EarlyExitClient, configs
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.serving.embedded.batching import BatchedModel
from branchy_tf.serving.embedded.statuses import Refusal

A_MINUTE = 60_000_000  # microseconds; longer than any of these tests


@pytest.fixture(scope="module", params=["frozen", "variables"])
def version(request, tmp_path_factory):
    """Two exits, 8 x 8 pixels; without weights as constants too."""
    folder = tmp_path_factory.mktemp("small")
    freeze = "true" if request.param == "frozen" else "false"
    return saved_model.export(small.model(), folder, "small", [0.5], freeze=freeze)


@pytest.fixture(scope="module")
def alone(version):
    """What each request gets that shares no batch."""
    return SessionModel(version)


@pytest.fixture
def batched(version):
    """Makes batching models; their batches wait until they are full."""
    made = []

    def make(timeout=A_MINUTE, **numbers):
        parameters = configs.BatchingParameters()
        for name, value in {"batch_timeout_micros": timeout, **numbers}.items():
            getattr(parameters, name).value = value
        made.append(BatchedModel(SessionModel(version), parameters))
        return made[-1]

    yield make
    for model in made:
        model.close()


def image(seed, rows=1):
    random = np.random.default_rng(seed)
    return random.integers(0, 255, (rows, 8, 8, 1), dtype=np.uint8)


def test_full_batches_run_and_each_caller_gets_its_own_rows(batched, alone):
    model = batched(max_batch_size=8, num_batch_threads=1)
    requests = [
        {"images": image(i), "thresholds": np.float32([[i % 2 * 9]])} for i in range(8)
    ]
    with futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(model.run, "early_exit", one) for one in requests]
        # Alone, each would wait for a minute.
        answers = [call.result(30) for call in calls]
    for request, answer in zip(requests, answers, strict=True):
        expected = alone.run("early_exit", request)
        assert answer["exit"].tolist() == expected["exit"].tolist()
        for name in ("score", "probabilities"):
            np.testing.assert_allclose(answer[name], expected[name], atol=1e-6)
    assert {answer["exit"][0] for answer in answers} == {0, 1}


def test_each_signature_has_its_own_queue(batched):
    model = batched(max_batch_size=2)
    with futures.ThreadPoolExecutor(3) as pool:
        one = {"images": image(1)}
        first = pool.submit(model.run, "serving_default", one)
        other = pool.submit(model.run, "all_exits", one)
        second = pool.submit(model.run, "serving_default", one)
        assert first.result(30).keys() == second.result(30).keys()
        assert not other.done()
        model.run("all_exits", one)
        assert "scores" in other.result(30)


def test_a_row_of_a_wrong_shape_fails_alone(batched):
    model = batched(max_batch_size=2)
    with futures.ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(model.run, "serving_default", {"images": image(1)})
        for wrong in (image(2)[:, :4], image(2)[..., None], image(2)[..., [0, 0]]):
            with pytest.raises(tf.errors.InvalidArgumentError):
                model.run("serving_default", {"images": wrong})
        assert not waiting.done()
        model.run("serving_default", {"images": image(3)})
        assert waiting.result(30)["exit"].shape == (1,)


def test_an_empty_batch_runs_at_once(batched):
    answer = batched(max_batch_size=8).run("serving_default", {"images": image(1, 0)})
    shapes = {name: value.shape for name, value in answer.items()}
    assert shapes == {"probabilities": (0, 3), "exit": (0,), "score": (0,)}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            {"images": image(1, 5), "thresholds": np.float32([[1]] * 5)},
            "Task size 5 is larger than maximum input batch size 4",
        ),
        (
            {"images": image(1, 2), "thresholds": np.float32([[1]])},
            "input tensors must have equal 0th-dimension size",
        ),
        # The default has one row.
        ({"images": image(1, 2)}, "input tensors must have equal 0th-dimension size"),
        (
            {"images": image(1), "thresholds": np.float32(1)},
            "input tensors must have at least one dimension",
        ),
    ],
)
def test_rejects_what_tf_serving_rejects(batched, inputs, expected):
    with pytest.raises(Refusal, match=expected) as caught:
        batched(max_batch_size=4).run("early_exit", inputs)
    assert caught.value.code.name == "INVALID_ARGUMENT"


def test_a_full_queue_is_unavailable(batched):
    model = batched(max_batch_size=2, max_enqueued_batches=1, num_batch_threads=1)

    def run(seed, rows=1):
        try:
            return model.run("serving_default", {"images": image(seed, rows)})
        except tf.errors.UnavailableError:
            return None

    with futures.ThreadPoolExecutor(1) as pool:
        # It may meet a full queue itself, before it can wait in one.
        waiting = pool.submit(lambda: servers.until(lambda: run(1)))
        # Two rows do not fit beside the one that waits, and there is no room for a
        # second batch.
        servers.until(lambda: run(2, rows=2) is None and not waiting.done())
        model.run("serving_default", {"images": image(3)})
        assert waiting.result(30)["exit"].shape == (1,)


def test_batched_answers_equal_single_answers(exported, predictor, digits, halving):
    expected = predictor.predict(digits, [halving])
    with (
        EmbeddedServer(exported, port=0, enable_batching=True) as server,
        EarlyExitClient(f"localhost:{server.port}", servers.MODEL) as client,
    ):

        def ask(i):
            rows = slice(i, i + 1 + i % 3)
            limits = np.full((len(digits[rows]), 1), halving)
            return rows, client.predict(digits[rows], limits)

        with futures.ThreadPoolExecutor(16) as pool:
            for rows, answer in pool.map(ask, range(60)):
                assert answer.exits.tolist() == expected.exits[rows].tolist()
                np.testing.assert_allclose(
                    answer.scores, expected.scores[rows], atol=1e-5
                )

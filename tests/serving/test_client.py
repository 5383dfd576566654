from __future__ import annotations

import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import servers
import tensorflow as tf

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer

MODEL = servers.MODEL


@pytest.fixture
def client(served, connect):
    with connect(served.address, MODEL, timeout=60) as client:
        yield client


def numbered(count):
    """Images that tell by their first pixel which they are."""
    images = np.zeros((count, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def test_default_thresholds_agree_with_the_predictor(client, predictor, digits):
    answer = client.predict(digits)
    servers.assert_same(answer, predictor.predict(digits))
    assert set(answer.exits) == {0, 1}
    assert answer.exits.dtype == np.int32
    assert answer.scores.dtype == answer.probabilities.dtype == np.float32
    assert answer.model_version == 1


def test_one_threshold_for_all_agrees_with_the_predictor(
    client, predictor, digits, halving
):
    answer = client.predict(digits, [halving])
    servers.assert_same(answer, predictor.predict(digits, [halving]))
    assert set(answer.exits) == {0, 1}


def test_a_threshold_for_each_row_agrees_with_the_predictor(
    client, predictor, digits, halving
):
    limits = np.resize([0, np.inf, halving], (64, 1))
    answer = client.predict(digits, limits)
    servers.assert_same(answer, predictor.predict(digits, limits))
    assert answer.exits[::3].all()
    assert not answer.exits[1::3].any()
    assert set(answer.exits[2::3]) == {0, 1}


def test_one_row_and_many_agree(client, digits, halving):
    together = client.predict(digits[:12], [halving])
    alone = [client.predict(digits[i : i + 1], [halving]) for i in range(12)]
    for field in ("exits", "labels"):
        joined = np.concatenate([getattr(answer, field) for answer in alone])
        np.testing.assert_array_equal(joined, getattr(together, field))
    joined = np.concatenate([answer.probabilities for answer in alone])
    np.testing.assert_allclose(joined, together.probabilities, atol=1e-5)


def test_sends_views_correctly(client, predictor, digits):
    # Their memory is not in the order of their rows.
    turned = digits[:4].transpose(0, 2, 1, 3)
    servers.assert_same(client.predict(turned), predictor.predict(turned.copy()))
    servers.assert_same(
        client.predict(digits[::-9]), predictor.predict(digits[::-9].copy())
    )


def test_splits_large_batches(served, connect, digits):
    images = np.resize(digits, (6000, 28, 28, 1))
    assert images.nbytes > 4 * 2**20
    for max_rows in (None, 77, 1024):
        with connect(served.address, MODEL, timeout=60, max_rows=max_rows) as client:
            answer = client.predict(images)
            expected = np.resize(client.predict(digits).exits, 6000)
        np.testing.assert_array_equal(answer.exits, expected)


def test_every_exit_agrees_with_the_predictor(served, connect, predictor, digits):
    probabilities, scores = predictor.all_exits(digits)
    with connect(served.address, MODEL, max_rows=10) as client:
        answer = client.all_exits(digits)
    np.testing.assert_allclose(answer.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.scores, scores, atol=1e-5)
    np.testing.assert_array_equal(answer.labels, probabilities.argmax(-1))
    assert answer.model_version == 1


def test_answers_over_4_mb_are_received(fake, fake_client, digits):
    fake.answer = lambda *_: servers.respond(1, classes=2**21)
    assert fake_client.predict(digits[:1]).probabilities.shape == (1, 2**21)


def test_threads_share_a_client(client, predictor, digits, halving):
    limits = [halving, 0, np.inf]
    expected = [predictor.predict(digits, [limit]) for limit in limits]
    together = threading.Barrier(16)

    def ask(thread):
        together.wait(30)
        for i in range(12):
            # Each call has rows and a threshold of its own.
            row, k = (7 * thread + 5 * i) % 62, (thread + i) % 3
            answer = client.predict(digits[row : row + 2], [limits[k]])
            for field in ("exits", "labels"):
                np.testing.assert_array_equal(
                    getattr(answer, field), getattr(expected[k], field)[row : row + 2]
                )
            for field in ("probabilities", "scores"):
                np.testing.assert_allclose(
                    getattr(answer, field),
                    getattr(expected[k], field)[row : row + 2],
                    atol=1e-5,
                )
        return True

    with futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(16)))


def test_describes_the_model(client):
    described, exits = client.describe()
    assert exits == 2
    assert str(described["images"]) == "uint8 [B, 28, 28, 1]"


def test_asks_for_the_given_version(served, connect, digits):
    with connect(served.address, MODEL, version=1) as client:
        assert client.predict(digits[:1]).model_version == 1
    with connect(served.address, MODEL, version=7) as client:
        with pytest.raises(ServerError, match="branchy_lenet' version 7") as caught:
            client.predict(digits[:1])
        assert caught.value.code == "NOT_FOUND"


def test_unknown_models_are_not_found(served, connect, digits):
    with (
        connect(served.address, "vgg") as client,
        pytest.raises(ServerError, match="does not serve model 'vgg'") as caught,
    ):
        client.predict(digits)
    assert caught.value.code == "NOT_FOUND"


def test_names_a_model_without_early_exit(tmp_path, digits):
    plain = tf.function(
        lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], name="x")]
    )
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"), {"serving_default": plain})
    with (
        EmbeddedServer(tmp_path, "plain", port=0) as server,
        EarlyExitClient(f"localhost:{server.port}", "plain") as client,
        pytest.raises(BranchyError, match=r"no early_exit .* has serving_default"),
    ):
        client.predict(digits)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((2, 32, 32, 1), np.uint8), r"uint8 \[B, 28, 28, 1\]"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"uint8 \[B, 28, 28, 1\]"),
        (np.zeros((28, 28, 1), np.uint8), r"batch axis: images\[None\]"),
        (np.zeros((2, 28, 28), np.uint8), r"channel axis: images\[..., None\]"),
        (np.uint8(3), r"shape \(\)"),
        ([[1, 2], [3]], "images"),
        (np.zeros((2, 28, 28, 1), np.float32), r"astype\('uint8'\)"),
        (np.zeros((2, 28, 28, 1), np.int64), r"astype\('uint8'\)"),
        (np.zeros((0, 28, 28, 1), np.uint8), "batch is empty"),
        ({"pixels": np.zeros((2, 28, 28, 1), np.uint8)}, "Received pixels"),
    ],
)
def test_rejects_images_that_do_not_fit(fake, fake_client, images, expected):
    with pytest.raises(BranchyError, match=expected):
        fake_client.predict(images)
    assert not fake.requests


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rejects_infinite_and_nan_inputs(fake, fake_client, value):
    fake.inputs = {"images": (tf.float32, [None, 2])}
    images = np.zeros((3, 2), np.float32)
    assert len(fake_client.predict(images)) == 3
    images[1, 1] = value
    with pytest.raises(BranchyError, match="NaN or infinite"):
        fake_client.predict(images)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ([], "expected 1"),
        ([0.1, 0.2], "expected 1"),
        (0.1, "expected 1"),
        ([-0.1], "at least 0"),
        ([np.nan], "not NaN"),
        ([[0.1], [np.nan]], "not NaN"),
        (np.zeros((3, 1)), "3 rows for 2 examples"),
        (np.zeros((1, 2, 1)), "expected 1"),
        (["often"], "must be numbers"),
    ],
)
def test_rejects_invalid_thresholds(fake, fake_client, thresholds, expected):
    with pytest.raises(BranchyError, match=expected):
        fake_client.predict(np.zeros((2, 28, 28, 1), np.uint8), thresholds)
    assert not fake.requests


def test_names_input_dtypes_that_numpy_lacks(fake, fake_client, digits):
    fake.inputs = {"images": (tf.bfloat16, [None, 28, 28, 1])}
    with pytest.raises(BranchyError, match="DataType 14"):
        fake_client.predict(digits)


def test_sends_thresholds_for_every_row(fake, fake_client, digits):
    # What a server that merges batches needs.
    fake_client.predict(digits[:5], [0.5])
    (request,) = fake.requests
    assert request.model_spec.signature_name == "early_exit"
    np.testing.assert_array_equal(
        tf.make_ndarray(request.inputs["thresholds"]), np.full((5, 1), 0.5, np.float32)
    )


def test_defaults_to_the_thresholds_of_the_export(fake, fake_client, digits):
    fake_client.predict(digits)
    (request,) = fake.requests
    assert request.model_spec.signature_name == "serving_default"
    assert set(request.inputs) == {"images"}


def test_gives_up_after_the_timeout(fake, fake_client, connect, digits):
    fake.answer = lambda *_: fake.over.wait(60)
    code, seconds = servers.failure(fake_client.predict, digits, timeout=0.3)
    assert code == "DEADLINE_EXCEEDED"
    assert 0.2 < seconds < 5
    with connect(fake.address, MODEL, timeout=0.3) as hasty:
        assert servers.failure(hasty.predict, digits)[0] == "DEADLINE_EXCEEDED"


def test_all_parts_have_one_timeout(fake, connect):
    # Each part comes in time, all of them do not.
    fake.answer = lambda request, _: (
        fake.over.wait(0.2),
        servers.respond(servers.rows_of(request)),
    )[1]
    with connect(fake.address, MODEL, max_rows=1) as client:
        client.describe()
        code, seconds = servers.failure(client.predict, numbered(40), timeout=0.5)
    assert code == "DEADLINE_EXCEEDED"
    assert seconds < 2
    assert len(fake.requests) < 20


def test_sends_a_few_parts_at_a_time_and_keeps_their_order(fake, connect):
    active, most, lock, full = 0, 0, threading.Lock(), threading.Event()

    def answer(request, _):
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        if most == 4:
            full.set()
        assert full.wait(10), "fewer than four at a time"
        pixels = servers.first_pixels(request)
        # The later the rows, the sooner the answer.
        time.sleep(0.01 * (4 - int(pixels[0]) // 2 % 4))
        with lock:
            active -= 1
        return servers.respond(len(pixels), scores=pixels)

    fake.answer = answer
    with connect(fake.address, MODEL, max_rows=2) as client:
        answer = client.predict(numbered(31))
    np.testing.assert_array_equal(answer.scores, np.arange(31))
    assert len(fake.requests) == 16
    assert most == 4


def test_a_failed_part_fails_the_call_and_cancels_the_rest(fake, connect):
    def answer(request, context):
        if servers.first_pixels(request)[0] == 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return servers.respond(1)

    fake.answer = answer
    with connect(fake.address, MODEL, max_rows=1) as client:
        assert servers.failure(client.predict, numbered(100))[0] == "RESOURCE_EXHAUSTED"
    assert len(fake.requests) < 50


def test_a_version_that_changes_between_parts_answers_all(fake, connect):
    def answer(request, _):
        pixels, spec = servers.first_pixels(request), request.model_spec
        version = spec.version.value or fake.version
        if pixels[0] == 3:
            fake.version = 2
        return servers.respond(
            len(pixels), version=version, scores=pixels + 100 * version
        )

    fake.answer = answer
    with connect(fake.address, MODEL, max_rows=1) as client:
        answer = client.predict(numbered(12))
    assert answer.model_version == 2
    np.testing.assert_array_equal(answer.scores, np.arange(12) + 200)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_rejects_invalid_timeouts(connect, timeout):
    with pytest.raises(BranchyError, match="above 0"):
        connect("localhost:1", MODEL, timeout=timeout)


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        (("localhost:1", MODEL, 3), {"label": "stable"}, "version 3 and label 'stable'"),
        (("localhost:1", ""), {}, "`model` must be a non-empty"),
        (("", MODEL), {}, "`server` must be a non-empty"),
        (("localhost:1", MODEL), {"max_rows": 0}, "at least 1"),
    ],
)
def test_rejects_invalid_arguments(connect, arguments, keywords, expected):
    with pytest.raises(BranchyError, match=expected):
        connect(*arguments, **keywords)


def test_asks_for_a_label(fake, connect, digits):
    with connect(fake.address, MODEL, label="stable") as client:
        assert len(client.predict(digits)) == 64
    (request,) = fake.requests
    assert request.model_spec.version_label == "stable"
    assert not request.model_spec.HasField("version")


def test_rejects_unexpected_responses(fake, fake_client, digits):
    def without_scores(*_):
        response = servers.respond(64)
        del response.outputs["score"]
        return response

    for answer in (lambda *_: servers.respond(63), without_scores):
        fake.answer = answer
        assert servers.failure(fake_client.predict, digits)[0] == "INTERNAL"


@pytest.mark.parametrize("served", [["early_exit"], ["serving_default"], []])
def test_names_missing_signatures(fake, fake_client, digits, served):
    fake.signatures = served
    with pytest.raises(BranchyError, match=r"it has (early_exit|serving_default|none)\."):
        fake_client.predict(digits)
    with pytest.raises(BranchyError, match=r"no (early_exit|all_exits) signature"):
        fake_client.all_exits(digits)
    assert not fake.requests


def test_a_new_version_may_take_other_inputs(fake, fake_client, digits):
    assert fake_client.predict(digits).model_version == 1
    fake.version, fake.inputs = 2, {"images": (tf.uint8, [None, 32, 32, 3])}
    # This server checks nothing; its answers to what does not fit are not believed.
    with pytest.raises(BranchyError, match="32, 32, 3"):
        fake_client.predict(digits)
    assert len(fake_client.predict(np.zeros((1, 32, 32, 3), np.uint8))) == 1


def test_waits_until_the_model_is_loaded(fake, fake_client):
    fake.state = 20
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fake_client.wait_until_ready)
        servers.until(lambda: fake.status_calls > 2)
        assert not waiting.done()
        fake.version, fake.state = 4, 30
        assert waiting.result() == 4


def test_waits_no_longer_than_the_timeout(fake, fake_client, connect):
    fake.state = 20
    code, seconds = servers.failure(fake_client.wait_until_ready, 0.2)
    assert code == "UNAVAILABLE"
    assert seconds < 5
    with connect(f"localhost:{servers.free_port()}", MODEL) as client:
        assert servers.failure(client.wait_until_ready, 0.2)[0] == "UNAVAILABLE"


def test_waits_for_a_label(fake, connect):
    fake.version, fake.labels = 3, {"stable": 3}
    with (
        connect(fake.address, MODEL, label="canary") as client,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.wait_until_ready)
        servers.until(lambda: fake.metadata_calls > 2)
        assert not waiting.done()
        fake.labels = {"stable": 3, "canary": 4}
        assert waiting.result(10) == 4
        fake.labels = {}
        assert servers.failure(client.wait_until_ready, 0.2)[0] == "INVALID_ARGUMENT"


def test_input_for_a_new_version_is_sent_at_once(fake, fake_client, digits):
    assert fake_client.predict(digits).model_version == 1
    fake.version, fake.inputs = 2, {"images": (tf.uint8, [None, 32, 32, 3])}
    assert len(fake_client.predict(np.zeros((2, 32, 32, 3), np.uint8))) == 2

from __future__ import annotations

import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import servers
import tensorflow as tf

from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving import client as client_module
from branchy_tf.serving.embedded import EmbeddedServer

MODEL = servers.MODEL


def assert_same(answer, expected):
    np.testing.assert_array_equal(answer.exits, expected.exits)
    np.testing.assert_array_equal(answer.labels, expected.labels)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-5)


def failure(call, *arguments, **keywords):
    """`(status, seconds)` of a call that fails."""
    start = time.monotonic()
    with pytest.raises(ServerError) as caught:
        call(*arguments, **keywords)
    assert str(caught.value).startswith(caught.value.code)
    assert "\n" not in str(caught.value)
    return caught.value.code, time.monotonic() - start


def test_default_thresholds_agree_with_the_predictor(client, predictor, digits):
    answer = client.predict(digits)
    assert_same(answer, predictor.predict(digits))
    assert set(answer.exits) == {0, 1}
    assert answer.exits.dtype == np.int32
    assert answer.scores.dtype == answer.probabilities.dtype == np.float32
    assert answer.model_version == 1


def test_one_threshold_for_all_agrees_with_the_predictor(
    client, predictor, digits, halving
):
    answer = client.predict(digits, [halving])
    assert_same(answer, predictor.predict(digits, [halving]))
    assert set(answer.exits) == {0, 1}


def test_a_threshold_for_each_row_agrees_with_the_predictor(
    client, predictor, digits, halving
):
    limits = np.resize([0, np.inf, halving], (64, 1))
    answer = client.predict(digits, limits)
    assert_same(answer, predictor.predict(digits, limits))
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


def test_views_are_sent_as_they_look(client, predictor, digits):
    # Their memory is not in the order of their rows.
    turned = digits[:4].transpose(0, 2, 1, 3)
    assert_same(client.predict(turned), predictor.predict(turned.copy()))
    assert_same(client.predict(digits[::-9]), predictor.predict(digits[::-9].copy()))


def test_requests_over_4_mb_are_answered(client, digits):
    images = np.resize(digits, (6000, 28, 28, 1))
    assert images.nbytes > 4 * 2**20
    answer = client.predict(images)
    np.testing.assert_array_equal(
        answer.exits, np.resize(client.predict(digits).exits, 6000)
    )


def test_answers_over_4_mb_are_received(fake, fake_client, digits):
    fake.answer = lambda *_: servers.respond(1, classes=2**21)
    assert fake_client.predict(digits[:1]).probabilities.shape == (1, 2**21)


def test_threads_share_a_client(client, predictor, digits, halving):
    expected = predictor.predict(digits, [halving])

    def ask(i):
        # Each call has rows and a threshold of its own.
        limit = [halving, 0, np.inf][i % 3]
        answer = client.predict(digits[i : i + 3], [limit])
        if limit == halving:
            np.testing.assert_array_equal(answer.exits, expected.exits[i : i + 3])
            np.testing.assert_allclose(
                answer.scores, expected.scores[i : i + 3], atol=1e-5
            )
        else:
            assert set(answer.exits) == {0 if limit else 1}
        return len(answer)

    with futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, list(range(61)) * 3)) == {3}


def test_describes_the_model(client):
    described, exits = client.describe()
    assert exits == 2
    assert str(described["images"]) == "uint8 [B, 28, 28, 1]"


def test_asks_for_the_version_wanted(served, digits):
    with EarlyExitClient(served.address, MODEL, version=1) as client:
        assert client.predict(digits[:1]).model_version == 1
    with EarlyExitClient(served.address, MODEL, version=7) as client:
        with pytest.raises(ServerError, match="branchy_lenet' version 7") as caught:
            client.predict(digits[:1])
        assert caught.value.code == "NOT_FOUND"


def test_another_model_is_not_found(served, digits):
    with (
        EarlyExitClient(served.address, "vgg") as client,
        pytest.raises(ServerError, match="does not serve model 'vgg'") as caught,
    ):
        client.predict(digits)
    assert caught.value.code == "NOT_FOUND"


def test_a_model_without_early_exit_is_named(tmp_path, digits):
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
def test_images_that_do_not_fit_are_not_sent(fake, fake_client, images, expected):
    with pytest.raises(BranchyError, match=expected):
        fake_client.predict(images)
    assert not fake.requests


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_not_finite_are_not_sent(fake, fake_client, value):
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
def test_thresholds_that_do_not_fit_are_not_sent(fake, fake_client, thresholds, expected):
    with pytest.raises(BranchyError, match=expected):
        fake_client.predict(np.zeros((2, 28, 28, 1), np.uint8), thresholds)
    assert not fake.requests


def test_more_than_a_message_can_hold_is_not_sent(fake, fake_client, monkeypatch, digits):
    monkeypatch.setattr(client_module, "_MOST_BYTES", digits.nbytes - 1)
    with pytest.raises(BranchyError, match="fewer rows"):
        fake_client.predict(digits)
    assert not fake.requests


def test_an_input_dtype_that_numpy_lacks_is_named(fake, fake_client, digits):
    fake.inputs = {"images": (tf.bfloat16, [None, 28, 28, 1])}
    with pytest.raises(BranchyError, match="DataType 14"):
        fake_client.predict(digits)


def test_every_row_is_sent_with_thresholds_of_its_own(fake, fake_client, digits):
    # What a server that merges batches needs.
    fake_client.predict(digits[:5], [0.5])
    (request,) = fake.requests
    assert request.model_spec.signature_name == "early_exit"
    np.testing.assert_array_equal(
        tf.make_ndarray(request.inputs["thresholds"]), np.full((5, 1), 0.5, np.float32)
    )


def test_no_thresholds_means_those_of_the_export(fake, fake_client, digits):
    fake_client.predict(digits)
    (request,) = fake.requests
    assert request.model_spec.signature_name == "serving_default"
    assert set(request.inputs) == {"images"}


def test_gives_up_after_the_timeout(fake, fake_client, digits):
    fake.answer = lambda *_: fake.over.wait(60)
    code, seconds = failure(fake_client.predict, digits, timeout=0.3)
    assert code == "DEADLINE_EXCEEDED"
    assert 0.2 < seconds < 5
    with EarlyExitClient(fake.address, MODEL, timeout=0.3) as hasty:
        assert failure(hasty.predict, digits)[0] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeouts_are_positive(timeout):
    with pytest.raises(BranchyError, match="positive"):
        EarlyExitClient("localhost:1", MODEL, timeout=timeout)


def test_no_server_is_said_soon(digits):
    with EarlyExitClient(f"localhost:{servers.free_port()}", MODEL, timeout=30) as client:
        code, seconds = failure(client.predict, digits)
        assert code == "UNAVAILABLE"
        assert seconds < 10
        with pytest.raises(ServerError, match=r"start one .*branchy_tf\.serve"):
            client.predict(digits)


def test_a_server_without_room_is_asked_again(fake, fake_client, digits):
    answer = fake.answer

    def refuse_twice(request, context):
        if len(fake.requests) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "queue full")
        return answer(request, context)

    fake.answer = refuse_twice
    assert len(fake_client.predict(digits)) == 64
    assert len(fake.requests) == 3


@pytest.mark.parametrize("code", ["INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
def test_what_may_have_reached_the_model_is_not_asked_again(
    fake, fake_client, digits, code
):
    fake.answer = lambda _, context: context.abort(grpc.StatusCode[code], "two\nlines")
    with pytest.raises(ServerError, match="two lines") as caught:
        fake_client.predict(digits)
    assert caught.value.code == code
    assert len(fake.requests) == 1


def test_nonsense_is_refused(fake, fake_client, digits):
    def without_scores(*_):
        response = servers.respond(64)
        del response.outputs["score"]
        return response

    for answer in (lambda *_: servers.respond(63), without_scores):
        fake.answer = answer
        assert failure(fake_client.predict, digits)[0] == "INTERNAL"


def test_a_new_version_may_take_other_inputs(fake, fake_client, digits):
    assert fake_client.predict(digits).model_version == 1
    fake.version, fake.inputs = 2, {"images": (tf.uint8, [None, 32, 32, 3])}
    # The first answer of another version tells the client to ask.
    assert fake_client.predict(digits).model_version == 2
    with pytest.raises(BranchyError, match="32, 32, 3"):
        fake_client.predict(digits)
    assert len(fake_client.predict(np.zeros((1, 32, 32, 3), np.uint8))) == 1


def test_a_restarted_server_is_found_again(exported, digits):
    port = servers.free_port()
    with EarlyExitClient(f"localhost:{port}", MODEL) as client:
        with EmbeddedServer(exported, MODEL, port):
            before = client.predict(digits)
        assert failure(client.predict, digits)[0] == "UNAVAILABLE"
        with EmbeddedServer(exported, MODEL, port):
            assert client.wait_until_ready(10) == 1
            assert_same(client.predict(digits), before)


def test_waits_until_the_model_is_loaded(fake, fake_client):
    fake.state = 20
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fake_client.wait_until_ready)
        servers.until(lambda: fake.status_calls > 2)
        assert not waiting.done()
        fake.version, fake.state = 4, 30
        assert waiting.result() == 4


def test_waits_no_longer_than_wanted(fake, fake_client):
    fake.state = 20
    code, seconds = failure(fake_client.wait_until_ready, 0.2)
    assert code == "UNAVAILABLE"
    assert seconds < 5
    with EarlyExitClient(f"localhost:{servers.free_port()}", MODEL) as client:
        assert failure(client.wait_until_ready, 0.2)[0] == "UNAVAILABLE"


def test_what_fits_the_new_version_is_sent_at_once(fake, fake_client, digits):
    assert fake_client.predict(digits).model_version == 1
    fake.version, fake.inputs = 2, {"images": (tf.uint8, [None, 32, 32, 3])}
    assert len(fake_client.predict(np.zeros((2, 32, 32, 3), np.uint8))) == 2

"""What the server of the page answers and refuses."""

from __future__ import annotations

import concurrent.futures
import http.client
import io
import json
import threading

import commands
import keras
import numpy as np
import pytest
from page_actions import huge_png
from PIL import Image

from branchy_tf import EarlyExitPredictor, playing
from branchy_tf.checks import TensorSpec
from branchy_tf.errors import BranchyError
from branchy_tf.playing import pictures
from branchy_tf.playing.server import MOST_BYTES
from branchy_tf.policy import ExitPolicy
from branchy_tf.serving.messages import Signature


def ask(server, path, body=None, method="POST", headers=None):
    """`(status, content)` of a request."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(text) if is_json else text
    finally:
        connection.close()


@pytest.fixture(scope="module")
def predictor(shipped, policy):
    return EarlyExitPredictor(shipped("branchy_lenet", "mnist"), policy)


@pytest.mark.parametrize("thresholds", [None, [0.0], [0.01], [np.inf]])
def test_answers_are_the_predictors(server, predictor, samples, thresholds):
    expected = predictor.predict(samples.images[:20], thresholds)
    probabilities, scores = predictor.all_exits(samples.images[:20])
    given = "" if thresholds is None else f"&thresholds={thresholds[0]}"
    for row in range(20):
        status, answer = ask(server, f"/answer?sample={row}{given}", "")
        assert status == 200
        assert answer["exit"] == expected.exits[row]
        assert answer["label"] == samples.labels[row]
        assert answer["milliseconds"] > 0
        for k, found in enumerate(answer["exits"]):
            assert found["score"] == pytest.approx(scores[row, k], rel=1e-4, abs=1e-6)
            classes = [c for c, _ in found["classes"]]
            assert classes[0] == probabilities[row, k].argmax()
            shares = [p for _, p in found["classes"]]
            assert shares == sorted(shares, reverse=True)
            assert shares == pytest.approx(probabilities[row, k][classes], abs=1e-5)


def test_reads_files_as_predict_does(server, predictor):
    file = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(file, "PNG")
    status, answer = ask(server, "/answer?kind=file&name=a.png", file.getvalue())
    assert status == 200
    assert answer["label"] is None
    assert answer["notes"][0] == "made grey"
    grey = (
        Image.fromarray(picture).convert("L").resize((28, 28), Image.Resampling.BILINEAR)
    )
    expected = predictor.predict(np.asarray(grey)[None, ..., None])
    assert answer["exit"] == expected.exits[0]
    assert answer["exits"][answer["exit"]]["classes"][0][0] == expected.labels[0]


def drawn(rows=slice(40, 240), columns=slice(130, 150)):
    board = np.zeros((pictures.BOARD, pictures.BOARD), np.uint8)
    board[rows, columns] = 255
    return board.tobytes()


def test_a_drawn_stroke_is_a_one(server):
    status, answer = ask(server, "/answer?kind=drawing", drawn())
    assert status == 200
    assert answer["exits"][answer["exit"]]["classes"][0][0] == 1


def test_two_people_do_not_disturb_each_other(server):
    def one(threshold):
        return [
            ask(server, f"/answer?sample={row}&thresholds={threshold}", "")[1]["exit"]
            for row in range(15)
        ]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first, second, third, fourth = pool.map(one, ["0", "inf", "0", "inf"])
    assert first == third == [1] * 15
    assert second == fourth == [0] * 15


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ("kind=file&name=no%00te.txt", b"not an image", "format is unknown"),
        ("kind=file&name=a.png", b"", "format is unknown"),
        ("kind=file&name=big.png", huge_png(), "10000 x 10000 pixels"),
        ("kind=file&name=bigger.png", huge_png(60_000, 60_000), "bigger.png"),
        ("kind=drawing", b"123", "280 x 280 bytes"),
        ("kind=drawing", bytes(280 * 280), "drawing is empty"),
        ("sample=60", b"", "from 0 to 59"),
        ("sample=-1", b"", "from 0 to 59"),
        (f"sample={'9' * 5000}", b"", "from 0 to 59"),
        ("sample=0&thresholds=a", b"", "comma-separated numbers"),
        ("sample=0&thresholds=-1", b"", "at least 0"),
        ("sample=0&thresholds=nan", b"", "at least 0"),
        ("sample=0&thresholds=0.1,0.2", b"", "expected 1"),
    ],
)
def test_refuses_in_one_line(server, query, body, expected):
    status, answer = ask(server, f"/answer?{query}", body)
    assert status == 400
    assert expected in answer["error"]
    assert "\n" not in answer["error"]


def test_refuses_a_large_body_unread(server):
    headers = {"Content-Length": str(MOST_BYTES + 1)}
    status, answer = ask(server, "/answer?kind=file", b"", headers=headers)
    assert status == 413
    assert "at most 67,108,864" in answer["error"]
    for length in ("-5", "x", "9" * 5000):
        headers = {"Content-Length": length}
        assert ask(server, "/answer?kind=file", b"", headers=headers)[0] == 411


def test_refuses_other_sites_and_names(server):
    for headers in (
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert ask(server, "/answer?sample=0", "", headers=headers)[0] == 403
        assert ask(server, "/", method="GET", headers=headers)[0] == 403
    for host in ("localhost", "127.0.0.1:99", "[::1]:99"):
        assert ask(server, "/", method="GET", headers={"Host": host})[0] == 200
    assert ask(server, "/other", method="GET")[0] == 404
    assert ask(server, "/answer", method="GET")[0] == 404


def test_lists_samples(server, samples):
    status, found = ask(server, "/samples?first=48", method="GET")
    assert status == 200
    assert [sample["row"] for sample in found["samples"]] == list(range(48, 60))
    assert [sample["label"] for sample in found["samples"]] == samples.labels[
        48:
    ].tolist()


def test_survives_a_closed_connection(server):
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.putrequest("POST", "/answer?kind=file")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"half")
    connection.close()
    assert ask(server, "/answer?sample=0", "")[0] == 200


def test_names_a_port_in_use(server):
    with pytest.raises(BranchyError, match=r"Cannot listen on 127\.0\.0\.1"):
        playing.PlayServer(server.subject, port=server.server_port)


def test_drawings_are_fitted_like_mnist(mnist_5k):
    image = pictures.fit_drawing(drawn(), 28, 28)
    rows, columns = np.nonzero(image)
    assert rows.max() - rows.min() + 1 == 20
    assert abs((rows.mean() + 0.5) - 14) <= 0.5
    assert abs((columns.mean() + 0.5) - 14) <= 0.6
    # Wherever and however large it is drawn.
    small = pictures.fit_drawing(drawn(slice(0, 100), slice(0, 10)), 28, 28)
    np.testing.assert_array_equal(small, image)
    light = pictures.fit_drawing(drawn(), 28, 28, dark_on_light=True)
    np.testing.assert_array_equal(light, 255 - image)
    assert not pictures.is_dark_on_light(mnist_5k.test.images[:50])
    assert pictures.is_dark_on_light(255 - mnist_5k.test.images[:50])
    # A dot, and a line along the edge.
    for rows, columns in ((slice(5, 6), slice(5, 6)), (slice(0, 280), slice(279, 280))):
        assert pictures.fit_drawing(drawn(rows, columns), 20, 30).shape == (20, 30)


def float_model(channels=3):
    inputs = keras.Input((8, 8, channels))
    flat = keras.layers.Flatten()(inputs)
    outputs = {
        "exit_1": keras.layers.Dense(3, name="exit_1")(flat),
        "exit_2": keras.layers.Dense(3, name="exit_2")(flat),
    }
    return keras.Model(inputs, outputs, name="floats")


def test_pixels_become_the_values_that_the_model_was_trained_on():
    policy = ExitPolicy(thresholds=[0.1])
    subject = playing.of_model(float_model(), policy, pixels=(-1.0, 1.0))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    values = subject.as_input(pixels)
    np.testing.assert_allclose(values, pixels / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(subject.as_pixels(values), pixels)
    with playing.PlayServer(subject) as server:
        assert not server.draws
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server, "/samples", method="GET")[0] == 404
        assert ask(server, "/answer?sample=0", "")[0] == 404
        assert ask(server, "/answer?kind=drawing", drawn())[0] == 400
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        status, answer = ask(server, "/answer?kind=file", file.getvalue())
        assert status == 200
        score = subject.ask(values, None).scores[0]
        assert answer["exits"][0]["score"] == pytest.approx(score, rel=1e-5)
        server.shutdown()


def test_a_record_tells_the_values_of_pixels():
    assert playing.pixel_range({}) == (0.0, 255.0)
    for inputs, expected in (
        ({"images": {"low": -1, "high": 1.5}}, (-1.0, 1.5)),
        ({"images": {}}, (0.0, 255.0)),
        (None, (0.0, 255.0)),
    ):
        record = {"dataset": "x", "inputs": inputs}
        assert playing.pixel_range(record) == expected


class Served:
    """A client of a server whose model takes these inputs."""

    def __init__(self, inputs):
        self._inputs = inputs

    def signature(self):
        return Signature(1, self._inputs, 2, 3, ("all_exits", "early_exit"))


def test_names_a_model_that_takes_no_image():
    with pytest.raises(BranchyError, match="play needs a model of one image with 1"):
        playing.of_model(float_model(channels=2), ExitPolicy(thresholds=[0.1]))
    two = {"a": TensorSpec((None, 3), "float32"), "b": TensorSpec((None, 3), "float32")}
    with pytest.raises(BranchyError, match="takes 2 inputs"):
        playing.of_server(Served(two), "localhost:1", "net")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--server=localhost:1"], "--model_name is missing"),
        (["--server=localhost:1", "--run_dir=x"], "Several models are chosen"),
        (["--cascade=a.yaml", "--version_dir=x"], "Several models are chosen"),
        (["--model_name=x"], "goes with --server or --cascade"),
        (["--server=localhost:1", "--model_name=x", "--thresholds=1"], "on the page"),
        (["--cascade=a.yaml", "--thresholds=1"], "on the page"),
        (["--cascade=a.yaml"], "a.yaml"),
        (["--version_dir=x", "--tls"], "go with --server"),
        (["--version_dir=no"], "no does not exist"),
        (["--version_dir=no", "--class_names=x"], "names no classes"),
        (["--server=localhost:1", "--model_name=x", "--tls_key=no"], "no `certificate`"),
        ([], "Pass --run_dir"),
    ],
)
def test_the_command_refuses_what_does_not_fit(flags, expected):
    assert expected in commands.run("play", *flags).error

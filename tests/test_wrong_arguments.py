"""Public functions and wrong values: an answer, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import keras
import numpy as np
import pytest
import small

import branchy_tf
from branchy_tf import costs, data, exits, saved_model, stages, thresholds, zoo
from branchy_tf.benchmarking import load
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.serving import (
    AsyncEarlyExitClient,
    ClientMetrics,
    EarlyExitClient,
    Tls,
)
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.serving.options import ServerOptions
from branchy_tf.training import RunFolder, Settings, copy_layers, read_history, train
from branchy_tf.tuning import Strategy, ThresholdTuner

DATA = "the folder of mnist_folder"
WRONG = {
    "none": None,
    "true": True,
    "word": "three",
    "digits": "3",
    "bytes": b"3",
    "empty word": "",
    "negative": -1,
    "zero": 0,
    "half": 0.5,
    "float": 2.0,
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": -np.inf,
    "huge": 10**400,
    "complex": 1j,
    "numpy nan": np.float32("nan"),
    "numpy float": np.float32(0.25),
    "numpy int": np.int64(1),
    "numpy bool": np.bool_(True),
    "array of none": np.array(None),
    "array of nan": np.array(np.nan),
    "array of one": np.array([1]),
    "array of two": np.array([0.1, 0.2]),
    "array of three axes": np.zeros((1, 1, 1)),
    "words": ["a", "b"],
    "ragged": [[1], [1, 2]],
    "list": [1],
    "empty list": [],
    "dict": {},
    "set": {1},
    "object": object(),
    "type": int,
    "two lines": "a\nb",
}
SCORES = np.float32([[0.1, 0.0, 0.0], [0.2, 0.3, 0.0], [0.5, 0.1, 0.2], [0.7, 0.9, 0.1]])
CORRECT = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1]], bool)
COSTS = [1.0, 2.0, 4.0]
IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
CLIENT = {"server": "localhost:1", "model": "m"}
# Made once; nothing here changes it.
small_model = functools.cache(small.model)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def trunk(model):
    return exits.baseline(model)


@pytest.fixture(scope="module")
def predictor(model):
    return branchy_tf.EarlyExitPredictor(model, [0.5])


@dataclasses.dataclass(frozen=True)
class Call:
    """A public function and what is passed rightly; each argument is then wrong once."""

    function: object
    right: dict
    wrong: tuple[str, ...]


CALLS = {
    "EarlyExitClient": Call(
        lambda **options: EarlyExitClient(**options).close(),
        CLIENT,
        ("server", "model", "version", "timeout", "label", "tls", "max_rows", "metrics"),
    ),
    "AsyncEarlyExitClient": Call(
        AsyncEarlyExitClient,
        CLIENT,
        ("server", "model", "version", "timeout", "label", "tls", "max_rows", "metrics"),
    ),
    "EarlyExitClient.predict": Call(
        lambda timeout: _asked(lambda client: client.predict(IMAGES, timeout=timeout)),
        {},
        ("timeout",),
    ),
    "EarlyExitClient.wait_until_ready": Call(
        lambda timeout: _asked(lambda client: client.wait_until_ready(timeout)),
        {},
        ("timeout",),
    ),
    "ClientMetrics": Call(ClientMetrics, {}, ("registry",)),
    "Tls": Call(
        lambda **options: Tls(**options).credentials(),
        {},
        ("ca", "certificate", "key", "server_name"),
    ),
    "ServerOptions": Call(
        ServerOptions,
        {"model_base_path": "nowhere"},
        tuple(field.name for field in dataclasses.fields(ServerOptions)),
    ),
    "EmbeddedServer": Call(
        EmbeddedServer,
        {"model_base_path": "nowhere", "port": 0},
        tuple(field.name for field in dataclasses.fields(ServerOptions)),
    ),
    "ThresholdTuner": Call(
        lambda **options: ThresholdTuner(None, **options),
        {"macs": [1, 4]},
        ("macs", "budget", "window", "share", "state_file", "seed"),
    ),
    "Strategy": Call(
        Strategy, {"costs": [1, 4]}, ("costs", "budget", "window", "share", "seed")
    ),
    "Strategy.observe": Call(
        lambda **rows: Strategy([1, 4]).observe(**rows),
        {"scores": SCORES[:, :2], "labels": np.zeros((4, 2), int)},
        ("scores", "labels"),
    ),
    "thresholds.check": Call(
        thresholds.check, {"thresholds": [0.1], "num_exits": 2}, ("thresholds",)
    ),
    "thresholds.exit_indices": Call(
        thresholds.exit_indices,
        {"scores": SCORES, "thresholds": [0.1, 0.1]},
        ("scores", "thresholds"),
    ),
    "thresholds.frontier": Call(
        thresholds.frontier,
        {"scores": SCORES, "correct": CORRECT, "costs": COSTS},
        ("scores", "correct", "costs"),
    ),
    "thresholds.evaluate": Call(
        thresholds.evaluate,
        {"scores": SCORES, "correct": CORRECT, "costs": COSTS, "thresholds": [1, 1]},
        ("scores", "correct", "costs", "thresholds"),
    ),
    "thresholds.choose": Call(
        thresholds.choose,
        {"scores": SCORES, "correct": CORRECT, "costs": COSTS},
        (
            "scores",
            "correct",
            "costs",
            "max_accuracy_drop",
            "min_accuracy",
            "max_cost",
            "exit_rates",
            "knee",
            "guarantee",
            "points",
            "seed",
        ),
    ),
    "thresholds.choose with a guarantee": Call(
        thresholds.choose,
        {
            "scores": np.tile(SCORES, (200, 1)),
            "correct": np.tile(CORRECT, (200, 1)),
            "costs": COSTS,
            "max_accuracy_drop": 0.3,
            "guarantee": 0.9,
        },
        ("max_accuracy_drop", "guarantee", "seed"),
    ),
    "thresholds.bootstrap": Call(
        thresholds.bootstrap,
        {"scores": SCORES, "correct": CORRECT, "costs": COSTS, "thresholds": [1, 1]},
        ("scores", "correct", "costs", "thresholds", "confidence", "seed"),
    ),
    "thresholds.quantiles": Call(
        thresholds.quantiles,
        {"scores": SCORES, "exit_rates": [0.5, 0.25]},
        ("scores", "exit_rates"),
    ),
    "thresholds.fit_temperature": Call(
        thresholds.fit_temperature,
        {"logits": SCORES, "labels": [0, 1, 2, 0]},
        ("logits", "labels"),
    ),
    "thresholds.check_temperatures": Call(
        thresholds.check_temperatures,
        {"temperatures": [1, 1], "num_exits": 2},
        ("temperatures",),
    ),
    "branchy_lenet": Call(
        zoo.branchy_lenet,
        {},
        ("input_shape", "classes", "weights", "exits", "name"),
    ),
    "branchy_resnet": Call(
        zoo.branchy_resnet, {"input_shape": (16, 16, 1), "depth": 8}, ("depth",)
    ),
    "zoo.build": Call(lambda model: zoo.build(model), {}, ("model",)),
    "zoo.list_weights": Call(zoo.list_weights, {}, ("model",)),
    "zoo.calibration": Call(
        zoo.calibration, {"model": "branchy_lenet", "tag": "mnist"}, ("model", "tag")
    ),
    "exits.conv_head": Call(
        exits.conv_head,
        {"filters": [8]},
        ("filters", "kernel_size", "strides", "readout"),
    ),
    "exits.pool_head": Call(exits.pool_head, {}, ("size",)),
    "data.load": Call(
        data.load,
        {"name": "mnist", "data_dir": DATA},
        ("name", "validation_size", "seed"),
    ),
    "data.augment": Call(
        data.augment,
        {"name": "shift", "images": IMAGES, "random": np.random.default_rng(0)},
        ("name",),
    ),
    "training.RunFolder": Call(RunFolder, {}, ("path",)),
    "training.read_history": Call(read_history, {}, ("path",)),
    "load.closed_loop": Call(
        load.closed_loop,
        {"ask": lambda number, left: 1, "callers": 1, "timeout": 1, "requests": 1},
        ("callers", "timeout", "seconds", "requests"),
    ),
    "load.open_loop": Call(
        load.open_loop,
        {"ask": lambda *_: 1, "rate": 10, "timeout": 1, "seconds": 0.01, "callers": 1},
        ("rate", "timeout", "seconds", "callers", "seed"),
    ),
    "load.Traffic": Call(
        lambda **options: load.Traffic(None, **options),
        {"inputs": IMAGES},
        ("rows", "thresholds"),
    ),
    "Settings": Call(
        lambda **options: Settings(**options).check(small_model(), small.dataset()),
        {},
        tuple(field.name for field in dataclasses.fields(Settings)),
    ),
}
# These take a model, which is made once.
WITH_MODEL = {
    "EarlyExitPredictor": Call(
        branchy_tf.EarlyExitPredictor,
        {"thresholds": [0.5]},
        ("model", "thresholds", "criterion", "temperatures"),
    ),
    # Without exits, so that nothing is written where all else is right.
    "saved_model.export": Call(
        lambda model, **options: saved_model.export(
            exits.baseline(model) if isinstance(model, keras.Model) else model, **options
        ),
        {"policy": [0.5], "model_name": "small", "export_dir": "EXPORTS"},
        (
            "model",
            "export_dir",
            "model_name",
            "policy",
            "freeze",
            "input_dtype",
            "precision",
            "max_disagreement",
        ),
    ),
    "stages.split": Call(stages.split, {}, ("model",)),
    "exits.baseline": Call(exits.baseline, {}, ("model",)),
    "exits.exit_names": Call(exits.exit_names, {}, ("model",)),
    "exits.num_classes": Call(exits.num_classes, {}, ("model",)),
    "costs.macs": Call(costs.macs, {}, ("model",)),
    "costs.cumulative_macs": Call(costs.cumulative_macs, {}, ("model",)),
    "training.copy_layers": Call(copy_layers, {"path": "nowhere"}, ("model", "path")),
    "training.train": Call(
        train,
        {"dataset": small.dataset(), "settings": Settings(epochs=1), "folder": None},
        ("model", "dataset", "settings", "folder"),
    ),
}


def _asked(call) -> None:
    with EarlyExitClient("localhost:1", "m", timeout=0.2) as client:
        call(client)


def cases(calls):
    return [
        pytest.param(name, argument, id=f"{name}-{argument}")
        for name, call in calls.items()
        for argument in call.wrong
    ]


def answers_or_refuses(function, arguments, word) -> None:
    """An answer, or an error of one line."""
    try:
        function(**arguments)
    except (BranchyError, ServerError) as error:
        text = str(error)
        assert text, word
        assert "\n" not in text, word
        assert len(text) < 1000, text
    except Exception as error:
        raise AssertionError(f"{word}: {type(error).__name__}: {error}") from error


@pytest.fixture
def _beside(tmp_path, monkeypatch):
    # What takes a path may write there.
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_beside")
@pytest.mark.filterwarnings("ignore:The costs")
@pytest.mark.parametrize(("name", "argument"), cases(CALLS))
def test_every_outcome_is_an_answer_or_one_line(mnist_folder, name, argument):
    call = CALLS[name]
    right = {
        key: mnist_folder if value is DATA else value for key, value in call.right.items()
    }
    for word, value in WRONG.items():
        answers_or_refuses(call.function, right | {argument: value}, word)


@pytest.mark.usefixtures("_beside")
@pytest.mark.parametrize(("name", "argument"), cases(WITH_MODEL))
def test_models_among_them(model, name, argument):
    call = WITH_MODEL[name]
    for word, value in WRONG.items():
        answers_or_refuses(
            call.function, {"model": model} | call.right | {argument: value}, word
        )


@pytest.mark.parametrize("argument", ["model", "heads", "name"])
def test_add_exits(trunk, argument):
    right = {"model": trunk, "heads": {"dense_1": exits.linear_head}}
    for word, value in WRONG.items():
        answers_or_refuses(exits.add_exits, right | {argument: value}, word)


def test_heads_and_places(trunk):
    for word, value in WRONG.items():
        heads = {"dense_1": value}
        answers_or_refuses(exits.add_exits, {"model": trunk, "heads": heads}, word)
        answers_or_refuses(exits.propose_exits, {"model": trunk, "n": value}, word)


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("predict", "images"),
        ("predict", "thresholds"),
        ("predict", "batch_size"),
        ("all_exits", "batch_size"),
        ("logits", "batch_size"),
    ],
)
def test_predictor(predictor, method, argument):
    for word, value in WRONG.items():
        arguments = {"images": IMAGES} | {argument: value}
        answers_or_refuses(getattr(predictor, method), arguments, word)


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory) -> pathlib.Path:
    """A folder with an mnist.npz of few, small images."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 10
    np.savez(
        folder / "mnist.npz",
        x_train=images, y_train=labels, x_test=images, y_test=labels,
    )  # fmt: skip
    return folder


def test_what_fits_is_converted(predictor, mnist_folder):
    for size in (2, np.int8(2), np.array(2)):
        assert len(predictor.predict(IMAGES, batch_size=size)) == 4
    size = np.uint16(8)
    loaded = data.load("mnist", mnist_folder, validation_size=size, seed=np.int64(1))
    assert len(loaded.validation) == 8
    point = thresholds.choose(SCORES, CORRECT, COSTS, min_accuracy=np.float32(0.5))
    assert point.accuracy >= 0.5
    assert zoo.branchy_lenet((np.int64(8), 8, 1), classes=np.int8(3)).name
    settings = Settings(batch_size=np.int64(5), learning_rate=np.float32(0.5))
    assert (type(settings.batch_size), type(settings.learning_rate)) == (int, float)


def test_zero_rows_at_a_time_are_refused(predictor, model):
    for call in (predictor.predict, predictor.all_exits, predictor.logits):
        with pytest.raises(BranchyError, match="`batch_size` must be a whole number of"):
            call(IMAGES, batch_size=0)
    with pytest.raises(BranchyError, match="`batch_size` must be"):
        Settings(batch_size=0)

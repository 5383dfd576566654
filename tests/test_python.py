"""From a fitted model to an answer in Python, and finished runs as objects."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import sys
import warnings

import commands
import keras
import numpy as np
import pytest
import small
import tensorflow as tf

import branchy_tf
from branchy_tf import data, files, training
from branchy_tf.checks.ranges import InputRange
from branchy_tf.errors import BranchyError
from branchy_tf.pipeline import rows
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.saved_model.session import SessionModel
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer


def _bright(rows: int) -> data.Split:
    """Small pictures, brighter from class to class, with little noise."""
    labels = np.arange(rows, dtype=np.int64) % 3
    noise = np.random.default_rng(rows).integers(0, 30, (rows, 8, 8, 1))
    return data.Split(
        (noise + 100 * labels[:, None, None, None]).astype(np.uint8), labels
    )


SMALL = data.Dataset("bright", 3, _bright(60), _bright(30), _bright(12))
VALIDATION = SMALL.validation
# What importing one of them leaves must not matter to the other.
IMPORTS = (
    "import branchy_tf.calibrate",
    "from branchy_tf import calibrate, export",
    "importlib.import_module('branchy_tf.export')",
    "from branchy_tf.calibrate import main",
    "import branchy_tf.pipeline",
)


@pytest.fixture(scope="module")
def fitted() -> keras.Model:
    """A model fitted with plain Keras; do not change it."""
    model = small.model()
    training.compile_exits(model, keras.optimizers.Adam(0.01))
    split = SMALL.train
    labels = training.by_exit(model, split.labels)
    model.fit(split.images, labels, epochs=15, batch_size=10, verbose=0)
    return model


@pytest.fixture(scope="module")
def result(fitted):
    return branchy_tf.calibrate(fitted, SMALL)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_exports_for_devices(fitted, result, tmp_path, quantize):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    version = branchy_tf.export(
        fitted, result, tmp_path / "net", format="litert", quantize=quantize,
        dataset=SMALL, max_accuracy_drop=1.0, max_disagreement=1.0,
    )  # fmt: skip
    described = files.read_json(version / "branchy.json")
    assert described["quantize"] == quantize
    answer = EarlyExitPredictor(version).predict(SMALL.test.images)
    expected = EarlyExitPredictor(fitted, result).predict(SMALL.test.images)
    agreeing = (answer.labels == expected.labels).mean()
    assert agreeing == 1 if quantize == "none" else agreeing > 0.7
    moved = EarlyExitPredictor(version).policy.thresholds != result.policy.thresholds
    # Only a quantised model is calibrated again.
    assert moved == (quantize != "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onnx"}, "format"),
        ({"quantize": "int8"}, "`quantize` goes with format='litert'"),
        (
            {"format": "litert", "freeze": "true"},
            "`freeze` goes with format='saved_model'",
        ),
        ({"format": "litert", "quantize": "int8"}, "`images` and `labels` are missing"),
    ],
)
def test_export_rejects_what_does_not_go_together(
    fitted, result, tmp_path, arguments, message
):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    with pytest.raises(BranchyError, match=message):
        branchy_tf.export(fitted, result, tmp_path / "net", **arguments)
    assert not (tmp_path / "net").exists()


def test_python_end_to_end(fitted, result, tmp_path):
    known = result.validation
    assert known["num_examples"] == 30
    assert known["accuracy"] >= known["final_exit_accuracy"] > 0.6
    assert result.frontier
    assert set(result.policy.inputs) == {"images"}
    expected = EarlyExitPredictor(fitted, result).predict(SMALL.test.images)
    version = branchy_tf.export(fitted, result.policy, tmp_path / "net", dataset=SMALL)
    assert version == tmp_path / "net" / "1"
    served = SessionModel(version).run("serving_default", {"images": SMALL.test.images})
    np.testing.assert_array_equal(served["exit"], expected.exits)
    described = files.read_json(version / "assets.extra" / "branchy.json")
    # As it was trained, which is not all that uint8 can hold.
    assert described["inputs"]["images"] == {
        "shape": [None, 8, 8, 1],
        "dtype": "uint8",
        "low": float(SMALL.train.images.min()),
        "high": float(SMALL.train.images.max()),
        "whole": True,
    }
    result.write(tmp_path / "thresholds.json")
    read = branchy_tf.ExitPolicy.load(tmp_path / "thresholds.json")
    assert read == result.policy
    assert read.inputs == result.policy.inputs


def pairs(*elements):
    return tf.data.Dataset.from_tensor_slices(elements)


X, Y = VALIDATION.images, VALIDATION.labels


def broken():
    yield X[0], Y[0]
    raise RuntimeError("lost")


@pytest.mark.parametrize(
    "given",
    [
        VALIDATION,
        (X, Y),
        [X, Y[:, None].astype("float32"), np.ones(30)],
        (tf.constant(X), {"exit_1": Y, "exit_2": tf.constant(Y)}),
        pairs(X, Y),
        pairs(X, Y).batch(4),
        pairs(X, {"exit_1": Y, "exit_2": Y}, np.ones(30)).batch(3),
        pairs(X, Y[:, None]).batch(4),
    ],
)
def test_takes_rows_in_every_form(fitted, result, given):
    found = rows.validation_rows(given, 3)
    np.testing.assert_array_equal(found.inputs, X)
    np.testing.assert_array_equal(found.labels, Y)
    assert found.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (X, "`dataset` must be a data.Dataset, a data.Split, "),
        (None, "`dataset` must be a data.Dataset"),
        ((X, Y[:-1]), "inputs of 30 rows and 29 labels"),
        ((X, np.eye(3)[Y]), r"expected class indices \[n\]. Pass one-hot labels as"),
        ((X, Y + 1), "from 1 to 3; expected class indices, whole numbers from 0 to 2"),
        ((X, Y + 0.5), "whole numbers from 0 to 2"),
        ((X, ["a"] * 30), "`labels` must be numbers"),
        (("x", Y), "`inputs` must be an array of numbers, rows first"),
        (({"a": X, "b": X[:3]}, Y), "inputs of 3, 30 rows and 30 labels"),
        (pairs(X, Y).repeat(), "`dataset` is infinite"),
        (pairs(X, Y).take(0), "`dataset` is empty"),
        (pairs(X).batch(2), "a tf.data.Dataset whose elements are"),
        (
            tf.data.Dataset.from_generator(
                broken, output_signature=pairs(X, Y).element_spec
            ),
            "`dataset` cannot be read: ",
        ),
    ],
)
def test_refuses_what_are_no_rows(given, expected):
    with pytest.raises(BranchyError, match=expected) as caught:
        rows.validation_rows(given, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_accuracy_drop": 0.1, "knee": True}, "Pass one of `max_accuracy_drop` and"),
        ({"max_accuracy_drop": 1}, "1 percentage point is 0.01"),
        ({"risk": "lost", "max_macs": 1e9}, "`risk` lost goes with `max_accuracy_drop`"),
        ({"max_latency_ms": 1}, "`max_latency_ms` and `latency_batch_size` go together"),
        ({"criterion": "mood"}, "Unknown criterion 'mood'"),
        ({"max_macs": 1}, "No thresholds cost at most 1"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"knee": 1}, "`knee` must be True or False"),
    ],
)
def test_refuses_wrong_arguments(fitted, arguments, expected):
    with pytest.raises(BranchyError, match=expected) as caught:
        branchy_tf.calibrate(fitted, SMALL, **arguments)
    assert "--" not in str(caught.value)


def test_a_latency_budget_is_recorded(fitted):
    found = branchy_tf.calibrate(
        fitted, SMALL, max_latency_ms=100, latency_batch_size=4, fit_temperatures=False
    )
    assert found.budget["latency_batch_size"] == 4
    assert 0 < found.budget["expected_ms"] < 100
    assert found.policy.temperatures == (1.0, 1.0)


def test_refuses_a_final_exit_at_chance_unless_forced():
    untrained = small.model()
    with pytest.raises(BranchyError, match=r"The final exit is at chance: .* pass force"):
        branchy_tf.calibrate(untrained, SMALL)
    found = branchy_tf.calibrate(untrained, SMALL, force=True)
    assert found.validation["num_examples"] == 30


def unit_model() -> keras.Model:
    """A fitted model of small pictures from 0 to 1."""
    model = small.model()
    pixels = keras.Input((8, 8, 1), name="images")
    x = pixels
    outputs = {}
    for layer in model.layers[2:4]:
        x = layer(x)
    outputs["exit_1"] = model.get_layer("exit_1")(x)
    outputs["exit_2"] = model.get_layer("exit_2")(model.get_layer("dense_2")(x))
    made = keras.Model(pixels, outputs, name="unit")
    training.compile_exits(made, keras.optimizers.Adam(0.01))
    labels = training.by_exit(made, SMALL.train.labels)
    made.fit(unit(SMALL.train), labels, epochs=15, batch_size=10, verbose=0)
    return made


def unit(split: data.Split) -> np.ndarray:
    return split.images.astype(np.float32) / 255


def test_inputs_are_taken_as_trained_from_calibrate_to_client(tmp_path):
    model = unit_model()
    train, held = (data.Split(unit(s), s.labels) for s in (SMALL.train, VALIDATION))
    dataset = data.Dataset("unit", 3, train, held, held)
    result = branchy_tf.calibrate(model, dataset)
    known = result.policy.inputs["images"]
    assert isinstance(known, InputRange)
    assert known.high <= 1
    raw = VALIDATION.images.astype(np.float32)
    with pytest.raises(BranchyError, match=r"another scale\. Divide by 255.* pass force"):
        branchy_tf.calibrate(model, (raw, Y), inputs=result.policy.inputs)
    predictor = EarlyExitPredictor(model, result)
    assert len(predictor.predict(held.images)) == 30
    assert len(predictor.predict(0.08 * held.images)) == 30
    with pytest.raises(BranchyError, match=r"Divide by 255.*replace\(inputs=None\)"):
        predictor.predict(raw)
    unchecked = EarlyExitPredictor(model, result.policy.replace(inputs=None))
    assert len(unchecked.predict(raw)) == 30
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictor.predict(8 * held.images)
        predictor.predict(8 * held.images)
    (ours,) = [w for w in caught if "another scale" in str(w.message)]
    assert ours.filename == __file__
    with pytest.raises(BranchyError, match="Divide by 255"):
        branchy_tf.export(model, result, tmp_path / "net", dataset=(raw, Y))
    assert not list(tmp_path.glob("net/[0-9]*"))
    version = branchy_tf.export(model, result, tmp_path / "net", dataset=held)
    with EmbeddedServer(version.parent, "net", port=0) as server:
        address = f"localhost:{server.port}"
        for inputs in (version, result, result.policy.inputs):
            with EarlyExitClient(address, "net", inputs=inputs) as client:
                expected = predictor.predict(held.images).exits
                assert client.predict(held.images).exits.tolist() == expected.tolist()
                with pytest.raises(BranchyError, match="Divide by 255"):
                    client.predict(raw)
                with pytest.raises(BranchyError, match="Divide by 255"):
                    client.all_exits(raw)
                with pytest.warns(UserWarning, match="may have another scale"):
                    client.predict(8 * held.images, timeout=30)
        with EarlyExitClient(address, "net") as client:
            assert len(client.predict(raw)) == 30
    with pytest.raises(BranchyError, match="`inputs` must be a policy, or the path"):
        EarlyExitClient("localhost:1", "net", inputs=3)


def test_shipped_weights_know_their_inputs(shipped):
    policy = branchy_tf.zoo.calibration("branchy_lenet", "mnist").policy
    assert policy.inputs["images"].shape == (None, 28, 28, 1)
    for model in branchy_tf.zoo.list_models():
        for tag in branchy_tf.zoo.list_weights(model):
            known = branchy_tf.zoo.calibration(model, tag).policy.inputs["images"]
            assert (known.low, known.high, known.dtype) == (0, 255, "uint8")
    model = shipped("branchy_lenet", "mnist")
    assert rows.validation_rows((np.zeros((2, 28, 28, 1)), [0, 1]), 10).labels.sum() == 1
    with pytest.raises(BranchyError, match="Multiply by 255 and round"):
        EarlyExitPredictor(model, policy).predict(np.full((1, 28, 28, 1), 0.5))


def script(body: str, *flags: str) -> subprocess.CompletedProcess:
    code = "import importlib, sys, branchy_tf\n" + body
    return subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False
    )


def test_functions_keep_their_names_in_every_order_of_imports():
    # The modules of two commands define flags of the same name.
    reset = "for name in list(flags.FLAGS): delattr(flags.FLAGS, name)\n"
    body = (
        "from absl import flags\n"
        "def check():\n"
        "    for name, file in [('calibrate', 'calibrating'), ('export', 'exporting')]:\n"
        "        function = getattr(branchy_tf, name)\n"
        "        assert function.__module__ == f'branchy_tf.pipeline.{file}', function\n"
    )
    for order in itertools.permutations(IMPORTS, 2):
        body += (
            "for name in [m for m in sys.modules if m in ('branchy_tf.calibrate', "
            f"'branchy_tf.export')]: del sys.modules[name]\n{reset}"
        )
        for line in order:
            body += f"{line}\n{reset}check()\n"
    body += "assert callable(sys.modules['branchy_tf.calibrate'].main)\n"
    done = script(body)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["calibrate", "export"])
def test_the_command_of_the_same_name_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"branchy_tf.{name}", f"--run_dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_the_commands_run_after_the_functions_of_their_names():
    done = script(
        "import os, runpy\n"
        "for name in ('calibrate', 'export'):\n"
        "    getattr(branchy_tf, name)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        sys.argv = [name, '--nonsense']\n"
        "        runpy.run_module(f'branchy_tf.{name}', run_name='__main__')\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    error = "error: Unknown command line flag 'nonsense'"
    assert done.stderr.count(error) == 2, done.stderr
    assert done.stdout.split() == ["1", "1"]
    assert done.returncode == 0


@pytest.mark.parametrize("where", ["tmp", "package", "root"])
def test_the_package_runs_from_any_folder(where, tmp_path):
    package = pathlib.Path(branchy_tf.__file__).parent
    folder = {"tmp": tmp_path, "package": package, "root": pathlib.Path("/")}[where]
    for command in (["branchy_tf"], ["branchy_tf", "predict", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "branchy_tf " in done.stdout


def test_load_reads_what_the_commands_wrote(run_dir, mnist_5k):
    run = branchy_tf.load(run_dir)
    assert "model" not in vars(run)
    assert run.path == run_dir
    assert run.policy.thresholds == tuple(
        files.read_json(run_dir / "thresholds.json")["thresholds"]
    )
    assert run.dataset.name == "mnist_5k"
    np.testing.assert_array_equal(
        run.dataset.validation.labels, mnist_5k.validation.labels
    )
    assert [(r["phase"], r["epoch"]) for r in run.history] == [
        ("baseline", 1), ("joint", 1), ("joint", 2), ("joint", 3),
    ]  # fmt: skip
    assert run.history[0]["exit_1_loss"] is None
    assert 0 < run.history[-1]["val_exit_2_accuracy"] <= 1
    assert run.inputs["images"].high == 255
    assert run.policy.inputs == run.inputs
    answer = EarlyExitPredictor(run.model, run.policy).predict(
        run.dataset.test.images[:200]
    )
    assert (answer.labels == run.dataset.test.labels[:200]).mean() > 0.6


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(BranchyError, match=r"holds no run: neither model\.keras nor"):
        branchy_tf.load(tmp_path)
    with pytest.raises(BranchyError, match="holds no run"):
        branchy_tf.load(tmp_path / "nowhere")
    training.train(
        small.model(), SMALL, training.Settings(epochs=1), training.RunFolder(tmp_path)
    )
    run = branchy_tf.load(tmp_path)
    with pytest.raises(BranchyError, match=r"There are no thresholds: .* Calibrate the"):
        _ = run.policy
    assert run.class_names is None
    for part in ("train", "validation", "test"):
        stored, given = getattr(run.dataset, part), getattr(SMALL, part)
        np.testing.assert_array_equal(stored.images, given.images)
        np.testing.assert_array_equal(stored.labels, given.labels)


@pytest.mark.parametrize("source", ["memory", "npz"])
def test_every_command_takes_a_run_of_python(tmp_path, mnist_5k, source):
    """Data in memory, and data cut with another seed than the training's."""
    if source == "npz":
        path = small.write_npz(tmp_path / "digits.npz", mnist_5k)
        dataset = data.load(str(path), validation_size=150, seed=5)
    else:
        whole = mnist_5k
        cut = np.arange(150)
        dataset = data.Dataset(
            "mine", 10, whole.train.take(np.arange(600)), whole.validation.take(cut),
            whole.test.take(cut), class_names=tuple("abcdefghij"),
        )  # fmt: skip
    run_dir = tmp_path / "run"
    keras.utils.set_random_seed(1)
    training.train(
        branchy_tf.zoo.branchy_lenet(),
        dataset,
        training.Settings(epochs=3, learning_rate=3e-3, batch_size=20, seed=9),
        training.RunFolder(run_dir),
    )
    assert (run_dir / "data.npz").exists() == (source == "memory")
    exported = ["export", f"--export_dir={tmp_path / 'exports'}"]
    timed = ["measure", "--seconds=0.1", "--batch_sizes=2"]
    if source == "memory":  # times each program in a process that imports TensorFlow
        timed = ["benchmark", *timed[1:], "--threads=1", "--peers=", "--nobfloat16"]
    for command in (["calibrate"], ["evaluate"], exported, timed):
        done = commands.run(command[0], f"--run_dir={run_dir}", *command[1:])
        assert done.status == 0, done.stderr
    written = files.read_json(run_dir / "thresholds.json")
    assert written["validation"]["num_examples"] == 150
    assert written["inputs"]["images"]["high"] == 255
    evaluated = files.read_json(run_dir / "evaluation.json")
    assert evaluated["num_examples"] == len(dataset.test)
    run = branchy_tf.load(run_dir)
    assert run.class_names == dataset.class_names
    np.testing.assert_array_equal(
        run.dataset.validation.labels, dataset.validation.labels
    )

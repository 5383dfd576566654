from __future__ import annotations

import json
import shutil

import commands
import keras
import numpy as np
import pytest

import branchy_tf
from branchy_tf import files
from branchy_tf.saved_model import routing


def test_writes_thresholds_and_picture(run_dir):
    calibrated = files.read_json(run_dir / "thresholds.json")
    assert calibrated["exits"] == ["exit_1", "exit_2"]
    assert calibrated["validation"]["num_examples"] == 500
    assert calibrated["budget"] == {"risk": "lost"}
    assert calibrated["guarantee"] is None
    assert len(calibrated["temperatures"]) == 2
    known = calibrated["validation"]
    low, high = known["accuracy_interval"]
    assert low <= known["accuracy"] <= high
    low, high = known["gain_interval"]
    assert low <= known["gain"] <= high
    names = [
        "classes",
        "frontier",
        "gallery",
        "leaving",
        "reliability",
        "scores",
        "training",
        "wrong",
    ]
    pictures = sorted((run_dir / "report").glob("*.png"))
    assert [p.stem for p in pictures] == [f"validation_{name}" for name in names]
    page = (run_dir / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(names)
    # The sliders decide by the calibrated policy, and say what made the figures.
    packed = json.loads(page.split('id="scores">')[1].split("</script>")[0])
    assert packed["thresholds"] == calibrated["thresholds"]
    assert packed["rows"] == 500
    assert f"<td>{branchy_tf.__version__}</td>" in page


@pytest.fixture
def copy(run_dir, tmp_path):
    """The trained run, without thresholds."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model.keras", "train.flags"):
        shutil.copy(run_dir / name, folder)
    return folder


def test_guarantees_with_the_best_criterion(copy):
    flags = ["--criterion=all", "--max_accuracy_drop=0.03", "--guarantee=0.9"]
    done = commands.run("calibrate", f"--run_dir={copy}", *flags)
    assert done.status == 0, done.stderr
    calibrated = files.read_json(copy / "thresholds.json")
    assert f"Chosen: {calibrated['criterion']}." in done.stdout
    assert "Guaranteed: with probability 90% the risk is at most 3.00%" in done.stdout
    promised = calibrated["guarantee"]
    assert promised["level"] == 0.9
    assert promised["num_tuning"] == promised["num_test"] == 250
    assert promised["thresholds"] == calibrated["thresholds"]
    page = (copy / "report.html").read_text()
    assert "Guaranteed" in page
    assert "max_prob" in page


def test_respects_a_latency_budget(copy):
    flags = ["--max_latency_ms=99", "--latency_batch_size=8", "--nofit_temperatures"]
    done = commands.run("calibrate", f"--run_dir={copy}", *flags)
    assert done.status == 0, done.stderr
    assert "per image expected, from the stages' median times at batch 8" in done.stdout
    calibrated = files.read_json(copy / "thresholds.json")
    assert calibrated["budget"]["latency_batch_size"] == 8
    assert 0 < calibrated["budget"]["expected_ms"] < 99
    assert calibrated["temperatures"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max_macs=3"], "No thresholds cost at most 3"),
        (["--min_accuracy=1.5"], "from 0 to 1"),
        (["--min_accuracy=0.9", "--max_macs=3e5"], "not both"),
        (["--knee", "--min_accuracy=0.9", "--max_macs=3e5"], "not all"),
        (["--risk=lost", "--max_macs=3e5"], "`risk` lost goes with"),
        (["--max_macs=0"], "must be a number above 0. Received 0"),
        (["--max_latency_ms=1"], "`latency_batch_size` go together"),
        (["--exit_rates=0.6,0.3"], "one for each early exit (1 here)"),
        (["--exit_rates=most"], "expected comma-separated numbers"),
        (["--guarantee=sure", "--max_accuracy_drop=0.1"], "expected a probability"),
        (["--guarantee=0.9", "--min_accuracy=0.9"], "goes with `max_accuracy_drop`"),
        (
            ["--guarantee=0.9", "--max_accuracy_drop=0.1", "--risk=accuracy"],
            "Pass the `risk` lost",
        ),
        (["--criterion=mood"], "mood"),
    ],
)
def test_rejects_invalid_arguments(run_dir, flags, expected):
    before = (run_dir / "thresholds.json").read_text()
    assert expected in commands.run("calibrate", f"--run_dir={run_dir}", *flags).error
    assert (run_dir / "thresholds.json").read_text() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--exit_rates=60,30"], "60 % is 0.6"),
        (["--exit_rates=0.6,0.5"], "with a sum of at most 1"),
        (["--max_accuracy_drop=1"], "1 percentage point is 0.01"),
        (["--min_accuracy=95"], "95 % is 0.95"),
        (["--guarantee=95", "--max_accuracy_drop=0.01"], "95 % is 0.95"),
    ],
)
def test_rejects_percentages_before_reading_the_run(tmp_path, flags, expected):
    done = commands.run("calibrate", f"--run_dir={tmp_path / 'missing'}", *flags)
    assert expected in done.error


def test_needs_a_run(tmp_path):
    assert (
        "holds no model.keras" in commands.run("calibrate", f"--run_dir={tmp_path}").error
    )


def npz(path, labels):
    images = np.zeros((len(labels), 28, 28), np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return path


def test_rejects_rows_of_one_class_and_damaged_weights(copy, tmp_path):
    # The only row of another class is not in the validation split.
    labels = np.where(np.arange(60) == 0, 1, 0)
    other = npz(tmp_path / "one.npz", labels)
    flags = [f"--run_dir={copy}", f"--dataset={other}", "--validation_size=10"]
    assert "10 rows of 1 class(es)" in commands.run("calibrate", *flags).error
    assert not (copy / "thresholds.json").exists()

    model = keras.models.load_model(copy / "model.keras", compile=False)
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    model.save(copy / "model.keras")
    assert "holds NaN; expected" in commands.run("calibrate", f"--run_dir={copy}").error
    assert not (copy / "thresholds.json").exists()


def test_refuses_data_that_the_model_knows_nothing_of(copy, mnist_5k, tmp_path):
    """Shuffled labels, which leave the final exit at chance."""
    split = mnist_5k.train.take(np.arange(300))
    labels = np.random.default_rng(0).permutation(split.labels)
    path = tmp_path / "shuffled.npz"
    np.savez(
        path, x_train=split.images, y_train=labels, x_test=split.images, y_test=labels
    )
    flags = [f"--run_dir={copy}", f"--dataset={path}", "--validation_size=150"]
    error = commands.run("calibrate", *flags).error
    assert "The final exit is at chance: it is correct on " in error
    assert "always answering their most frequent class is on" in error
    assert not (copy / "thresholds.json").exists()
    done = commands.run("calibrate", *flags, "--force")
    assert done.status == 0, done.stderr
    assert "The final exit is at chance" in done.stderr
    assert (copy / "thresholds.json").exists()


def test_compares_the_data_with_those_of_the_training(copy, run_dir, mnist_5k, tmp_path):
    shutil.copy(run_dir / "data.json", copy)
    known = files.read_json(copy / "data.json")
    assert known["dataset"] == "mnist_5k"
    assert known["inputs"]["images"] == {
        "shape": [None, 28, 28, 1],
        "dtype": "uint8",
        "low": 0.0,
        "high": 255.0,
        "whole": True,
    }
    # As if the training's pixels had been 0...1.
    known["inputs"]["images"] |= {"high": 1.0}
    files.write_json(copy / "data.json", known)
    flags = ["calibrate", f"--run_dir={copy}"]
    error = commands.run(*flags).error
    assert "`images` holds values from 0 to 255, but the model was trained on" in error
    assert "Divide by 255. To go on nevertheless, pass force." in error
    assert commands.run(*flags, "--force").status == 0
    assert files.read_json(copy / "thresholds.json")["inputs"]["images"]["high"] == 1
    # The predictor compares too.
    assert "Divide by 255." in commands.run("evaluate", f"--run_dir={copy}").error


def misroute() -> None:
    """Makes graphs that treat the chosen thresholds as 0."""
    routing.exits_early = lambda scores, limits: scores < 0 * limits


def test_rejects_a_graph_that_misroutes_rows(copy):
    done = commands.run("calibrate", f"--run_dir={copy}", prepare=misroute)
    assert done.status == 1, done.stderr
    assert "The routed graph sends" in done.error
    assert "Exit rates 0.0%, 100.0%; expected" in done.error
    assert not (copy / "thresholds.json").exists()

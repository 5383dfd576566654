from __future__ import annotations

import json
import pathlib
import re
import shutil

import commands
import keras
import numpy as np
import pytest
import small
from PIL import Image, ImageColor
from scipy import special, stats

from branchy_tf import exits, files, scoring
from branchy_tf.plots.style import BLUE
from branchy_tf.zoo import branchy_lenet

# B-LeNet's multiply-adds up to each exit, branches on the way included, and those
# of LeNet; counted by hand from the layers' sizes.
MACS = [220_150, 1_247_720]
FULL_MACS = 1_140_070


@pytest.fixture
def copy(run_dir, tmp_path) -> pathlib.Path:
    """The trained and calibrated run, to be damaged."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model.keras", "baseline.keras", "train.flags", "thresholds.json"):
        shutil.copy(run_dir / name, folder)
    return folder


@pytest.fixture(scope="module")
def digits_npz(mnist_5k, tmp_path_factory) -> pathlib.Path:
    """A small data set, which loads faster."""
    return small.write_npz(tmp_path_factory.mktemp("data") / "digits.npz", mnist_5k)


def evaluated(folder: pathlib.Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_evaluation_is_complete_and_correct(copy, trained, mnist_5k):
    done = commands.run("evaluate", f"--run_dir={copy}")
    assert done.status == 0, done.stderr
    result = evaluated(copy)

    # Recomputes everything from the logits.
    calibrated = files.read_json(copy / "thresholds.json")
    (limit,) = calibrated["thresholds"]
    temperature = calibrated["temperatures"][0]
    test = mnist_5k.test
    logits = trained.predict(test.images, verbose=0)
    answers = {name: logits[name].argmax(axis=1) for name in ("exit_1", "exit_2")}
    powers = np.exp(logits["exit_1"].astype(float) / temperature)
    shares = powers / powers.sum(axis=1, keepdims=True)
    leaves = -(shares * np.log(shares)).sum(axis=1) < limit
    right = np.where(leaves, answers["exit_1"], answers["exit_2"]) == test.labels
    alone = [(answers[name] == test.labels).mean() for name in answers]
    rates = [leaves.mean(), 1 - leaves.mean()]
    assert 0.05 < rates[0] < 0.95, "choose other epochs: this shows little"

    for name in ("accuracy", "macs", "gain", "baseline_accuracy"):
        assert isinstance(result[name], float), name
    for name in ("num_examples", "full_macs"):
        assert isinstance(result[name], int), name
    assert result["dataset"] == "mnist_5k"
    assert result["split"] == "test"
    assert result["num_examples"] == 1000
    assert result["exits"] == ["exit_1", "exit_2"]
    assert result["criterion"] == "entropy"
    assert result["thresholds"] == pytest.approx([limit])
    assert result["accuracy"] == pytest.approx(right.mean())
    assert result["exit_rates"] == pytest.approx(rates)
    assert sum(result["exit_rates"]) == pytest.approx(1)
    assert result["exit_accuracies"] == pytest.approx(alone)
    assert result["leaving_accuracies"] == pytest.approx(
        [right[leaves].mean(), right[~leaves].mean()]
    )
    assert result["macs"] == pytest.approx(np.dot(rates, MACS))
    assert result["full_macs"] == FULL_MACS
    assert result["gain"] == pytest.approx(FULL_MACS / np.dot(rates, MACS))
    assert result["accuracy_drop"] == pytest.approx(alone[1] - right.mean())
    assert result["accuracy_interval"] == pytest.approx(scoring.wilson_interval(right))
    assert result["accuracy_drop_interval"] == pytest.approx(
        scoring.paired_interval(answers["exit_2"] == test.labels, right)
    )
    # The table agrees.
    assert f"accuracy {right.mean():.2%} on 1,000 test images" in done.stdout
    assert f"{rates[0]:.2%}" in done.stdout

    # The count on the scores matches the routing. Only rows within 1e-4 of a threshold
    # may differ.
    stored = result["stored_scores"]
    assert set(stored["rows_routed_elsewhere"]) <= set(stored["rows_near_a_threshold"])
    doubt = len(stored["rows_routed_elsewhere"])
    assert abs(stored["accuracy"] - result["accuracy"]) * 1000 <= doubt + 1e-9
    assert abs(stored["macs"] - result["macs"]) <= doubt * MACS[1] / 1000 + 1e-6
    assert f"accuracy {stored['accuracy']:.2%}" in done.stdout
    assert "within 0.0001 of a threshold" in done.stdout

    page = (copy / "report.html").read_text()
    assert "test split</h2>" in page
    assert page.count('src="data:image/png;base64,') == page.count('src="') == 7
    assert "http" not in page
    assert "<script" not in page


def test_lists_rows_close_to_a_threshold(copy, trained, mnist_5k, digits_npz):
    images = mnist_5k.test.images[:100]
    logits = np.asarray(trained(images)["exit_1"], float)
    shares = special.softmax(logits, axis=1)
    scores = stats.entropy(shares, axis=1)
    row = int(np.argsort(scores)[50])
    done = commands.run(
        "evaluate", f"--run_dir={copy}", f"--thresholds={scores[row]}",
        "--temperatures=1,1", f"--dataset={digits_npz}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    result = evaluated(copy)
    assert result["temperatures"] == [1.0, 1.0]
    assert row in result["stored_scores"]["rows_near_a_threshold"]
    assert re.search(rf"\b{row}\b.* within 0\.0001 of a threshold", done.stdout)


def test_uses_the_trained_baseline(copy, run_dir, mnist_5k, digits_npz):
    baseline = keras.models.load_model(run_dir / "baseline.keras", compile=False)
    test = mnist_5k.test.take(np.arange(100))
    answers = baseline.predict(test.images, verbose=0).argmax(axis=1)
    done = commands.run(
        "evaluate", f"--run_dir={copy}", "--thresholds=inf", f"--dataset={digits_npz}"
    )
    assert done.status == 0, done.stderr
    result = evaluated(copy)
    expected = (answers == test.labels).mean()
    assert result["baseline_accuracy"] == pytest.approx(expected)
    assert f"the trained baseline: {expected:.2%}" in done.stdout
    # With inf, every row takes the first exit.
    assert result["thresholds"] == ["inf"]
    assert result["exit_rates"] == [1.0, 0.0]
    assert result["accuracy"] == result["exit_accuracies"][0]
    assert result["macs"] == MACS[0]
    assert result["leaving_accuracies"][1] is None


def test_compares_with_another_baseline(copy, mnist_5k, digits_npz, tmp_path):
    path = tmp_path / "other.keras"
    exits.baseline(branchy_lenet(weights="mnist")).save(path)
    answers = keras.models.load_model(path).predict(mnist_5k.test.images[:100])
    done = commands.run(
        "evaluate", f"--run_dir={copy}", f"--baseline={path}", "--thresholds=inf",
        f"--dataset={digits_npz}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    expected = (answers.argmax(axis=1) == mnist_5k.test.labels[:100]).mean()
    assert f"the trained baseline: {expected:.2%}" in done.stdout


@pytest.mark.parametrize("name", ["model.keras", "nowhere.keras"])
def test_rejects_an_invalid_baseline(copy, name, digits_npz):
    done = commands.run(
        "evaluate", f"--run_dir={copy}", f"--baseline={copy / name}",
        f"--dataset={digits_npz}",
    )  # fmt: skip
    expected = {
        "model.keras": "is not a network from inputs of shape (28, 28, 1) to one output",
        "nowhere.keras": "expected a Keras model",
    }
    assert expected[name] in done.error
    assert not (copy / "evaluation.json").exists()


def test_evaluates_a_weights_file(run_dir, tmp_path, digits_npz):
    done = commands.run(
        "evaluate", "--model=branchy_lenet", f"--weights={run_dir / 'model.keras'}",
        f"--dataset={digits_npz}", "--thresholds=0", f"--run_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["evaluation.json", "report", "report.html"]
    result = evaluated(tmp_path / "out")
    assert result["exit_rates"] == [0.0, 1.0]
    assert result["accuracy"] == result["exit_accuracies"][1]
    assert result["accuracy_drop"] == 0
    assert result["macs"] == MACS[1]
    assert result["baseline_accuracy"] is None


@pytest.mark.parametrize(
    ("flags", "has_curve"),
    [
        ([], True),
        (["--thresholds=0.2"], True),
        # The packaged thresholds are for other scores.
        (["--thresholds=0.2", "--criterion=margin"], False),
    ],
)
def test_plots_the_frontier_of_packaged_weights(tmp_path, digits_npz, flags, has_curve):
    done = commands.run(
        "evaluate", "--model=branchy_lenet", "--weights=mnist",
        f"--dataset={digits_npz}", f"--run_dir={tmp_path}", *flags,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    with Image.open(tmp_path / "report" / "test_frontier.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # Nothing else is blue.
    blue = (pixels == ImageColor.getrgb(BLUE)).all(axis=-1)
    assert blue.any() == has_curve


def test_writes_nothing_without_a_run_dir(run_dir, digits_npz, tmp_path):
    done = commands.run(
        "evaluate", "--model=branchy_lenet", f"--weights={run_dir / 'model.keras'}",
        f"--dataset={digits_npz}", "--thresholds=0.2", cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert "on 100 test images" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--thresholds=0.1,0.2"], "`thresholds` has shape (2,); expected 1"),
        (["--thresholds=-0.1"], "`thresholds` must be at least 0 and not NaN"),
        (["--thresholds=nan"], "`thresholds` must be at least 0 and not NaN"),
        (["--temperatures=1"], "`temperatures` must be 2 positive numbers"),
        (["--temperatures=1,0"], "`temperatures` must be 2 positive numbers"),
        (["--thresholds=low"], "--thresholds=low: expected comma-separated numbers"),
        (["--thresholds=0.1", "--criterion=mood"], "Unknown criterion 'mood'."),
        (["--criterion=margin"], "Calibrate with --criterion=margin."),
        (["--dataset=mnist5k"], "Did you mean mnist_5k?"),
        (["--tresholds=0.1"], "Unknown command line flag 'tresholds'"),
        (["--validation_size=many"], "--validation_size=many"),
        (["thresholds=0.1"], "Unexpected argument 'thresholds=0.1'."),
    ],
)
def test_rejects_invalid_arguments(copy, flags, expected):
    assert expected in commands.run("evaluate", f"--run_dir={copy}", *flags).error
    assert not (copy / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "Pass --run_dir of a training, or --model."),
        (["--model=branchy_lenet"], "--model=branchy_lenet needs --weights"),
        (["--model=branchy_lennet", "--weights=W"], "Did you mean branchy_lenet?"),
        (["--model=branchy_lenet", "--weights=none.keras"], "There is no weights file"),
        (
            ["--model=branchy_lenet", "--weights=W"],
            "There are no calibrated thresholds for branchy_lenet. Pass --thresholds=0.1",
        ),
        (
            ["--model=branchy_lenet", "--weights=W", "--thresholds=0.1"],
            "--dataset is missing",
        ),
    ],
)
def test_rejects_an_incomplete_choice(run_dir, tmp_path, flags, expected):
    flags = [flag.replace("=W", f"={run_dir / 'model.keras'}") for flag in flags]
    assert expected in commands.run("evaluate", *flags, cwd=tmp_path).error


def edited(path: pathlib.Path, **changes) -> None:
    files.write_json(path, files.read_json(path) | changes)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda run: (run / "thresholds.json").unlink(),
            "Run python -m branchy_tf.calibrate with the same --run_dir, or pass",
        ),
        (
            lambda run: edited(
                run / "thresholds.json", exits=["exit_1", "exit_2", "exit_3"]
            ),
            "is for a model with exits exit_1, exit_2, exit_3; this one has exit_1, "
            "exit_2. Calibrate this model.",
        ),
        (
            lambda run: edited(run / "thresholds.json", thresholds=[0.1, 0.2]),
            "`thresholds` has shape (2,); expected 1",
        ),
        (
            lambda run: edited(run / "thresholds.json", weights="0" * 16),
            "was made for other weights than this model has",
        ),
        (
            lambda run: edited(run / "thresholds.json", criterion="mood"),
            "Unknown criterion 'mood'",
        ),
        (
            lambda run: edited(run / "thresholds.json", temperatures=[1.0]),
            "`temperatures` must be 2 positive numbers",
        ),
        (
            lambda run: (run / "thresholds.json").write_text('{"criterion": "entr'),
            "thresholds.json cannot be read as JSON",
        ),
        (
            lambda run: (run / "thresholds.json").write_text('{"exits": []}'),
            "thresholds.json lacks criterion, thresholds",
        ),
        (
            lambda run: edited(run / "thresholds.json", frontier=[{"accuracy": 1}]),
            "expected a list of objects with thresholds, accuracy and macs",
        ),
        (
            lambda run: (run / "train.flags").write_text(
                "--dataset=mnist_5k\n--seed=1e3\n"
            ),
            "train.flags has --seed=1e3; expected a whole number of at least 0.",
        ),
        (
            lambda run: (run / "train.flags").write_bytes(b"--seed=\xff\xfe"),
            "train.flags is not UTF-8",
        ),
        (
            lambda run: (run / "train.flags").unlink(),
            "holds no train.flags. Pass the --run_dir of a training.",
        ),
        (
            lambda run: (run / "model.keras").unlink(),
            "holds no model.keras. Its training is not finished",
        ),
        (
            lambda run: (run / "model.keras").write_bytes(
                (run / "model.keras").read_bytes()[:5000]
            ),
            "model.keras cannot be read as a Keras model",
        ),
        (
            lambda run: (run / "baseline.keras").write_bytes(b"damaged"),
            "baseline.keras cannot be read as a Keras model",
        ),
    ],
    ids=[
        "not calibrated", "other exits", "other number", "other weights",
        "other criterion", "other temperatures", "damaged thresholds",
        "incomplete thresholds", "damaged frontier", "seed no number",
        "flags not UTF-8", "no flags", "no model", "damaged model",
        "damaged baseline",
    ],
)  # fmt: skip
def test_names_the_damage_of_a_run(copy, damage, expected):
    damage(copy)
    assert expected in commands.run("evaluate", f"--run_dir={copy}").error
    assert not (copy / "evaluation.json").exists()


def test_rejects_a_folder_without_a_run(tmp_path):
    error = commands.run("evaluate", f"--run_dir={tmp_path}").error
    assert "holds no model.keras. Pass the --run_dir of a finished training." in error


def other_data(path: pathlib.Path, side: int, classes: int) -> pathlib.Path:
    images, labels = np.zeros((40, side, side), np.uint8), np.arange(40) % classes
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return path


def test_rejects_data_that_do_not_fit_the_model(copy, tmp_path):
    wide = other_data(tmp_path / "wide.npz", 32, 10)
    error = commands.run("evaluate", f"--run_dir={copy}", f"--dataset={wide}").error
    assert "reads inputs of shape (28, 28, 1)" in error
    more = other_data(tmp_path / "more.npz", 28, 12)
    error = commands.run("evaluate", f"--run_dir={copy}", f"--dataset={more}").error
    # Otherwise every row of the other classes would silently count as wrong.
    assert "branchy_lenet has 10 classes, but" in error


def test_rejects_a_model_with_one_exit(copy):
    plain = exits.baseline(small.model())
    plain.save(copy / "model.keras")
    error = commands.run("evaluate", f"--run_dir={copy}").error
    assert "expected a dict of exit_1 ... exit_N" in error


def test_given_thresholds_use_the_runs_criterion(run_dir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    done = commands.run("calibrate", f"--run_dir={copy}", "--criterion=margin")
    assert done.status == 0, done.stderr
    flags = [f"--run_dir={copy}", "--thresholds=0.5"]
    assert commands.run("evaluate", *flags).status == 0
    by_run = files.read_json(copy / "evaluation.json")
    assert by_run["criterion"] == "margin"
    assert commands.run("evaluate", *flags, "--criterion=entropy").status == 0
    by_flag = files.read_json(copy / "evaluation.json")
    assert by_flag["criterion"] == "entropy"
    assert by_run["exit_rates"] != by_flag["exit_rates"]

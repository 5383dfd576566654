from __future__ import annotations

import math

import numpy as np
import pytest

from branchy_tf import files, thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy

EXITS = ["exit_1", "exit_2", "exit_3"]


def calibration(limits):
    policy = ExitPolicy(thresholds=limits)
    return thresholds.Calibration(policy, EXITS, {"accuracy": 0.5}, [])


def test_round_trip_with_infinity(tmp_path):
    path = tmp_path / "thresholds.json"
    calibration([0.25, math.inf]).write(path)
    assert '"inf"' in path.read_text()
    assert thresholds.Calibration.read(path, EXITS) == calibration([0.25, math.inf])


def test_a_file_without_temperatures_means_one(tmp_path):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    value = files.read_json(path)
    for name in ("temperatures", "budget", "guarantee", "weights"):
        del value[name]
    files.write_json(path, value)
    assert thresholds.Calibration.read(path, EXITS, "any") == calibration([0.25, 1.0])
    assert thresholds.Calibration.read(path, EXITS).temperatures == (1.0, 1.0, 1.0)


def test_a_file_for_other_weights_is_refused(tmp_path):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    files.write_json(path, files.read_json(path) | {"weights": "ab"})
    assert thresholds.Calibration.read(path, EXITS, "ab").policy.weights == "ab"
    with pytest.raises(BranchyError, match="other weights than this model has"):
        thresholds.Calibration.read(path, EXITS, "cd")


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(BranchyError, match="calibrate"):
        thresholds.Calibration.read(tmp_path / "thresholds.json", EXITS)


def test_another_models_file_is_refused(tmp_path):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    with pytest.raises(BranchyError, match="this one has exit_1, exit_2"):
        thresholds.Calibration.read(path, EXITS[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": [0.1]}, "expected 2"),
        ({"thresholds": [0.1, -1]}, "at least 0"),
        ({"criterion": None}, "lacks criterion"),
        ({"criterion": "mood"}, "Unknown criterion 'mood'"),
        ({"thresholds": [0.1, 1.4e-45]}, "TensorFlow takes it as 0"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    value = files.read_json(path) | change
    files.write_json(path, {k: v for k, v in value.items() if v is not None})
    with pytest.raises(BranchyError, match=message):
        thresholds.Calibration.read(path, EXITS)


def drawn_labels(logits, seed=0):
    """Labels that are drawn with the probabilities of the logits."""
    gumbel = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + gumbel).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_finds_how_much_too_sure_an_exit_is(temperature):
    logits = np.random.default_rng(1).normal(scale=3, size=(4000, 5))
    labels = drawn_labels(logits)
    found = thresholds.fit_temperature(temperature * logits, labels)
    assert found == pytest.approx(temperature, rel=0.08)


def test_an_exit_without_errors_stays_finite():
    found = thresholds.fit_temperature(np.eye(3) * 2, np.arange(3))
    assert 0.05 <= found < 0.1


def test_large_logits_do_not_overflow():
    logits = np.random.default_rng(1).normal(scale=3, size=(4000, 5))
    labels = drawn_labels(logits)
    near = thresholds.fit_temperature(5 * logits, labels)
    with np.errstate(over="raise"):
        far = thresholds.fit_temperature(5 * logits + 1e4, labels)
    assert far == pytest.approx(near, rel=1e-6)


def test_refuses_rows_that_do_not_fit():
    with pytest.raises(BranchyError, match="one row at least"):
        thresholds.fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(BranchyError, match="labels"):
        thresholds.fit_temperature(np.zeros((4, 3)), np.zeros(3, int))

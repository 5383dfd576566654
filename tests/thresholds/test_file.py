from __future__ import annotations

import math

import pytest

from branchy_tf import files, thresholds
from branchy_tf.errors import BranchyError

EXITS = ["exit_1", "exit_2", "exit_3"]


def calibration(limits):
    return thresholds.Calibration("entropy", EXITS, limits, {"accuracy": 0.5}, [])


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
    assert thresholds.Calibration.read(path, EXITS).temperatures == [1.0, 1.0, 1.0]


def test_a_file_for_other_weights_is_refused(tmp_path):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    files.write_json(path, files.read_json(path) | {"weights": "ab"})
    assert thresholds.Calibration.read(path, EXITS, "ab").weights == "ab"
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
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    value = files.read_json(path) | change
    files.write_json(path, {k: v for k, v in value.items() if v is not None})
    with pytest.raises(BranchyError, match=message):
        thresholds.Calibration.read(path, EXITS)

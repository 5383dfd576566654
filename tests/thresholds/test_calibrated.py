from __future__ import annotations

import math

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


def test_rejects_a_file_for_other_weights(tmp_path):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    files.write_json(path, files.read_json(path) | {"weights": "ab"})
    assert thresholds.Calibration.read(path, EXITS, "ab").policy.weights == "ab"
    with pytest.raises(BranchyError, match="other weights than this model has"):
        thresholds.Calibration.read(path, EXITS, "cd")


def test_missing_file_error_says_how_to_create_it(tmp_path):
    with pytest.raises(BranchyError, match="Calibrate the model first"):
        thresholds.Calibration.read(tmp_path / "thresholds.json", EXITS)


def test_rejects_another_models_file(tmp_path):
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
        ({"criterion": 3}, "criterion is 3; expected a string. Calibrate again"),
        ({"exits": "exit_1"}, "exits is 'exit_1'; expected a list of strings"),
        ({"exits": [1, 2, 3]}, r"exits is \[1, 2, 3\]; expected a list of strings"),
        ({"thresholds": "0.1,0.2"}, "expected a list of numbers"),
        ({"thresholds": ["0.1", "0.2"]}, "expected a list of numbers"),
        ({"thresholds": [True, False]}, "expected a list of numbers"),
        ({"thresholds": [[0.1, 0.2]]}, "expected a list of numbers"),
        ({"thresholds": {"exit_1": 0.1}}, "expected a list of numbers"),
        ({"temperatures": [1, 1]}, "must be 3 positive numbers"),
        ({"temperatures": "1"}, "expected a list of numbers"),
        ({"validation": []}, "validation is .*; expected an object"),
        ({"budget": 1}, "budget is 1; expected an object"),
        ({"guarantee": 0.95}, "guarantee is 0.95; expected an object or null"),
        ({"weights": 7}, "weights is 7; expected a string"),
        ({"frontier": {}}, "frontier is {}; expected a list of objects with thresholds"),
        ({"frontier": [{"accuracy": 1, "macs": 2}]}, "expected a list of objects with"),
        ({"frontier": [["x" * 999]]}, r"x\.\.\.; expected a list of objects with"),
        ({"criterion": "mood"}, "Unknown criterion 'mood'"),
        ({"thresholds": [0.1, 1.4e-45]}, "TensorFlow treats it as 0"),
    ],
)
def test_rejects_a_damaged_file(tmp_path, change, message):
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    value = files.read_json(path) | change
    files.write_json(path, {k: v for k, v in value.items() if v is not None})
    with pytest.raises(BranchyError, match=message) as caught:
        thresholds.Calibration.read(path, EXITS)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("name", ["criterion", "thresholds", "temperatures", "weights"])
@pytest.mark.parametrize("value", [7, True, "1,2", [[1]], ["1"], {"a": 1}])
def test_a_policy_is_as_strict_about_its_fields(tmp_path, name, value):
    if name in ("criterion", "weights") and isinstance(value, str):
        value = ["entropy"]
    path = tmp_path / "thresholds.json"
    calibration([0.25, 1.0]).write(path)
    files.write_json(path, files.read_json(path) | {name: value})
    read = []
    for reader in (ExitPolicy.load, lambda p: thresholds.Calibration.read(p, EXITS)):
        with pytest.raises(BranchyError, match=f"{name} is .*; expected a ") as caught:
            reader(path)
        read.append(str(caught.value))
    assert read[0] == read[1]


def test_a_folder_is_no_file(tmp_path):
    for reader in (ExitPolicy.load, lambda p: thresholds.Calibration.read(p, EXITS)):
        with pytest.raises(BranchyError) as caught:
            reader(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path} is a folder; expected a file such as "
            f"{tmp_path / 'thresholds.json'}."
        )

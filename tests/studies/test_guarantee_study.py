from __future__ import annotations

import shutil

import commands

from branchy_tf import files


def test_shows_violations_and_a_table_of_choices(run_dir, tmp_path):
    for name in ("model.keras", "train.flags"):
        shutil.copy(run_dir / name, tmp_path)
    done = commands.run(
        "zoo.studies.guarantee", f"--run_dir={tmp_path}", "--max_accuracy_drop=0.03",
        "--rows=400", "--resamplings=20", "--fixed_thresholds=0.025",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    result = files.read_json(tmp_path / "guarantee_study.json")
    names = [row["choice"] for row in result["resampled"]]
    assert names == ["plain", "guaranteed", "expectation"]
    assert result["population"] == 1500
    assert [row["choice"] for row in result["test"]] == [
        "plain, no accuracy drop", "plain", "guaranteed, 0.95",
        "guaranteed, expectation", "fixed",
    ]  # fmt: skip
    for row in result["test"]:
        for name in ("accuracy", "accuracy_gain", "gain"):
            low, high = row[f"{name}_interval"]
            assert low <= row[name] <= high
        # What is lost lowers the accuracy below the final exit by at most as much.
        assert row["accuracy_gain"] >= -row["lost"]
        assert f"{row['choice']} " in done.stdout
        assert f" {100 * row['accuracy_gain']:+.2f} (" in done.stdout


def test_rejects_invalid_flags_in_one_line(run_dir):
    study = f"--run_dir={run_dir}"
    for flags, expected in (
        (["--rows=100"], "598 in all. There are 100"),
        (["--fixed_thresholds=0.1,0.2"], "expected 1"),
    ):
        assert expected in commands.run("zoo.studies.guarantee", study, *flags).error
    assert "--run_dir is missing" in commands.run("zoo.studies.guarantee").error

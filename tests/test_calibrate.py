from __future__ import annotations

import commands
import pytest

from branchy_tf import files


def test_writes_thresholds_and_picture(run_dir):
    calibrated = files.read_json(run_dir / "thresholds.json")
    assert calibrated["exits"] == ["exit_1", "exit_2"]
    assert calibrated["validation"]["num_examples"] == 500
    assert (run_dir / "calibration.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max_macs=3"], "No thresholds cost at most 3"),
        (["--min_accuracy=1.5"], "from 0 to 1"),
        (["--min_accuracy=0.9", "--max_macs=3e5"], "not both"),
        (["--risk=lost", "--max_macs=3e5"], "--risk=lost goes with"),
        (["--criterion=mood"], "mood"),
    ],
)
def test_refuses(run_dir, flags, expected):
    before = (run_dir / "thresholds.json").read_text()
    assert expected in commands.run("calibrate", f"--run_dir={run_dir}", *flags).error
    assert (run_dir / "thresholds.json").read_text() == before


def test_needs_a_run(tmp_path):
    assert (
        "holds no model.keras" in commands.run("calibrate", f"--run_dir={tmp_path}").error
    )

"""The demo with fewer epochs."""

from __future__ import annotations

import re
import subprocess
import sys

from branchy_tf import files


def test_demo_goes_all_the_way(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "branchy_tf.demo", "--epochs=3", "--baseline_epochs=1",
         f"--output_dir={tmp_path / 'demo'}"],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for step in range(1, 7):
        assert f"[{step}/6]" in done.stdout

    result = files.read_json(tmp_path / "demo/run/evaluation.json")
    row = re.search(r"^T = [^:]+: calibrated\s+([\d.]+)%\s+([\d.]+)%", done.stdout, re.M)
    # The server's answers agree with the evaluation, which uses no server.
    assert f"{row[1]}%" == f"{result['accuracy']:.1%}"
    assert f"{row[2]}%" == f"{result['exit_rates'][0]:.1%}"
    everyone = re.search(r"^T = inf: .*?\s([\d.]+)%\s+100\.0%", done.stdout, re.M)
    assert f"{everyone[1]}%" == f"{result['exit_accuracies'][0]:.1%}"

    for name in ("run/model.keras", "run/report.html", "run/training.png",
                 "exports/branchy_lenet/1/saved_model.pb"):  # fmt: skip
        assert (tmp_path / "demo" / name).is_file(), name
    # The demo stops its server.
    assert "Stopped." in done.stderr

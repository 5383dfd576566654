"""The example of docs/device.md runs."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import keras

from branchy_tf import ExitPolicy, litert

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/device.md"


def test_the_program_of_the_page_runs_in_litert_alone(lenet: keras.Model, tmp_path):
    policy = ExitPolicy(thresholds=[0.5])
    litert.export(lenet, tmp_path / "exports", "branchy_lenet", policy)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (program,) = (block for block in blocks if "Interpreter(" in block)
    assert "branchy_tf" not in program
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(re.match(r"\(\d, 'exit_[12]', \d", line) for line in lines)

"""Training on several devices gives the losses of one, shortened."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import commands

SCRIPT = pathlib.Path(__file__).with_name("devices.py")


def test_mirrored_devices_train_like_one(tmp_path):
    done = commands.run(
        "load.devices", "--strategy=mirrored", f"--folder={tmp_path}",
        "--cases=distilled,branches_only",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    found = json.loads((tmp_path / "devices.json").read_text())["differences"]
    assert len(found) == 2
    assert max(found.values()) <= 1e-3


def test_devices_and_processes_under_jax_train_like_one(tmp_path):
    """Two processes with two devices each, of which one is killed; then one with two."""
    done = subprocess.run(
        [
            sys.executable, SCRIPT, "--strategy=data_parallel", "--processes",
            "--cases=distilled", f"--folder={tmp_path}",
        ],
        env=os.environ
        | {
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "devices.json").read_text())
    assert set(found["differences"]) == {"distilled", "two processes"}
    assert max(found["differences"].values()) <= 1e-3
    other = found["processes"]
    assert other["killed_after"] < 20
    assert other["status"] == 1
    assert other["printed"] == (
        "error: Process 1 has ended, so process 0 ends too. Start all processes again "
        "with the same flags: the training resumes from its last backup."
    )

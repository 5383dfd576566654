from __future__ import annotations

import commands
import pytest

from branchy_tf import files


def test_times_both_phases_and_the_batches(digits_npz, tmp_path):
    done = commands.run(
        "zoo.studies.training_speed", "--model=branchy_lenet", f"--dataset={digits_npz}",
        "--batch_size=8", "--augmentation=shift", "--precision=float32", "--jit=off",
        "--jit=on", "--steps=2", "--seconds=0", f"--run_dir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    written = files.read_json(tmp_path / "training_speed.json")
    assert [(row["phase"], row["jit"]) for row in written["steps"]] == [
        ("baseline", "off"), ("joint", "off"),
    ]  # fmt: skip
    # TensorFlow compiles no deterministic step.
    assert "Skipped: Keras on tensorflow does not compile" in done.stderr
    for row in [*written["steps"], written["batches"]]:
        assert 0 < row["low"] <= row["ms_per_step"] <= row["high"]
    assert all(0 <= row["waiting"] < 1 for row in written["steps"])
    (found,) = written["joint_over_baseline"]
    assert (written["macs"], written["full_macs"]) == (1_247_720, 1_140_070)
    assert f"{found['allowed']:.2f}" == "1.26"
    assert f"float32, jit off: {found['ratio']:.2f}, " in done.stdout
    assert "Batches are made" in done.stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--model is missing"),
        (["--model=branchy_lenet"], "--dataset is missing"),
        (["--jit=perhaps"], "flag --jit=perhaps"),
        (
            ["--model=branchy_lenet", "--dataset=mnist_5k", "--batch_size=0"],
            "`batch_size` must be a whole number of at least 1. Received 0.",
        ),
    ],
)
def test_rejects_invalid_flags_in_one_line(flags, expected):
    assert expected in commands.run("zoo.studies.training_speed", *flags).error

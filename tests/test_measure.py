from __future__ import annotations

import commands

from branchy_tf import files

LENET = "--model=branchy_lenet", "--weights=mnist"


def test_prints_and_writes_what_each_stage_costs(tmp_path):
    flags = [
        *LENET, "--dataset=mnist_5k", f"--run_dir={tmp_path}", "--batch_sizes=1,8",
        "--seconds=0.1",
    ]  # fmt: skip
    done = commands.run("measure", *flags)
    assert done.status == 0, done.stderr
    assert "1,027,570" in done.stdout
    assert "stage ending in" in done.stdout
    assert "ms per image, batch 8" in done.stdout
    written = files.read_json(tmp_path / "costs.json")
    assert [stage["macs"] for stage in written["stages"]] == [220_150, 1_027_570]
    assert written["full_macs"] == 1_140_070
    assert {row["batch"] for row in written["milliseconds"]} == {1, 8}


def test_rejects_invalid_batch_sizes():
    for sizes in ("0", "inf", "1.5"):
        done = commands.run("measure", *LENET, f"--batch_sizes={sizes}")
        assert "whole numbers of at least 1" in done.error

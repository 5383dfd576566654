from __future__ import annotations

import commands
import pytest
from PIL import Image

from branchy_tf import files


def benchmark(served, *flags):
    return commands.run(
        "benchmark", f"--server={served.address}", "--model_name=branchy_lenet",
        "--callers=1,3", "--rates=60", "--seconds=0.5", *flags,
    )  # fmt: skip


def test_the_command_compares_and_draws(served, run_copy):
    done = benchmark(served, f"--run_dir={run_copy}", "--rows=2", "--thresholds=0.3")
    assert done.status == 0, done.stderr
    written = files.read_json(run_copy / "load.json")
    assert written["rows"] == 2
    loops = [(r["loop"], r["callers"], r["rate"]) for r in written["results"]]
    assert loops == [("closed", 1, None), ("closed", 3, None), ("open", None, 60)]
    for row in written["results"]:
        assert row["answered"] == row["requests"] > 10
        assert row["errors"] == {}
        assert row["wrong"] == 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["rows_per_second"] == pytest.approx(2 * row["requests_per_second"])
    assert "60/s arrive" in done.stdout
    with Image.open(run_copy / "load.png") as picture:
        assert picture.width == 768


def test_the_command_notices_another_model(served, tmp_path):
    done = benchmark(
        served, "--model=branchy_lenet", "--weights=mnist", "--dataset=mnist_5k",
        f"--run_dir={tmp_path}",
    )  # fmt: skip
    assert "answers differ from those of the model" in done.error
    rows = files.read_json(tmp_path / "load.json")["results"]
    assert all(row["wrong"] for row in rows)


def test_the_command_runs_without_a_reference_model(served, tmp_path):
    done = benchmark(served, "--dataset=mnist_5k")
    assert done.status == 0, done.stderr
    assert done.stdout.count("callers") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rates=0"], "per second above 0"),
        (["--rates=inf"], "per second above 0"),
        (["--rates=many"], "comma-separated numbers"),
        (["--callers=0"], "whole numbers"),
        (["--model_name="], "--model_name is missing"),
        (["--model_name=vgg"], "does not serve model 'vgg'"),
        ([], "--dataset is missing"),
        (["--server=localhost:1"], "No server answers"),
    ],
)
def test_bad_flags_are_one_line(served, flags, message):
    assert message in benchmark(served, *flags).error

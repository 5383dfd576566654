from __future__ import annotations

import csv
import importlib.util

import commands
import pytest

from branchy_tf import files

NAMES = {
    "early_exit",
    "early_exit_bfloat16",
    "forced_exit_1",
    "forced_exit_2",
    "frozen",
    "half_exit_1",
    "keras_export",
    "stage_1",
    "stage_2",
    "unrouted",
}
NEEDED = {
    "litert": "ai_edge_litert",
    "onnxruntime": "onnxruntime",
    "pytorch": "torch",
}
PEERS = {peer for peer, name in NEEDED.items() if importlib.util.find_spec(name)}
# The other engines without exits, or with the exits and thresholds of PyTorch.
FULL = PEERS | {f"{peer}_int8" for peer in PEERS - {"pytorch"}}
LITERT = {"early_exit_litert", "early_exit_litert_int8"} if "litert" in PEERS else set()
LITERT_STAGES = {
    f"{name}_stage_{k}"
    for name in ("litert", "litert_int8")
    for k in (1, 2)
    if "litert" in PEERS
}


def test_every_contender_is_timed_and_compared(run_copy):
    done = commands.run(
        "benchmark",
        f"--run_dir={run_copy}",
        "--batch_sizes=1,4",
        "--threads=1",
        "--seconds=0.2",
    )
    assert done.status == 0, done.stderr
    written = files.read_json(run_copy / "benchmark.json")
    times = {(r["contender"], r["batch"]): r for r in written["results"]}
    one = {name for name, batch in times if batch == 1}
    others = FULL | LITERT | LITERT_STAGES
    assert one == NAMES - {"half_exit_1"} | others
    assert {name for name, batch in times if batch == 4} == NAMES | others
    for row in times.values():
        assert 0 < row["low"] <= row["ms_per_image"] <= row["high"]
    assert len(written["gains"]) == 4 + 2 * len(FULL)
    for gain in written["gains"]:
        key = (gain["over"], gain["batch"])
        measured = times["early_exit", gain["batch"]]["ms_per_image"]
        assert gain["gain"] == pytest.approx(times[key]["ms_per_image"] / measured)
        assert gain["share_of_ideal"] == pytest.approx(gain["gain"] / gain["ideal_gain"])
    short = {
        batch: times["early_exit_bfloat16", batch]["ms_per_image"] for batch in (1, 4)
    }
    for gain in written["bfloat16_gains"]:
        ms = times[gain["over"], gain["batch"]]["ms_per_image"]
        assert gain["gain"] == pytest.approx(ms / short[gain["batch"]])
    assert len(written["bfloat16_gains"]) == 2 * (3 + len(FULL))
    assert "Gain of early exit in bfloat16:" in done.stdout
    assert written["machine"]["cores"] >= 1
    assert "early_exit" in done.stdout
    assert set(written["left_out"]) == set(NEEDED) - PEERS
    for peer in written["left_out"]:
        assert f"{peer} is left out: {NEEDED[peer]}" in done.stdout
    assert {row["contender"] for row in written["memory"]} == FULL | LITERT | {
        "early_exit",
        "early_exit_bfloat16",
        "frozen",
        "keras_export",
    }
    check_litert(written, times, done.stdout)
    with open(run_copy / "benchmark.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(written["results"])
    assert "tensorflow=" in rows[0]["versions"]
    assert (run_copy / "benchmark.png").stat().st_size > 10_000


def check_litert(written, times, text):
    assert {row["contender"] for row in written["litert_gains"]} == LITERT
    for gain in written["litert_gains"]:
        over = gain["over"]
        int8 = [name for name in FULL if name.endswith("_int8")]
        names = int8 if over == "fastest_int8" else [over]
        ms = min(times[name, gain["batch"]]["ms_per_image"] for name in names)
        measured = times[gain["contender"], gain["batch"]]["ms_per_image"]
        assert gain["gain"] == pytest.approx(ms / measured)
        assert gain["share_of_ideal"] == pytest.approx(gain["gain"] / gain["ideal_gain"])
    for row in written["quality"]:
        assert row["num_examples"] == 1000
        assert row["float32_accuracy"] - row["accuracy"] < 0.02
    if LITERT:
        exact, int8 = written["quality"]
        assert int8["bytes"] <= 0.3 * exact["bytes"]
        assert exact["labels"] == 1
        assert "Gain of early exit in LiteRT:" in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_sizes=0", "whole numbers"),
        ("--batch_sizes=1.5", "whole numbers"),
        ("--threads=two", "comma-separated numbers"),
        ("--batch_sizes=5000", "only 1000 test images"),
        ("--peers=tvm", "Known: litert, onnxruntime, pytorch"),
    ],
)
def test_rejects_invalid_flags(run_dir, flag, message):
    done = commands.run("benchmark", f"--run_dir={run_dir}", flag)
    assert message in done.error

from __future__ import annotations

import commands
import pytest
from PIL import Image

from branchy_tf import files
from zoo.studies import drifting

SMALL = ("--requests=400", "--window=100", "--streams=2", "--budget=0.9")


def test_tells_what_each_contender_does(tmp_path):
    flags = ["--model=branchy_lenet", "--weights=mnist", "--dataset=mnist_5k"]
    done = commands.run("zoo.studies.tuner", *flags, *SMALL, f"--run_dir={tmp_path}")
    assert done.status == 0, done.stderr
    result = files.read_json(tmp_path / "tuner_study.json")
    drifts = ["none", *drifting.DRIFTS, "noise, slowly"]
    assert list(result["streams"]) == drifts
    contenders = ["static, plain", "static", "tuned", "tuned, from nothing", "oracle",
                  "oracle, every window"]  # fmt: skip
    assert [(row["drift"], row["thresholds"]) for row in result["table"]] == [
        (drift, name) for drift in drifts for name in contenders
    ]
    for row in result["table"]:
        # Two streams of four windows, without the first.
        assert row["windows"] == 6
        assert row["broken"] <= 6
        if row["thresholds"] == "oracle, every window":
            assert row["broken"] == 0
            assert row["share_of_oracle_every_window"] == pytest.approx(1)
        assert f"| {row['thresholds']} " in done.stdout
    # Too few requests to learn from: nothing is risked.
    cold = result["streams"]["none"][0]["tuned, from nothing"]
    assert cold["agreement"] == [1] * 4
    assert cold["macs"] == [result["exit_macs"][-1]] * 4
    with Image.open(tmp_path / "tuner_study.png") as picture:
        assert picture.width == 1200
        assert len(picture.getcolors(1 << 24)) > 5


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--run_dir is missing"),
        (["--run_dir=x", "--requests=300", "--window=100"], "an even number of windows"),
        (["--run_dir=x"], "holds no model.keras"),
        (["--run_dir=x", "--model=branchy_lenet", "--weights=mnist"], "--dataset is mi"),
    ],
)
def test_refuses_in_one_line(tmp_path, flags, expected):
    assert expected in commands.run("zoo.studies.tuner", *flags, cwd=tmp_path).error
    assert not list(tmp_path.iterdir())


def test_refuses_a_budget_before_it_computes(tmp_path):
    flags = ["--model=branchy_lenet", "--weights=mnist", "--dataset=mnist_5k"]
    done = commands.run(
        "zoo.studies.tuner", *flags, "--budget=1", "--run_dir=x", cwd=tmp_path
    )
    assert "nobody can promise 1" in done.error

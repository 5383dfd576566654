from __future__ import annotations

import commands
import numpy as np
import pytest

from branchy_tf import files
from zoo.studies import drifting, tuner_plot

SMALL = ("--requests=400", "--window=100", "--streams=2", "--budget=0.9")


def test_reports_every_contender_for_every_drift(tmp_path):
    flags = ["--model=branchy_lenet", "--weights=mnist", "--dataset=mnist_5k"]
    done = commands.run("zoo.studies.tuner", *flags, *SMALL, f"--run_dir={tmp_path}")
    assert done.status == 0, done.stderr
    result = files.read_json(tmp_path / "tuner_study.json")
    drifts = ["none", *drifting.DRIFTS, "gradual noise"]
    assert list(result["streams"]) == drifts
    contenders = ["static, plain", "static", "tuned", "tuned, cold start", "oracle",
                  "oracle, every window"]  # fmt: skip
    assert [(row["drift"], row["thresholds"]) for row in result["table"]] == [
        (drift, name) for drift in drifts for name in contenders
    ]
    for row in result["table"]:
        # Two streams of four windows each, without the first window.
        assert row["windows"] == 6
        assert row["broken"] <= 6
        if row["thresholds"] == "oracle, every window":
            assert row["broken"] == 0
            assert row["share_of_oracle_every_window"] == pytest.approx(1)
        assert f"| {row['thresholds']} " in done.stdout
    # Too few requests to learn from, so no row exits early.
    cold = result["streams"]["none"][0]["tuned, cold start"]
    assert cold["agreement"] == [1] * 4
    assert cold["macs"] == [result["exit_macs"][-1]] * 4
    assert (tmp_path / "tuner_study.png").is_file()


def test_plots_agreement_and_cost_of_each_contender(tmp_path, saved_figures):
    results = {
        drift: {
            name: {"agreement": np.array([0.99, first]), "macs": np.array([1e6, 3e6])}
            for name, first in (("static", 0.95), ("tuned", 1.0))
        }
        for drift in ("none", "noise")
    }
    tuner_plot.plot(tmp_path / "tuner.png", results, budget=0.98, window=2000)
    (figure,) = saved_figures
    agreement, macs = figure.axes[2:]
    assert agreement.get_title(loc="left") == "drift: noise"
    static, tuned, budget = agreement.lines
    assert list(static.get_xdata()) == [2, 4]
    np.testing.assert_allclose(static.get_ydata(), [99, 95])
    np.testing.assert_allclose(tuned.get_ydata(), [99, 100])
    np.testing.assert_allclose(budget.get_ydata(), 98)
    assert list(macs.lines[1].get_ydata()) == [1, 3]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--run_dir is missing"),
        (["--run_dir=x", "--requests=300", "--window=100"], "an even number of windows"),
        (["--run_dir=x"], "holds no model.keras"),
        (["--run_dir=x", "--model=branchy_lenet", "--weights=mnist"], "--dataset is mi"),
    ],
)
def test_rejects_invalid_flags_in_one_line(tmp_path, flags, expected):
    assert expected in commands.run("zoo.studies.tuner", *flags, cwd=tmp_path).error
    assert not list(tmp_path.iterdir())


def test_rejects_a_budget_before_scoring(tmp_path):
    flags = ["--model=branchy_lenet", "--weights=mnist", "--dataset=mnist_5k"]
    done = commands.run(
        "zoo.studies.tuner", *flags, "--budget=1", "--run_dir=x", cwd=tmp_path
    )
    assert "Received 1.0." in done.error

from __future__ import annotations

import csv
import os

import commands
import numpy as np
import pytest
from PIL import Image

from branchy_tf.errors import BranchyError
from branchy_tf.thresholds import exit_indices
from zoo import cards
from zoo.studies import growing_networks as growing
from zoo.studies.growing_networks import Setup
from zoo.studies.growth_plot import plot

NOTHING = dict.fromkeys(growing.FIGURES)


def row(axis, size, **figures):
    return {"axis": axis, "size": size} | NOTHING | figures


def test_measures_prints_plots_and_writes_the_page(tmp_path):
    page = tmp_path / "growth.md"
    page.write_text(f"Before.\n{cards.BEGIN}\nold\n{cards.END}\nAfter.\n")
    small = ["--axis=exits", "--exits=3,2", "--rows=50", "--seconds=0.01", "--repeats=1"]
    done = commands.run("zoo.studies.growth", *small, f"--run_dir={tmp_path}")
    assert done.status == 0, done.stderr
    with open(tmp_path / "growth.csv", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["axis"], first["size"], second["size"]) == ("exits", "2", "3")
    assert float(first["batch"]) == Setup().batch
    for name in ("call_ms", "ready_s", "export_s", "calibrate_s"):
        assert float(first[name]) > 0
    # The third exit adds a stage and a gate to the graph.
    assert float(second["graph_mb"]) > 1.3 * float(first["graph_mb"])
    assert float(second["version_mb"]) > float(second["graph_mb"])
    assert "| exits   | call (ms)" in done.stdout
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert text.partition(cards.BEGIN)[2].splitlines()[1] in done.stdout
    with Image.open(tmp_path / "growth.png") as image:
        assert image.width == 768


def test_steps_distinguish_linear_from_worse():
    rows = [
        row("exits", 2, call_ms=3.0, ready_s=1.0),
        row("exits", 4, call_ms=6.0, ready_s=4.0),
        row("exits", 8, call_ms=13.0, ready_s=32.0),
        row("batch", 1, call_ms=1.0),
        row("batch", 10, call_ms=11.1),
    ]
    found = {(s["axis"], s["figure"], s["to"]): s for s in growing.steps(rows)}
    assert len(found) == 5
    assert found["exits", "call_ms", 4]["slope"] == pytest.approx(1)
    assert found["exits", "ready_s", 4]["slope"] == pytest.approx(2)
    assert found["exits", "ready_s", 8]["slope"] == pytest.approx(3)
    # 10 % above linear counts as noise.
    assert [key for key, step in found.items() if step["worse"]] == [
        ("exits", "ready_s", 4),
        ("exits", "ready_s", 8),
        ("batch", "call_ms", 10),
    ]


@pytest.mark.parametrize(("batch", "exits"), [(1, 4), (32, 4), (32, 20), (8, 2)])
def test_equal_numbers_of_rows_take_each_exit(batch, exits):
    thresholds = growing.mixed_thresholds(batch, exits)
    scores = np.random.default_rng(0).random((batch, exits), np.float32)
    counts = np.bincount(exit_indices(scores, thresholds), minlength=exits)
    assert counts.sum() == batch
    assert counts.max() - counts.min() <= 1


def test_measures_shared_sizes_once():
    jobs = growing.jobs({"batch": [1, 32], "exits": [2, 4], "pixels": [32]})
    assert jobs == [
        ("export", Setup()),
        ("serve", Setup(batch=1)),
        ("serve", Setup()),
        ("export", Setup(exits=2)),
        ("serve", Setup(exits=2)),
        ("calibrate", Setup(exits=2)),
        ("calibrate", Setup()),
    ]


def test_reports_a_process_that_dies(monkeypatch):
    monkeypatch.setitem(growing._MEASURES, "serve", os._exit)
    with pytest.raises(BranchyError, match="ran out of memory"):
        growing._in_a_process("serve", 1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--run_dir is missing"),
        (["--run_dir=x", "--exits=1,2"], "--exits must be at least 2"),
        (
            ["--run_dir=x", "--classes=ten"],
            "--classes=ten: expected comma-separated numbers",
        ),
        (["--run_dir=x", "--batch_sizes=0"], "whole numbers of at least 1"),
    ],
)
def test_rejects_invalid_flags_in_one_line(tmp_path, flags, expected):
    assert expected in commands.run("zoo.studies.growth", *flags, cwd=tmp_path).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("several", [False, True])
def test_plots_each_figure_over_its_axis(tmp_path, saved_figures, several):
    rows = [
        {"axis": axis, "size": n, "a": n / 7, "b": n**1.5}
        | {"c": 0 if several and n == 1 else n, "d": None if axis == "y" else 2}
        for axis in ("x", "y")
        for n in (1, 8, 64)
    ]
    names = {"a": "call", "b": "superlinear", "c": "memory", "d": "constant"}
    plot(tmp_path / "growth.png", rows if several else rows[:1], names)
    (figure,) = saved_figures
    lines = [{line.get_label(): line for line in axes.lines} for axes in figure.axes]
    assert len(lines) == (2 if several else 1)
    # A figure is not drawn over an axis that it does not depend on.
    assert ["constant" in panel for panel in lines] == [True, False][: len(lines)]
    for panel in lines:
        x, y = panel["superlinear"].get_data()
        assert list(x) == ([1, 8, 64] if several else [1])
        np.testing.assert_allclose(y, np.array(x) ** 1.5)
        # A figure that starts at 0 has no multiples of its first value.
        assert ("memory" in panel) == (not several)

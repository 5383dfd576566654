from __future__ import annotations

import csv

import commands
import pytest

from branchy_tf.zoo import branchy_lenet
from zoo import cards
from zoo.studies import training_plot, training_variants


def test_trains_each_variant_with_each_seed(tmp_path, digits_npz):
    page = tmp_path / "training_modes.md"
    page.write_text(f"# Modes\n{cards.BEGIN}\n{cards.END}\n")
    flags = ("--study=training_modes", f"--dataset={digits_npz}", "--seeds=1,2")
    flags += ("--train_rows=64", "--epochs=1", "--baseline_epochs=1")
    names = ["joint", "branches_only, dense branch"]
    flags += tuple(f"--variant={name}" for name in names)
    done = commands.run("zoo.studies.training", *flags, f"--study_dir={tmp_path}")
    assert done.status == 0, done.stderr
    with open(tmp_path / "training_modes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (name, seed) for name in names for seed in ("1", "2")
    ]
    for row in rows:
        assert 0 <= float(row["exit_1"]) <= 1
        assert 0 <= float(row["exit_1_rate"]) <= 1
    # Seeds change the weights.
    assert len({row["exit_2"] for row in rows}) > 1
    # Only the branch differs in cost.
    assert [row["exit_1_macs"] for row in rows] == ["220150"] * 2 + ["113750"] * 2
    text = page.read_text()
    for name in names:
        assert f"| {name} " in text
    assert (tmp_path / "training_modes.png").is_file()


def test_plots_each_training_by_variant(tmp_path, saved_figures):
    rows = [
        {"group": group, "variant": name, "exit_1": a, "exit_2": b, "gain": gain}
        for group, name, a, b, gain in (
            ("mode", "joint", 0.5, 0.75, 1.5),
            ("mode", "joint", 0.25, 1.0, 2.0),
            ("mode", "detached", 0.125, 0.5, 1.25),
            ("place", "early", 0.375, 0.625, 1.0),
        )
    ]
    training_plot.plot(tmp_path / "study.png", rows)
    (figure,) = saved_figures
    accuracy, gain, _, other_gain = figure.axes
    exit_1, exit_2 = accuracy.lines
    assert list(exit_1.get_xdata()) == [50, 25, 12.5]
    assert list(exit_2.get_xdata()) == [75, 100, 50]
    # Variants of a group run from top to bottom.
    assert [label.get_text() for label in accuracy.get_yticklabels()] == [
        "detached", "joint",
    ]  # fmt: skip
    assert list(gain.lines[0].get_xdata()) == [1.5, 2.0, 1.25]
    assert list(gain.lines[0].get_ydata()) == [1, 1, 0]
    assert list(other_gain.lines[0].get_xdata()) == [1.0]


def test_table_shows_the_mean_and_half_the_range():
    common = {"group": "mode", "variant": "joint", "exit_1_macs": 220150}
    rows = [
        common | {"exit_1": 0.9, "exit_2": 0.96, "exit_1_rate": 0.5, "gain": 1.5},
        common | {"exit_1": 0.94, "exit_2": 0.97, "exit_1_rate": 0.6, "gain": 2.5},
    ]
    (line,) = training_variants.table(rows).splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "mode", "joint", "220,150", "92.00 ± 2.00", "96.50 ± 0.50", "55.0 ± 5.0",
        "2.00 ± 0.50",
    ]  # fmt: skip


def test_builds_the_exits_of_every_variant():
    for variants in training_variants.STUDIES.values():
        for variant in variants:
            model = branchy_lenet(exits=training_variants.builder_exits(variant))
            assert model.output_names == ["exit_1", "exit_2"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--study is missing"),
        (["--study=branches"], "--dataset is missing"),
        (["--study=branches", "--dataset=mnist_5k"], "There is no page zoo/studies/bra"),
        (["--study=other"], "flag --study=other"),
        (
            ["--study=branches", "--study_dir=pages", "--dataset=x", "--variant=joint"],
            "Study branches has no variant 'joint'. Known: 1, 0.1; 1, 0.3;",
        ),
    ],
)
def test_rejects_invalid_flags_in_one_line(tmp_path, flags, expected):
    page = tmp_path / "pages" / "branches.md"
    page.parent.mkdir()
    page.touch()
    assert expected in commands.run("zoo.studies.training", *flags, cwd=tmp_path).error
    assert list(tmp_path.rglob("*")) == [page.parent, page]

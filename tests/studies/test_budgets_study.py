from __future__ import annotations

import csv
import dataclasses

import commands
import numpy as np

from branchy_tf import scoring
from zoo import cards
from zoo.studies import budget_curves, budgets_plot


def answers(rows: int, seed: int) -> scoring.Answers:
    """Three exits of growing accuracy, whose scores say something of it."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows)
    right = random.random((rows, 3)) < [0.6, 0.75, 0.9]
    given = np.where(right, labels[:, None], (labels[:, None] + 1) % 4)
    scores = np.where(right, 0.3, 0.5) * random.random((rows, 3))
    return scoring.Answers(np.eye(4)[given], scores.astype("float32"), labels)


def test_the_search_is_the_better_choice_on_the_split_that_it_is_made_on():
    split = answers(400, 1)
    rows = budget_curves.compare(split, split, [1, 2, 4])
    assert [row["ratio"] for row in rows] == list(budget_curves.RATIOS)
    for row in rows:
        assert row["geometric_macs"] == row["validation_macs"]
        assert row["searched_macs"] <= row["validation_macs"] * (1 + 1e-9)
        assert row["searched_accuracy"] >= row["geometric_accuracy"]
    # Larger ratios send more rows on.
    spent = [row["validation_macs"] for row in rows]
    assert spent == sorted(spent)
    assert spent[0] < 1.1 < 2.5 < spent[-1]


def test_nothing_is_chosen_on_the_test_split():
    validation, test = answers(400, 1), answers(300, 2)
    rows = budget_curves.compare(validation, test, [1, 2, 4])
    half = dataclasses.replace(
        test,
        probabilities=test.probabilities[:150],
        scores=test.scores[:150],
        labels=test.labels[:150],
    )
    others = budget_curves.compare(validation, half, [1, 2, 4])
    assert [r["validation_macs"] for r in rows] == [r["validation_macs"] for r in others]
    assert rows != others


def test_says_how_the_two_ways_differ():
    rows = [
        {
            "geometric_accuracy": 0.9,
            "geometric_macs": 100.0,
            "searched_accuracy": 0.9 + gain,
            "searched_macs": cost,
        }
        for gain, cost in ((0.01, 90.0), (-0.002, 110.0))
    ]
    assert budget_curves.summary(rows) == (
        "The searched thresholds are +0.40 points more accurate on average (-0.20 to "
        "+1.00), at 1.000 times the multiply-adds (0.900 to 1.100)."
    )


def test_draws_both_ways_and_every_exit(tmp_path, saved_figures):
    rows = budget_curves.compare(answers(200, 1), answers(200, 2), [1e6, 2e6, 4e6])
    budgets_plot.plot(tmp_path / "b.png", rows, [(1e6, 0.5), (2e6, 0.75), (4e6, 1.0)])
    (figure,) = saved_figures
    searched, geometric, alone = figure.axes[0].lines
    assert len(searched.get_xdata()) == len(geometric.get_xdata()) == 39
    assert list(alone.get_ydata()) == [50, 75, 100]
    assert list(geometric.get_xdata()) == sorted(geometric.get_xdata())


def test_the_command_writes_its_page(run_dir, tmp_path):
    page = tmp_path / "budgets.md"
    page.write_text(f"# Budgets\n{cards.BEGIN}\n{cards.END}\n")
    done = commands.run(
        "zoo.studies.budgets", f"--run_dir={run_dir}", f"--study_dir={tmp_path}"
    )
    assert done.status == 0, done.stderr
    with open(tmp_path / "budgets.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    text = page.read_text()
    assert "| exit_2 " in text
    assert "| 1.00 " in text
    assert "points more accurate on average" in text
    assert (tmp_path / "budgets.png").is_file()


def test_rejects_an_unknown_criterion(tmp_path):
    done = commands.run("zoo.studies.budgets", "--criterion=luck", cwd=tmp_path)
    assert "flag --criterion=luck" in done.error
    assert not list(tmp_path.iterdir())

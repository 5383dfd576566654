from __future__ import annotations

import pathlib

import pytest

from branchy_tf import files, zoo
from branchy_tf.errors import BranchyError
from zoo import cards

ZOO = pathlib.Path(__file__).resolve().parents[2] / "zoo"
EVALUATION = {
    "criterion": "entropy",
    "exits": ["exit_1", "exit_2"],
    "exit_macs": [250, 1100],
    "exit_accuracies": [0.9, 0.95],
    "thresholds": [0.25],
    "exit_rates": [0.8, 0.2],
    "leaving_accuracies": [0.96, None],
    "accuracy": 0.955,
    "accuracy_interval": [0.95, 0.96],
    "accuracy_drop": -0.005,
    "accuracy_drop_interval": [-0.01, 0.0],
    "num_examples": 1000,
    "baseline_accuracy": 0.94,
    "macs": 420.0,
    "full_macs": 1000,
    "gain": 2.381,
}


def test_pages_show_the_figures_of_their_evaluations():
    sets = {model: zoo.list_weights(model) for model in zoo.list_models()}
    for path, text in cards.pages(ZOO, sets).items():
        assert path.read_text(encoding="utf-8") == text, "run python -m zoo.publish"


def test_evaluations_use_the_packaged_thresholds():
    for model in zoo.list_models():
        for tag, found in zoo.list_packaged(model).items():
            evaluation = files.read_json(cards.evaluation_file(ZOO, model, tag))
            thresholds = files.read_json(found.thresholds)
            assert evaluation["thresholds"] == thresholds["thresholds"]
            assert evaluation["criterion"] == thresholds["criterion"]
            assert evaluation["baseline_accuracy"] == found.baseline_accuracy
            assert evaluation["dataset"] == found.dataset


def test_card_shows_each_exit():
    text = cards.card_figures(EVALUATION)
    assert "| exit_1 | 250             | 90.00%           | 0.25" in text
    assert "**95.50%** on 1,000 test images" in text
    assert "0.50 points above the final exit (95 % interval: 0.00 to 1.00 above)" in text
    assert "a gain of **2.38x** over the network without branches" in text


def test_weights_without_a_trained_baseline_show_none():
    untrained = EVALUATION | {"baseline_accuracy": None}
    assert "trained baseline" not in cards.card_figures(untrained)
    table = cards.zoo_table({("m", "t"): untrained}, {("m", "t"): None})
    row = table.split("\n")[-1]
    assert [cell.strip() for cell in row.split("|")][3:6] == ["95.50%", "95.00%", "-"]


def test_gain_in_time_uses_one_batch_size_and_thread_count(tmp_path):
    path = cards.timings_file(tmp_path, "m", "t")
    assert cards.time_gain(path) is None
    path.parent.mkdir()
    rows = [
        {"contender": name, "batch": batch, "threads": threads, "ms_per_image": ms}
        for name, ms in (("early_exit", 2.0), ("keras_export", 5.0))
        for batch, threads in ((1, 1), (32, 1), (32, 2))
    ]
    for row in rows:
        if (row["batch"], row["threads"]) != cards.TIMED:
            row["ms_per_image"] = 7.0
    files.write_csv(path, rows)
    assert cards.time_gain(path) == 2.5
    files.write_csv(path, rows[:1])
    with pytest.raises(
        BranchyError, match="must time keras_export and early_exit at batch 32"
    ):
        cards.time_gain(path)


def test_table_has_the_papers_figures():
    key = ("branchy_lenet", "mnist")
    text = cards.zoo_table({key: EVALUATION}, {key: 2.5})
    (row,) = [line for line in text.splitlines() if "mnist" in line]
    assert "[2.50x](results/branchy_lenet_mnist.csv)" in row
    assert "2.50x" not in cards.zoo_table({key: EVALUATION}, {key: None})
    for figure in (
        "95.50%",
        "94.00%",
        "80.0%",
        "2.38x",
        "99.20% → 99.25%, 94.3% exit early",
    ):
        assert figure in row


def test_figures_replace_the_text_between_the_markers():
    page = f"a\n{cards.BEGIN}\nold\n{cards.END}\nb\n"
    once = cards.with_figures(page, "new", "x.md")
    assert once == f"a\n{cards.BEGIN}\nnew\n{cards.END}\nb\n"
    assert cards.with_figures(once, "new", "x.md") == once


def test_writes_figures_into_existing_pages_only(tmp_path):
    page = tmp_path / "page.md"
    assert not cards.write_figures(page, "new")
    assert not page.exists()
    page.write_text(f"Before.\n{cards.BEGIN}\nold\n{cards.END}\nAfter.\n")
    assert cards.write_figures(page, "new")
    assert page.read_text() == f"Before.\n{cards.BEGIN}\nnew\n{cards.END}\nAfter.\n"


def test_rejects_a_page_without_markers():
    with pytest.raises(BranchyError, match="has no place for its figures"):
        cards.with_figures("nothing", "new", "x.md")


def test_names_missing_pages(tmp_path):
    (tmp_path / "m").mkdir()
    files.write_json(tmp_path / "m" / "t.evaluation.json", EVALUATION)
    with pytest.raises(BranchyError) as caught:
        cards.pages(tmp_path, {"m": ["t"]})
    assert str(tmp_path / "README.md") in str(caught.value)
    assert str(tmp_path / "m" / "t.md") in str(caught.value)

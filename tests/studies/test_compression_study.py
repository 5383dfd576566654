from __future__ import annotations

import csv
import importlib.util

import commands
import numpy as np
import pytest

from branchy_tf import scoring, zoo
from branchy_tf.predictor import LogitsPredictor
from zoo import cards
from zoo.studies import compressed_networks, compression_plot

ROW = {
    "network": "B-LeNet",
    "variant": "80 % pruned, int8",
    "epochs": 3,
    "weights_bytes": None,
    "litert_bytes": 20_400,
    "exit_accuracies": [0.5, 0.75],
    "accuracy": 0.725,
    "exit_rates": [0.25, 0.75],
    "gain": 1.5,
    "time": 0.5,
}


def run(folder, digits, *flags):
    return commands.run(
        "zoo.studies.compression", "--model=branchy_lenet", "--weights=mnist",
        f"--dataset={digits}", "--validation_size=100", "--epochs=1", "--seconds=0.1",
        f"--study_dir={folder}", f"--run_dir={folder / 'runs'}", *flags,
    )  # fmt: skip


def written(folder):
    with open(folder / "compression.csv", newline="") as file:
        return [(row["network"], row["variant"]) for row in csv.DictReader(file)]


def test_measures_each_variant_once_and_keeps_other_networks(tmp_path, digits_npz):
    page = tmp_path / "compression.md"
    page.write_text(f"# Compression\n{cards.BEGIN}\n{cards.END}\n")
    names = ["float32", "int8"]
    flags = [f"--variant={name}" for name in names]
    done = run(tmp_path, digits_npz, *flags)
    assert done.status == 0, done.stderr
    assert written(tmp_path) == [("branchy_lenet", name) for name in names]
    with open(tmp_path / "compression.csv", newline="") as file:
        rows = [compressed_networks.from_flat(row) for row in csv.DictReader(file)]
    whole, int8 = rows
    assert int8["litert_bytes"] < 0.5 * whole["litert_bytes"]
    assert whole["weights_bytes"] > 100_000
    assert int8["weights_bytes"] is None
    assert whole["time"] == 1
    for row in rows:
        # The shipped network on 100 test digits.
        assert min(row["exit_accuracies"]) > 0.9
        assert row["accuracy"] > 0.9
        assert sum(row["exit_rates"]) == pytest.approx(1)
        assert row["gain"] > 1
    assert "| int8 " in page.read_text()
    assert (tmp_path / "compression.png").is_file()

    results = sorted((tmp_path / "runs").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert run(tmp_path, digits_npz, "--variant=int8", "--name=other").status == 0
    assert run(tmp_path, digits_npz, *flags).status == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    assert written(tmp_path) == [
        *(("branchy_lenet", name) for name in names), ("other", "int8"),
    ]  # fmt: skip
    assert page.read_text().count("| int8 ") == 2


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None,
    reason="the extra compression is not installed",
)
def test_a_variant_compresses_in_turn(tmp_path, mnist_5k, monkeypatch):
    # Compression itself is tested elsewhere; a start of its process takes long.
    steps = []

    def compress(model, dataset, settings, folder, source, flags):
        steps.append((settings.method, settings.epochs, source and source.path.name))
        folder.path.mkdir()
        model.save(folder.model)

    monkeypatch.setattr(compressed_networks, "compress", compress)
    model = zoo.branchy_lenet(weights="mnist")
    (variant,) = compressed_networks.choose(["80 % pruned, 16 clusters"])
    common = {"epochs": 2}
    (row,) = compressed_networks.run(
        [variant], model, mnist_5k, common, tmp_path, {"epochs": 5}
    )
    assert steps == [("prune", 5, None), ("cluster", 2, "run_prune_0.8")]
    assert row["epochs"] == 7
    logits = scoring.every_exit(LogitsPredictor(model), mnist_5k.test)
    right = (logits.argmax(-1) == mnist_5k.test.labels[:, None]).mean(axis=0)
    np.testing.assert_allclose(row["exit_accuracies"], right)


def test_rows_survive_the_sheet():
    text = {
        key: "" if value is None else str(value)
        for key, value in compressed_networks.flat(ROW).items()
    }
    assert compressed_networks.from_flat(text) == ROW


def test_table_shows_a_row_for_each_variant():
    head, _, line = compressed_networks.table([ROW]).splitlines()
    assert head.split("|")[1].strip() == "B-LeNet"
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "80 % pruned, int8", "3", "", "20", "50.00 / 75.00", "72.50%", "25.0 / 75.0",
        "1.50x", "0.50",
    ]  # fmt: skip


def test_plots_bytes_accuracies_and_gain(tmp_path, saved_figures):
    rows = [
        ROW | {"variant": "float32", "litert_bytes": 90_000, "gain": 2.0},
        ROW,
        ROW | {"network": "B-AlexNet"},
    ]
    compression_plot.plot(tmp_path / "plot.png", rows)
    (figure,) = saved_figures
    size, accuracy, gain, *other = figure.axes
    assert [bar.get_width() for bar in size.patches] == [90, 20.4]
    assert [label.get_text() for label in size.get_yticklabels()] == [
        "float32", "80 % pruned, int8",
    ]  # fmt: skip
    assert [list(line.get_xdata()) for line in accuracy.lines] == [[50, 50], [75, 75]]
    assert list(gain.lines[0].get_xdata()) == [2.0, 1.5]
    assert len(other) == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--model is missing"),
        (["--model=branchy_lenet", "--dataset=x"], "--run_dir is missing"),
        (
            ["--model=branchy_lenet", "--dataset=x", "--run_dir=y"],
            "There is no page zoo/studies/compression.md",
        ),
        (
            ["--model=branchy_lenet", "--dataset=x", "--run_dir=y", "--variant=int4",
             "--study_dir=pages"],
            "No variant 'int4'. Known: float32; 50 % pruned;",
        ),
    ],
)  # fmt: skip
def test_rejects_invalid_flags_in_one_line(tmp_path, flags, expected):
    page = tmp_path / "pages" / "compression.md"
    page.parent.mkdir()
    page.touch()
    assert expected in commands.run("zoo.studies.compression", *flags, cwd=tmp_path).error
    assert sorted(tmp_path.rglob("*")) == [page.parent, page]

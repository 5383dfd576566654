from __future__ import annotations

import csv

import commands
import keras
import numpy as np
import odd_models
import pytest
import small

from branchy_tf import exits, zoo
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import routing_steps


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    model = zoo.branchy_resnet(depth=8, exits="light", input_shape=(16, 16, 3))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("routing")
    return routing_steps.time_steps(model, images, "entropy", [1, 4], 0.2, folder)


def steps(rows, batch):
    return {row["step"]: row for row in rows if row["batch"] == batch}


def test_every_step_is_timed_against_what_it_consists_of(rows):
    one, four = steps(rows, 1), steps(rows, 4)
    # Half of one row is none.
    assert set(four) - set(one) == {"half stay", "stage 2, half the rows"}
    for found in (one, four):
        assert all(row["us"] > 0 for row in found.values())
        for row in found.values():
            over = [found[name]["us"] for name in row["over"].split(" + ") if name]
            added = row["us"] - sum(over) if over else None
            assert row["added_us"] == (added and pytest.approx(added))
    assert four["half stay"]["over"] == "scored + stage 2, half the rows"
    assert four["all stay"]["over"] == "scored + stage 2"


def test_stages_that_no_row_enters_run_nothing(rows):
    found = steps(rows, 1)
    leaving = found["all leave"]["operations"]
    behind = found["all leave, all stages behind"]["operations"]
    # The third exit's threshold is one more constant.
    assert leaving <= behind <= leaving + 2
    assert behind < found["all stay"]["operations"]


def test_rows_are_gathered_only_where_some_leave(rows):
    found = steps(rows, 4)
    assert found["half stay"]["operations"] > found["all stay"]["operations"]


def test_refuses_what_it_cannot_route(tmp_path):
    model = zoo.branchy_lenet()
    images = np.zeros((2, 28, 28, 1), np.uint8)
    with pytest.raises(BranchyError, match="batch of 4 needs as many images"):
        routing_steps.time_steps(model, images, "entropy", [4], 0.1, tmp_path)
    _, last = exits.exit_tensors(model).values()
    alone = keras.layers.Dense(10, name="exit_1")(last)
    model = keras.Model(model.input, {"exit_1": alone})
    with pytest.raises(BranchyError, match="one exit, and nothing is routed"):
        routing_steps.time_steps(model, images, "entropy", [1], 0.1, tmp_path)
    model, _ = odd_models.build(odd_models.several_inputs)
    with pytest.raises(BranchyError, match="2 inputs; expected one"):
        routing_steps.time_steps(model, images, "entropy", [1], 0.1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_prints_and_writes_the_page(tmp_path, mnist_5k):
    digits = small.write_npz(tmp_path / "digits.npz", mnist_5k)
    page = tmp_path / "routing.md"
    page.write_text(f"Before.\n{cards.BEGIN}\nold\n{cards.END}\nAfter.\n")
    done = commands.run(
        "zoo.studies.routing", "--model=branchy_lenet", "--weights=mnist",
        f"--dataset={digits}", "--batch_sizes=1,2", "--seconds=0.1",
        f"--run_dir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert "| branchy_lenet, batch 2" in done.stdout
    with open(tmp_path / "routing.csv", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["batch"] for row in written] == ["1"] * 8 + ["2"] * 10
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert done.stdout.strip() in text

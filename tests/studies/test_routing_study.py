from __future__ import annotations

import csv

import commands
import keras
import numpy as np
import odd_models
import pytest

from branchy_tf import exits, zoo
from branchy_tf.errors import BranchyError
from zoo import cards
from zoo.studies import routing_steps


@pytest.fixture(scope="module")
def network():
    """A small network of three exits and four images for it."""
    model = zoo.branchy_resnet(depth=8, exits="light", input_shape=(16, 16, 3))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    return model, images


@pytest.fixture(scope="module")
def rows(network, tmp_path_factory):
    model, images = network
    folder = tmp_path_factory.mktemp("routing")
    return routing_steps.time_steps(model, images, "entropy", [1, 4], 0.2, folder)


def steps(rows, batch):
    return {row["step"]: row for row in rows if row["batch"] == batch}


# Microseconds of each step, and how many more than its parts take.
BY_HAND = {
    "stage 1": (100, None, ""),
    "stage 1 in another thread": (150, 50, "stage 1"),
    "stage 2": (400, None, ""),
    "scored": (120, 20, "stage 1"),
    "all exit": (127, 7, "scored"),
    "none exit": (530, 10, "scored + stage 2"),
    "all exit, whole network": (130, 3, "all exit"),
    "stage 2, half the rows": (210, None, ""),
    "half exit": (360, 30, "scored + stage 2, half the rows"),
    "all stages": (900, None, ""),
    "none exit at any gate": (990, 90, "all stages"),
}


def test_compares_each_step_with_its_parts(network, tmp_path, monkeypatch):
    def interleave(timers, seconds):
        assert min(timer() for timer in timers.values()) > 0
        return {name: (0, 1e-6 * BY_HAND[name][0], 1) for name in timers}

    monkeypatch.setattr(routing_steps.timing, "interleave", interleave)
    model, images = network
    found = routing_steps.time_steps(model, images, "entropy", [1, 4], 0.2, tmp_path)
    four = steps(found, 4)
    assert list(four) == list(BY_HAND)
    for name, (us, added, over) in BY_HAND.items():
        row = four[name]
        assert row["over"] == over
        assert row["us"] == pytest.approx(us)
        assert row["added_us"] == (None if added is None else pytest.approx(added))
    # A batch of one row cannot be split.
    assert set(four) - set(steps(found, 1)) == {"half exit", "stage 2, half the rows"}


def test_stages_that_no_row_enters_run_no_operations(rows):
    found = steps(rows, 1)
    two_stages = found["all exit"]["operations"]
    whole = found["all exit, whole network"]["operations"]
    # The third exit's threshold is one more constant.
    assert two_stages <= whole <= two_stages + 2
    assert whole < found["none exit"]["operations"]


def test_gathers_rows_only_if_some_exit(rows):
    found = steps(rows, 4)
    assert found["half exit"]["operations"] > found["none exit"]["operations"]


def test_rejects_models_and_batches_that_it_cannot_route(tmp_path):
    model = zoo.branchy_lenet()
    images = np.zeros((2, 28, 28, 1), np.uint8)
    with pytest.raises(BranchyError, match="batch of 4 needs at least that many images"):
        routing_steps.time_steps(model, images, "entropy", [4], 0.1, tmp_path)
    _, final = exits.exit_tensors(model).values()
    logits = keras.layers.Dense(10, name="exit_1")(final)
    model = keras.Model(model.input, {"exit_1": logits})
    with pytest.raises(BranchyError, match="only one exit, so there is no routing"):
        routing_steps.time_steps(model, images, "entropy", [1], 0.1, tmp_path)
    model, _ = odd_models.build(odd_models.several_inputs)
    with pytest.raises(BranchyError, match="2 inputs; expected one"):
        routing_steps.time_steps(model, images, "entropy", [1], 0.1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_prints_and_writes_the_page(tmp_path, digits_npz):
    page = tmp_path / "routing.md"
    page.write_text(f"Before.\n{cards.BEGIN}\nold\n{cards.END}\nAfter.\n")
    done = commands.run(
        "zoo.studies.routing", "--model=branchy_lenet", "--weights=mnist",
        f"--dataset={digits_npz}", "--batch_sizes=1,2", "--seconds=0.1",
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

from __future__ import annotations

import csv

import commands
import pytest
import small

from branchy_tf.zoo import branchy_lenet
from zoo import cards
from zoo.studies import training_variants


def test_a_study_trains_its_variants_with_every_seed(tmp_path, mnist_5k):
    digits = small.write_npz(tmp_path / "digits.npz", mnist_5k)
    page = tmp_path / "training_modes.md"
    page.write_text(f"# Modes\n{cards.BEGIN}\n{cards.END}\n")
    flags = ("--study=training_modes", f"--dataset={digits}", "--seeds=1,2")
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
        assert float(row["gain"]) > 0
    # Other seeds, other weights.
    assert len({row["exit_2"] for row in rows}) > 1
    text = page.read_text()
    for name in names:
        assert f"| {name} " in text
    assert (tmp_path / "training_modes.png").stat().st_size > 5000


def test_every_study_is_of_variants_that_can_be_built():
    for variants in training_variants.STUDIES.values():
        for variant in variants:
            exits = training_variants._exits(variant.exits)
            assert branchy_lenet(exits=exits).output_names == [
                "exit_1", "exit_2"
            ]  # fmt: skip


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
def test_refuses_in_one_line(tmp_path, flags, expected):
    page = tmp_path / "pages" / "branches.md"
    page.parent.mkdir()
    page.touch()
    assert expected in commands.run("zoo.studies.training", *flags, cwd=tmp_path).error
    assert list(tmp_path.rglob("*")) == [page.parent, page]

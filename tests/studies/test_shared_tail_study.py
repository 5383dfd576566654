"""The study of one tail for three unlike fronts."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from branchy_tf import data, units
from zoo.studies import shared_tail_plot
from zoo.studies import unlike_cameras as cameras

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def loaded(mnist_5k) -> data.Dataset:
    return mnist_5k


def figures() -> list[dict]:
    """Rows of a study, with accuracies that say where they come from."""
    return [
        {
            "dataset": "digits", "seed": seed, "way": way, "camera": camera,
            "final_accuracy": 0.5 + 0.1 * i + 0.01 * seed, "accuracy": 0.5,
            "mix_accuracy": 0.6, "goes_on": 0.25, "macs": 1000.0, "full_macs": 2000,
            "sent_bytes": 10.0, "stored_bytes": 4000 * (i + 1),
        }
        for i, way in enumerate(cameras.WAYS)
        for camera in cameras.KINDS
        for seed in (1, 2, 3)
    ]  # fmt: skip


def test_cameras_see_skewed_classes_and_share_no_row(loaded):
    numbered = data.Dataset(
        "numbered",
        10,
        data.Split(np.arange(len(loaded.train)), loaded.train.labels),
        loaded.validation,
        loaded.test,
    )
    sets = cameras.cameras(numbered, rows=120, test_rows=50, seed=1)
    seen = [
        row
        for dataset in sets.values()
        for part in (dataset.train, dataset.validation)
        for row in part.images
    ]
    assert len(seen) == len(set(seen))
    for number, dataset in enumerate(sets.values()):
        mix = cameras.class_mix(number, 10)
        assert mix.sum() == pytest.approx(1)
        shares = np.bincount(dataset.train.labels, minlength=10) / len(dataset.train)
        assert np.abs(shares - mix).max() < 0.1
        assert len(dataset.test) == 50


def test_unlike_fronts_fit_one_tail_which_is_stored_once(loaded):
    sets = dict.fromkeys(cameras.KINDS, loaded)
    made = {kind: cameras.parts(kind, sets) for kind in cameras.KINDS}
    tail = made["plain"][1]
    fronts = {kind: front for kind, (front, _) in made.items()}
    assert [len(unit.exits) for unit in units.joined(fronts, tail)] == [1, 1, 2, 1]
    models = {kind: cameras.network(kind, (28, 28, 1), 10) for kind in cameras.KINDS}
    own, shared, one = (
        cameras.stored_bytes(way, models)
        for way in (cameras.OWN, cameras.SHARED, cameras.ONE)
    )
    assert own - shared == 2 * 4 * tail.model.count_params()
    assert one < shared
    assert cameras.feature_bytes(models["plain"]) == 14 * 14 * 16 + 8 * 16


def test_tables_and_picture_hold_every_way(tmp_path):
    rows = figures()
    text = cameras.table(rows)
    assert "| own tails   | 62.0 ± 1.0 " in text
    assert all(text.count(f"| {way} ") == 2 for way in cameras.WAYS)
    shared_tail_plot.plot(tmp_path / "study.png", rows)
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_the_page_shows_its_figures():
    page = ROOT / "zoo/studies/shared_tail.md"
    table = page.with_suffix(".csv")
    if not table.is_file():
        pytest.skip("the study has not been run: there is no shared_tail.csv")
    rows = cameras.read_rows(table)
    assert cameras.table(rows) in page.read_text(encoding="utf-8")

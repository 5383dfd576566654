"""What a report packs for its sliders."""

from __future__ import annotations

import base64

import numpy as np
import pages
import pytest

from branchy_tf.data import Split
from branchy_tf.policy import ExitPolicy
from branchy_tf.report.scores import measured_times, pack
from branchy_tf.thresholds import Calibration


def packed(path, every, images=None, **more):
    exits = every.scores.shape[1]
    calibration = Calibration(
        policy=ExitPolicy(thresholds=[0.1] * (exits - 1)),
        exits=[f"exit_{k + 1}" for k in range(exits)],
        validation={"full_macs": 1},
        frontier=[],
        budget=more.pop("budget", {}),
    )
    if images is None:
        images = np.zeros((len(every.labels), 3), np.float32)
    split = Split(images, every.labels)
    return pack(path, calibration, every, split, list(range(1, exits + 1)), **more)


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (256, 1), (257, 2), (1000, 2)])
def test_packing_loses_nothing(tmp_path, classes, width):
    every = pages.answers(200, 3, classes)
    found = packed(tmp_path / "a.jpg", every)
    assert found["class_bytes"] == width
    for k in range(2):
        np.testing.assert_array_equal(
            unpacked(found["scores"][k], "<f4"), every.scores[:, k]
        )
    for k in range(3):
        given = unpacked(found["answers"][k], f"<u{width}")
        np.testing.assert_array_equal(given, every.given[:, k])
    np.testing.assert_array_equal(unpacked(found["labels"], f"<u{width}"), every.labels)
    assert found["pictures"] is None
    assert not (tmp_path / "a.jpg").exists()


def test_many_rows_are_sampled(tmp_path):
    every = pages.answers(5000, 3)
    images = np.zeros((5000, 4, 4, 1), np.uint8)
    found = packed(tmp_path / "a.jpg", every, images, most_bytes=12_000)
    # 2 scores of 4 bytes, 3 answers and a label of 1 byte.
    assert found["rows"] == 1000
    assert found["of"] == 5000
    kept = unpacked(found["scores"][0], "<f4")
    assert len(kept) == 1000
    assert np.isin(kept, every.scores[:, 0]).all()
    assert unpacked(found["pictures"]["rows"], "<u4").max() < 1000


@pytest.mark.parametrize(
    "shape", [(300, 200, 3), (28, 28, 1), (1, 1, 1), (10, 500, 3), (48, 7, 1)]
)
def test_pictures_of_any_size_fit_the_sheet(tmp_path, shape):
    every = pages.answers(30, 2)
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), np.uint8)
    found = packed(tmp_path / "a.jpg", every, images)
    assert found["pictures"]["number"] == 30
    rows = unpacked(found["pictures"]["rows"], "<u4")
    assert rows.tolist() == list(range(30))
    assert (tmp_path / "a.jpg").stat().st_size < 100_000


def test_pictures_show_rows_on_which_exits_disagree_first(tmp_path):
    every = pages.answers(2000, 2)
    images = np.zeros((2000, 8, 8, 1), np.uint8)
    found = packed(tmp_path / "a.jpg", every, images)
    rows = unpacked(found["pictures"]["rows"], "<u4")
    disagree = every.given[:, 0] != every.given[:, 1]
    assert disagree.sum() > 500
    assert disagree[rows].all()


def test_times_are_those_of_the_same_network():
    costs = {
        "stages": [{"macs": 10}, {"macs": 5}],
        "milliseconds": [
            {"batch": 1, "stage": 1, "ms_per_image": 0.5},
            {"batch": 1, "stage": 2, "ms_per_image": 0.25},
        ],
    }
    expected = [{"batch": 1, "stages": [0.5, 0.25]}]
    assert measured_times(costs, [10, 15]) == expected
    assert measured_times(costs, [10, 16]) == []
    assert measured_times(costs, [10, 15, 20]) == []


def test_a_latency_budget_brings_its_times(tmp_path):
    budget = {"exit_ms": [0.5, 2.0], "latency_batch_size": 8}
    found = packed(tmp_path / "a.jpg", pages.answers(20, 2), budget=budget)
    (time,) = found["times"]
    assert time["batch"] == 8
    np.testing.assert_allclose(time["stages"], [0.5, 1.5])

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image
from samples import rows

from branchy_tf import plots
from branchy_tf.plots.classes import by_class
from branchy_tf.plots.reliability import bins
from branchy_tf.policy import ExitPolicy

SCORES, CORRECT = rows(300, 3)
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 4, 300)
EXITS = RANDOM.integers(0, 3, 300)
PROBABILITIES = RANDOM.dirichlet(np.ones(4), (300, 3)).astype(np.float32)


def draw(path, name, many):
    """One picture; `many` of what makes it crowded or odd."""
    limits = [0.1, np.inf] if many else [0, 0.4]
    if name == "frontier":
        points = [(1, 0.5), (2, 0.6), (5, 0.7)] * (50 if many else 1)
        plots.frontier(
            path, [] if many else points, [(1, 0.5), (6, 0.9)], (2, 0.6), "test",
            None if many else (5, 0.7), (4, 0.65),
        )  # fmt: skip
    elif name == "contenders":
        names = ["keras_export", "early_exit", *(["onnxruntime", "pytorch"] * many)]
        batches = (1, 8, 128) if many else (32,)
        common = [
            {"batch": batch, "threads": threads}
            for batch in batches
            for threads in ((1, 2) if many else (1,))
        ]
        timings = [
            row | {"contender": contender, "ms_per_image": k, "low": k / 2, "high": k}
            for row in common
            for k, contender in enumerate(names, 1)
        ]
        gains = [row | {"over": "keras_export", "share_of_ideal": 0.9} for row in common]
        plots.contenders(path, {"results": timings, "gains": gains})
    elif name in ("leaving", "histograms"):
        getattr(plots, name)(path, SCORES, CORRECT, ExitPolicy(thresholds=limits))
    elif name == "load":
        rows = [
            {"loop": loop, "callers": n, "rate": 9.5 * n, "seconds": 2, "requests": 90}
            | {f"p{k}_ms": k * n if n < 64 else None for k in (50, 95, 99)}
            | {"requests_per_second": 45 if n < 64 else 0}
            for loop in ("closed", "open")
            for n in (1, 8, 64)
        ]
        plots.load(path, rows if many else rows[:1])
    elif name == "growth":
        rows = [
            {"axis": axis, "size": n, "a": n / 7, "b": n**1.5}
            | {"c": 0 if many and n == 1 else n, "d": None if axis == "y" else 2}
            for axis in ("x", "y")
            for n in (1, 8, 64)
        ]
        names = {"a": "a call", "b": "more than linear", "c": "memory", "d": "alike"}
        plots.growth(path, rows if many else rows[:1], names)
    elif name == "reliability":
        plots.reliability(path, PROBABILITIES, PROBABILITIES, LABELS)
    elif name == "classes":
        labels = RANDOM.integers(0, 100, 300) if many else LABELS
        plots.classes(path, EXITS, labels == LABELS, labels)
    else:
        depth = 3 if many else 1
        images = RANDOM.integers(0, 256, (300, 8, 8, depth)).astype(np.uint8)
        exits = np.zeros(300, int) if many else EXITS
        plots.gallery(path, images, exits, LABELS, LABELS[::-1], 3, "Title")


@pytest.mark.parametrize(
    "name",
    [
        "frontier",
        "leaving",
        "histograms",
        "growth",
        "reliability",
        "classes",
        "contenders",
        "gallery",
        "load",
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_draws_a_picture_as_wide_as_a_phone(tmp_path, name, many):
    path = tmp_path / "picture.png"
    draw(path, name, many)
    with Image.open(path) as picture:
        assert picture.width == 768
        assert len(picture.getcolors(1 << 24)) > 5
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    assert not matplotlib.pyplot.get_fignums()


def test_shares_and_accuracy_of_classes_by_hand():
    exits = np.array([0, 0, 1, 0])
    shares, accuracy, names = by_class(
        exits, np.array([True, False, True, True]), np.array([3, 3, 3, 7])
    )
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3], [1, 0]])
    np.testing.assert_allclose(accuracy, [2 / 3, 1])
    assert names.tolist() == [3, 7]


def test_calibration_error_by_hand():
    probabilities = np.array([[0.92, 0.08], [0.98, 0.02], [0.6, 0.4], [0.38, 0.62]])
    confidence, accuracy, share, error = bins(probabilities, np.array([0, 1, 0, 0]))
    np.testing.assert_allclose(confidence, [0.61, 0.95])
    np.testing.assert_allclose(accuracy, [0.5, 0.5])
    np.testing.assert_allclose(share, [0.5, 0.5])
    assert error == pytest.approx(0.5 * 0.11 + 0.5 * 0.45)

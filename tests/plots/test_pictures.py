from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
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


def lines(axes):
    """`{label: (x, y)}` of what is drawn as a line."""
    return {line.get_label(): line.get_data() for line in axes.lines}


def shows_frontier(figure, many):
    (axes,) = figure.axes
    drawn = [np.array(xy) for xy in lines(axes).values()]
    for wanted in ([[1, 6], [50, 90]], [[2], [60]]):
        assert any(
            xy.shape == np.shape(wanted) and np.allclose(xy, wanted) for xy in drawn
        )
    assert len(drawn) == (3 if many else 5)


def shows_leaving(figure, many):
    for k, axes in enumerate(figure.axes):
        (x, share), *_ = lines(axes).values()
        below = [100 * (SCORES[:, k] < limit).mean() for limit in x]
        np.testing.assert_allclose(share, below, atol=0.5)


def shows_histograms(figure, many):
    for axes in figure.axes:
        heights = [patch.get_height() for patch in axes.patches]
        assert sum(heights) == 300
        # Those answered correctly are as many as they are.
        assert sum(heights[:30]) in {CORRECT[:, 0].sum(), CORRECT[:, 1].sum()}


def shows_reliability(figure, many):
    for axes in figure.axes:
        # The same probabilities before and after: the curves coincide.
        diagonal, *curves = lines(axes).values()
        assert np.shape(diagonal) == (2, 2)
        for one, other in zip(*curves, strict=True):
            np.testing.assert_array_equal(one, other)


def shows_classes(figure, many):
    (axes,) = figure.axes
    widths = {}
    for bar in axes.patches:
        row = round(bar.get_y(), 3)
        widths[row] = widths.get(row, 0) + bar.get_width()
    assert len(widths) == (40 if many else 4)
    np.testing.assert_allclose(list(widths.values()), 100)


def shows_contenders(figure, many):
    assert len(figure.axes) == (2 if many else 1)
    for axes in figure.axes:
        batches, ms = lines(axes)["early exit, float32"]
        assert list(batches) == ([1, 8, 128] if many else [32])
        assert list(ms) == [2] * len(batches)


def shows_gallery(figure, many):
    (axes,) = figure.axes
    # Eight a row, and a row for each exit that some image left at.
    assert len(axes.images) == (8 if many else 24)


def shows_load(figure, many):
    latencies = figure.axes[::2]
    assert len(latencies) == (2 if many else 1)
    callers, ms = lines(latencies[0])["p95"]
    assert list(callers) == ([1, 8, 64] if many else [1])
    np.testing.assert_array_equal(ms, [95, 760, np.nan] if many else [95])


@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("frontier", shows_frontier),
        ("leaving", shows_leaving),
        ("histograms", shows_histograms),
        ("reliability", shows_reliability),
        ("classes", shows_classes),
        ("contenders", shows_contenders),
        ("gallery", shows_gallery),
        ("load", shows_load),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_draws_its_figures_as_wide_as_a_phone(tmp_path, monkeypatch, name, shows, many):
    drawn, savefig = [], Figure.savefig

    def record(figure, *arguments, **options):
        drawn.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    path = tmp_path / "picture.png"
    draw(path, name, many)
    with Image.open(path) as picture:
        assert picture.width == 768
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    assert not matplotlib.pyplot.get_fignums()
    (figure,) = drawn
    shows(figure, many)


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

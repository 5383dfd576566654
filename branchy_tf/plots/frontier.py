"""Accuracy over cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, WIDTH, plt, save
from branchy_tf.results import exit_name


def frontier(
    path: files.Path,
    points: Sequence[tuple[float, float]],
    exits: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
    split: str,
    knee: tuple[float, float] | None = None,
    baseline: tuple[float, float] | None = None,
) -> None:
    """Plots the accuracy and cost of the best thresholds and of the chosen ones.

    Args:
        path: the .png file to write.
        points: `(multiply-adds, accuracy)` along the frontier; may be empty.
        exits: the same for each exit alone on all rows.
        chosen: the same for the chosen thresholds.
        split: "validation" or "test".
        knee: the same for the frontier's knee.
        baseline: the same for the network trained without branches.

    References:
        BranchyNet (2016), Figure 3.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 5.0), layout="constrained")
    unit, unit_name = _unit(max(cost for cost, _ in exits))
    # On the test split, the frontier of the validation split need not be monotonic.
    if points:
        costs, accuracies = _columns(points, unit)
        axes.step(
            costs,
            accuracies,
            where="post",
            color=BLUE,
            marker="." if len(points) < 100 else None,
            label="best thresholds" + ("" if split == "validation" else " on validation"),
        )
    looks = {"color": BLACK, "markerfacecolor": "none", "linestyle": "none"}
    axes.plot(*_columns(exits, unit), "s", ms=8, label="each exit alone", **looks)
    for k, (cost, accuracy) in enumerate(zip(*_columns(exits, unit), strict=True)):
        final = k == len(exits) - 1
        axes.annotate(
            exit_name(k + 1),
            (cost, accuracy),
            xytext=(-8 if final else 8, -14),
            ha="right" if final else "left",
            textcoords="offset points",
            fontsize=9,
        )
    if baseline is not None:
        axes.plot(
            *_columns([baseline], unit), "^", ms=9, label="trained baseline", **looks
        )
    if knee is not None:
        axes.plot(
            *_columns([knee], unit),
            "D",
            ms=9,
            color=GREEN,
            markerfacecolor="none",
            markeredgewidth=2,
            linestyle="none",
            label="knee",
        )
    axes.plot(
        *_columns([chosen], unit),
        "*",
        ms=17,
        color=ORANGE,
        markeredgecolor=BLACK,
        linestyle="none",
        label="chosen",
    )
    axes.set(
        xlabel=f"expected multiply-adds per image{unit_name}",
        ylabel=f"accuracy, {split} split (%)",
        title="Accuracy against cost",
        xlim=(0, None),
    )
    axes.margins(x=0.1, y=0.12)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)


def _unit(largest: float) -> tuple[float, str]:
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= unit:
            return unit, f" ({name})"
    return 1.0, ""


def _columns(points: Sequence[tuple[float, float]], unit: float) -> tuple:
    costs, accuracies = np.array(points, float).reshape(-1, 2).T
    return costs / unit, 100 * accuracies

"""Accuracy over expected multiply-adds, for two ways of choosing thresholds."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from branchy_tf import exits, files
from branchy_tf.plots.style import BLACK, BLUE, ORANGE, WIDTH, plt, save


def plot(
    path: files.Path,
    rows: Sequence[dict[str, Any]],
    alone: Sequence[tuple[float, float]],
) -> None:
    """Draws both curves on the test split, and each exit alone.

    Args:
        path: .png to write.
        rows: dicts with geometric_macs, geometric_accuracy, searched_macs and
            searched_accuracy (fractions of 1).
        alone: `(multiply-adds, accuracy)` of each exit on all images.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 5.0), layout="constrained")
    for way, name, look in (
        ("searched", "searched", {"color": BLUE, "marker": "o"}),
        ("geometric", "geometric exit rates", {"color": ORANGE, "marker": "^"}),
    ):
        ordered = sorted(rows, key=operator.itemgetter(f"{way}_macs"))
        axes.plot(
            [row[f"{way}_macs"] / 1e6 for row in ordered],
            [100 * row[f"{way}_accuracy"] for row in ordered],
            markersize=4,
            label=name,
            **look,
        )
    axes.plot(
        [macs / 1e6 for macs, _ in alone],
        [100 * accuracy for _, accuracy in alone],
        "s",
        color=BLACK,
        markerfacecolor="none",
        label="each exit alone",
    )
    for number, (macs, accuracy) in enumerate(alone, start=1):
        axes.annotate(
            exits.exit_name(number),
            (macs / 1e6, 100 * accuracy),
            xytext=(4, -13),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set(
        xlabel="expected multiply-adds per image (millions)",
        ylabel="accuracy, test split (%)",
        title="Accuracy for a budget, thresholds from the validation split",
    )
    axes.margins(x=0.1, y=0.1)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)

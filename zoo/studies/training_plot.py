"""Accuracy and gain of each training of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, ORANGE, plt, save


def plot(path: files.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the accuracy of both exits and the gain of every training, by variant.

    Args:
        path: .png to write.
        rows: dicts with group, variant, exit_1 and exit_2 (accuracies, fractions of 1)
            and gain.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    counts = [len({r["variant"] for r in rows if r["group"] == g}) for g in groups]
    figure, panels = plt.subplots(
        len(groups),
        2,
        figsize=(10, 1.2 + 0.42 * sum(counts)),
        layout="constrained",
        squeeze=False,
        height_ratios=counts,
    )
    for (left, right), group in zip(panels, groups, strict=True):
        here = [row for row in rows if row["group"] == group]
        names = list(dict.fromkeys(row["variant"] for row in here))
        heights = np.array([len(names) - 1 - names.index(r["variant"]) for r in here])
        for column, marker, color, shift in (
            ("exit_1", "o", ORANGE, 0.12),
            ("exit_2", "^", BLUE, -0.12),
        ):
            values = [100 * row[column] for row in here]
            left.plot(values, heights + shift, marker, color=color, label=column)
        right.plot([row["gain"] for row in here], heights, "s", color=BLACK)
        name_rows(left, right, names, group)
    panels[-1][0].set_xlabel("validation accuracy (%)")
    panels[-1][1].set_xlabel("gain in multiply-adds (x), no accuracy lost")
    panels[0][0].legend(loc="best")
    save(figure, path)


def name_rows(left: Axes, right: Axes, names: Sequence[str], title: str) -> None:
    """Names the rows of two panels beside each other, the first on top.

    Args:
        left: the panel that shows the names and the title.
        right: the panel beside it.
        names: of the rows, from top to bottom.
        title: of both panels.
    """
    for axes in (left, right):
        axes.set_yticks(range(len(names)), reversed(names))
        axes.set_ylim(-0.5, len(names) - 0.5)
    right.set_yticklabels([])
    left.set_title(title, loc="left")

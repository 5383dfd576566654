"""Accuracy during training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import ticker

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, plt, save


def training(path: files.Path, rows: Sequence[dict[str, str]]) -> None:
    """Plots each exit's validation accuracy over the epochs of all phases.

    Args:
        path: the .png file to write.
        rows: at least one row of history.csv.
    """
    columns = [c for c in rows[0] if c.startswith("val_") and c.endswith("_accuracy")]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    epochs = np.arange(1, len(rows) + 1)
    looks = itertools.product(["--", "-", ":", "-."], [ORANGE, BLUE, GREEN, BLACK])
    for column, (style, color) in zip(columns, looks, strict=False):
        values = [float(row[column] or "nan") for row in rows]
        name = column.removeprefix("val_").removesuffix("_accuracy")
        axes.plot(epochs, 100 * np.array(values), style, color=color, label=name)
    for i in range(1, len(rows)):
        if rows[i]["phase"] != rows[i - 1]["phase"]:
            axes.axvline(i + 0.5, color=BLACK, linewidth=0.8)
            axes.annotate(
                rows[i]["phase"],
                (i + 0.5, 0.02),
                xytext=(4, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
            )
    axes.set(
        xlabel="epoch",
        ylabel="accuracy, validation split (%)",
        title="Accuracy of each exit during training",
    )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(loc="center right")
    save(figure, path)

"""Accuracy and stored weights of each way to serve three cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, plt, save
from zoo.studies import unlike_cameras as cameras
from zoo.studies.training_plot import name_rows


def plot(path: files.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws every camera's final accuracy by way, and the bytes of all weights.

    Args:
        path: .png to write.
        rows: from `cameras.measure`, with the columns dataset and seed.
    """
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    figure, panels = plt.subplots(
        len(sets),
        2,
        figsize=(10, 1.0 + 2.2 * len(sets)),
        layout="constrained",
        squeeze=False,
        width_ratios=[2, 1],
    )
    looks = list(zip(cameras.KINDS, ("o", "^", "s"), (ORANGE, BLUE, GREEN), strict=True))
    for (left, right), dataset in zip(panels, sets, strict=True):
        here = [row for row in rows if row["dataset"] == dataset]
        for number, (camera, marker, color) in enumerate(looks):
            points = [row for row in here if row["camera"] == camera]
            heights = [len(ways) - 1 - ways.index(row["way"]) for row in points]
            left.plot(
                [100 * row["final_accuracy"] for row in points],
                np.array(heights) + 0.2 * (1 - number),
                marker,
                color=color,
                markersize=5,
                label=f"camera with the {camera} front",
            )
        stored = [
            next(row["stored_bytes"] for row in here if row["way"] == way) / 1e3
            for way in ways
        ]
        right.barh(range(len(ways) - 1, -1, -1), stored, height=0.5, color=BLACK)
        name_rows(left, right, ways, dataset)
    panels[-1][0].set_xlabel("accuracy of the final exit on all classes (%)")
    panels[-1][1].set_xlabel("weights stored (kB)")
    panels[0][0].legend(loc="best", fontsize="small")
    save(figure, path)

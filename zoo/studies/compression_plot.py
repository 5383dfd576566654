"""Bytes, accuracies and gain of every compressed network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, MARKERS, ORANGE, SKY, plt, save


def plot(path: files.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws gzipped bytes, each exit's accuracy and the gain, by network and variant.

    Args:
        path: .png to write.
        rows: of `compressed_networks.run`.
    """
    networks = list(dict.fromkeys(row["network"] for row in rows))
    counts = [sum(row["network"] == name for row in rows) for name in networks]
    figure, panels = plt.subplots(
        len(networks),
        3,
        figsize=(11, 1.4 + 0.36 * sum(counts)),
        layout="constrained",
        squeeze=False,
        height_ratios=counts,
    )
    for (size, accuracy, gain), name in zip(panels, networks, strict=True):
        here = [row for row in rows if row["network"] == name]
        heights = np.arange(len(here))[::-1]
        kilobytes = [row["litert_bytes"] / 1e3 for row in here]
        bars = size.barh(heights, kilobytes, 0.6, color=SKY, edgecolor=BLACK)
        size.bar_label(bars, [f"{value:,.0f}" for value in kilobytes], padding=3)
        size.margins(x=0.25)
        exits = np.array([row["exit_accuracies"] for row in here])
        colors = (ORANGE, BLUE, GREEN, BLACK, SKY)
        for number, values in enumerate(exits.T):
            accuracy.plot(
                100 * values,
                heights + 0.2 - 0.4 * number / max(1, exits.shape[1] - 1),
                MARKERS[number % len(MARKERS)],
                color=colors[number % len(colors)],
                label=f"exit_{number + 1}",
            )
        gain.plot([row["gain"] for row in here], heights, "s", color=BLACK)
        for axes in (size, accuracy, gain):
            axes.set_yticks(heights, [row["variant"] for row in here])
            axes.set_ylim(-0.6, len(here) - 0.4)
        accuracy.set_yticklabels([])
        gain.set_yticklabels([])
        size.set_title(name, loc="left")
        # Differences of a few hundredths are noise.
        low, high = gain.get_xlim()
        gain.set_xlim(min(1.0, low) - 0.05, max(high, 1.5))
    most = max(panels[:, 1], key=lambda axes: len(axes.lines))
    handles, labels = most.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    panels[-1][0].set_xlabel("LiteRT file, gzipped (kB)")
    panels[-1][1].set_xlabel("test accuracy (%)")
    panels[-1][2].set_xlabel("gain in multiply-adds (x), no loss")
    save(figure, path)

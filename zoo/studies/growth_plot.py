"""Growth of figures with a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, MARKERS, ORANGE, SKY, panels, save

_COLORS = (BLUE, ORANGE, GREEN, SKY, BLACK)


def plot(
    path: files.Path, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, str]
) -> None:
    """Draws each figure as a multiple of its value at the smallest size of the axis.

    Both axes are logarithmic; a dashed line of slope 1 marks linear growth.

    Args:
        path: .png to write.
        rows: dicts with axis, size and the figures; None where a figure does not
            depend on the axis.
        figures: `{figure: its label}`.
    """
    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = panels(len(names), height=3.4)
    for panel, name in zip(axes, names, strict=True):
        here = [row for row in rows if row["axis"] == name]
        sizes = np.array([row["size"] for row in here], float)
        panel.plot(
            sizes, sizes / sizes[0], "--", color=BLACK, linewidth=1, label="linear"
        )
        for i, (key, label) in enumerate(figures.items()):
            # A figure that starts at 0 has no multiples.
            if not here[0][key]:
                continue
            values = np.array([row[key] for row in here], float)
            panel.plot(
                sizes,
                values / values[0],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                # Markers are filled, then open once the colours repeat.
                fillstyle="full" if i < len(_COLORS) else "none",
                color=_COLORS[i % len(_COLORS)],
                linewidth=1,
                label=label,
            )
        panel.set(
            xscale="log", yscale="log", xlabel=name, ylabel="multiple of the first value"
        )
        panel.set_xticks(sizes, [f"{size:,g}" for size in sizes])
        panel.minorticks_off()
        panel.legend(fontsize=7, ncols=2)
    save(figure, path)

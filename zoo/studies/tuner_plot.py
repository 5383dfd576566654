"""Agreement and multiply-adds along a stream of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, GREEN, ORANGE, SKY, plt, save

_STYLES: list[dict[str, Any]] = [
    {"color": ORANGE, "marker": "s", "linestyle": "--", "markersize": 4},
    {"color": BLUE, "marker": "o", "linestyle": "-", "markersize": 4},
    {"color": GREEN, "marker": "^", "linestyle": ":", "markersize": 4},
    {"color": SKY, "marker": "v", "linestyle": "-.", "markersize": 4},
]


def plot(
    path: files.Path,
    scenarios: Mapping[str, Mapping[str, Mapping[str, Any]]],
    budget: float,
    window: int,
) -> None:
    """Draws agreement with the full network and multiply-adds, window by window.

    Args:
        path: .png to write.
        scenarios: `{drift: {contender: {"agreement": [windows], "macs": [windows]}}}`.
        budget: minimum share that agrees with the full network.
        window: number of requests in a window.
    """
    figure, panels = plt.subplots(
        len(scenarios),
        2,
        figsize=(10, 1 + 2.1 * len(scenarios)),
        layout="constrained",
        squeeze=False,
        sharex=True,
    )
    for (left, right), (name, contenders) in zip(panels, scenarios.items(), strict=True):
        for style, (contender, values) in zip(_STYLES, contenders.items(), strict=False):
            # Each window is drawn at its end, in thousands of requests.
            ends = window * np.arange(1, len(values["agreement"]) + 1) / 1000
            left.plot(
                ends, 100 * np.asarray(values["agreement"]), label=contender, **style
            )
            right.plot(ends, np.asarray(values["macs"]) / 1e6, **style)
        left.axhline(100 * budget, color=BLACK, linewidth=1)
        left.set_title(f"drift: {name}", loc="left", fontsize=10)
        left.set_ylabel("agreement (%)")
        right.set_ylabel("million multiply-adds\nper request")
    for axes in panels[-1]:
        axes.set_xlabel("requests (thousands)")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=9)
    save(figure, path)

"""Draws docs/cascade.svg, the way of the rows through a cascade of units.

python docs/draw_cascade.py
"""

from __future__ import annotations

import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

_BLUE, _GREY, _INK = "#2a6f97", "#d8dee4", "#24292f"
_UNITS = [
    ("device", "exit_1", "runs in the gateway"),
    ("edge", "exit_2", "TF Serving"),
    ("cloud", "exit_3", "TF Serving"),
]


def _box(axes, x: float, y: float, width: float, height: float, color: str) -> None:
    style = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, style, facecolor=color, edgecolor=_INK)
    )


def _arrow(axes, start: tuple, end: tuple, color: str = _INK) -> None:
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.6},
    )


def draw(path: pathlib.Path) -> None:
    """Writes the picture."""
    plt.rcParams["svg.hashsalt"] = "cascade"
    figure, axes = plt.subplots(figsize=(9, 3.4))
    _box(axes, 1.55, 0.1, 7.35, 2.2, "#f6f8fa")
    axes.text(1.65, 2.05, "one model to its clients: the gateway", color=_INK)
    _box(axes, 0.0, 0.75, 0.95, 0.8, "white")
    axes.text(0.475, 1.15, "client", ha="center", va="center", color=_INK)
    _arrow(axes, (0.98, 1.3), (1.95, 1.3))
    axes.text(1.25, 1.38, "image", ha="center", fontsize=8)
    for i, (name, exit_, where) in enumerate(_UNITS):
        x = 1.98 + 2.4 * i
        _box(axes, x, 0.75, 1.3, 0.9, _GREY)
        axes.text(x + 0.65, 1.38, name, ha="center", weight="bold", color=_INK)
        axes.text(x + 0.65, 1.12, exit_, ha="center", fontsize=9, color=_INK)
        axes.text(x + 0.65, 0.87, where, ha="center", fontsize=7, color=_INK)
        _arrow(axes, (x + 0.65, 0.73), (x + 0.65, -0.05), _BLUE)
        text = "sure: answer" if i < len(_UNITS) - 1 else "answers the rest"
        axes.text(x + 0.72, 0.32, text, fontsize=8, color=_BLUE)
        if i < len(_UNITS) - 1:
            _arrow(axes, (x + 1.34, 1.25), (x + 2.36, 1.25))
            axes.text(
                x + 1.85, 1.33, "features of rows\nthat go on", ha="center", fontsize=7
            )
    axes.plot([0.475, 7.43], [-0.1, -0.1], color=_BLUE, lw=1.6)
    _arrow(axes, (0.475, -0.1), (0.475, 0.72), _BLUE)
    axes.set_xlim(-0.1, 9.0)
    axes.set_ylim(-0.25, 2.45)
    axes.set_axis_off()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_name("cascade.svg"))

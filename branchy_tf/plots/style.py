"""The common style: series differ in shape as well as in colour."""

from __future__ import annotations

from typing import Any

import matplotlib

from branchy_tf import files

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

# Okabe and Ito's colours, which colour-blind readers can distinguish. In greyscale, from
# light to dark: SKY, ORANGE, GREEN, BLUE, BLACK.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
SKY = "#56B4E9"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
# Greys that are light enough to show a hatch.
GREYS = ("0.95", "0.75", "0.88", "0.6", "0.8", "0.7", "0.9")

# Inches; readable on a phone held upright.
WIDTH = 6.4


def panels(rows: int, height: float = 2.6, **options: Any) -> tuple[Any, list]:
    """A figure with panels below each other, readable on a phone."""
    figure, axes = plt.subplots(
        rows,
        1,
        figsize=(WIDTH, height * rows + 0.6),
        layout="constrained",
        squeeze=False,
        **options,
    )
    return figure, list(axes[:, 0])


def plain_ticks(axis: Any) -> None:
    """Labels the ticks of a logarithmic axis as 0.5 or 20, not as powers of ten."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def save(figure: Any, path: files.Path, grid: bool = True) -> None:
    """Writes a figure to a .png file and closes it."""
    if grid:
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
    with files.replacing(path) as beside:
        figure.savefig(beside, dpi=120)
    plt.close(figure)


def shortened(name: str, most: int = 24) -> str:
    """A name that fits beside an axis, and in which matplotlib reads no formula."""
    name = name.replace("$", r"\$")
    return name if len(name) <= most else f"{name[: most - 1]}…"

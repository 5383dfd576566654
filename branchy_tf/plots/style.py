"""How all pictures look: told apart by shape as well as by colour."""

from __future__ import annotations

from typing import Any

import matplotlib

from branchy_tf import files

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's, which the colour-blind tell apart; light to dark in grey print:
# SKY, ORANGE, GREEN, BLUE, BLACK.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
SKY = "#56B4E9"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
# Greys from light to dark, that a hatch shows on.
GREYS = ("0.95", "0.75", "0.88", "0.6", "0.8", "0.7", "0.9")

# As wide as a phone shows without turning it.
WIDTH = 6.4


def panels(rows: int, height: float = 2.6, **options: Any) -> tuple[Any, list]:
    """A figure of panels one below the other, which a phone can show."""
    figure, axes = plt.subplots(
        rows,
        1,
        figsize=(WIDTH, height * rows + 0.6),
        layout="constrained",
        squeeze=False,
        **options,
    )
    return figure, list(axes[:, 0])


def save(figure: Any, path: files.Path, grid: bool = True) -> None:
    """Writes the figure as .png and closes it."""
    if grid:
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
    with files.replacing(path) as beside:
        figure.savefig(beside, dpi=120)
    plt.close(figure)

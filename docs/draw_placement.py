"""Draws docs/placement.png: the example's sites and where its units run.

python docs/draw_placement.py
"""

from __future__ import annotations

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from branchy_tf import units
from branchy_tf.units.placing import reading

_FOLDER = pathlib.Path(__file__).resolve().parent
_AT = {
    "camera-a": (0, 1),
    "camera-b": (0, 0),
    "hall-a": (1.5, 1),
    "hall-b": (1.5, 0),
    "centre": (3, 1),
}
# Okabe and Ito's colours, one for each demand.
_COLOURS = {"camera-a": "#0072B2", "camera-b": "#D55E00"}


def draw(path: pathlib.Path) -> None:
    """Writes the picture."""
    topology = reading.load(_FOLDER / "placement.yaml")
    placement = units.place(None, topology)
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    drawn = set()
    for link in topology.links:
        ends = frozenset((link.source, link.target))
        if ends in drawn:
            continue
        drawn.add(ends)
        (x, y), (u, v) = _AT[link.source], _AT[link.target]
        axes.plot([x, u], [y, v], color="0.6", lw=1.5, zorder=0)
        text = f"{link.latency_ms:g} ms\n{link.mbit_per_s:g} Mbit/s"
        beside = x == u
        axes.annotate(
            text, ((x + u) / 2, (y + v) / 2), (6, -14) if beside else (0, 4),
            textcoords="offset points", fontsize=8, color="0.3",
            ha="left" if beside else "center", va="center" if beside else "bottom",
        )  # fmt: skip
    for name, (x, y) in _AT.items():
        busy, watts = (placement.sites[name][key] for key in ("utilisation", "watts"))
        axes.text(
            x, y, f"{name}\n{busy:.0%} busy, {watts:.2f} W", ha="center", va="center",
            fontsize=9, bbox={"boxstyle": "round", "fc": "white", "ec": "0.3"},
        )  # fmt: skip
    for site, (x, y) in _AT.items():
        below = -28
        for entry in placement.assignments:
            here = [unit for unit, place in entry.units.items() if place == site]
            if here:
                axes.annotate(
                    f"{entry.site}: {', '.join(here)}", (x, y), (0, below),
                    textcoords="offset points", ha="center", va="center", fontsize=8,
                    color=_COLOURS[entry.site],
                    bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"},
                )  # fmt: skip
                below -= 13
    axes.set(xlim=(-0.6, 3.6), ylim=(-0.4, 1.3))
    axes.set_title(
        f"{placement.latency_ms:.1f} ms per row, {placement.watts:.2f} W of "
        f"{topology.watts:g} W",
        fontsize=10,
    )
    axes.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(_FOLDER / "placement.png")

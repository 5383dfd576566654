"""Images, to see what an exit finds easy."""

from __future__ import annotations

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import WIDTH, plt, save

_COLUMNS = 8


def gallery(
    path: files.Path,
    images: np.ndarray,
    exits: np.ndarray,
    answers: np.ndarray,
    labels: np.ndarray,
    number: int,
    title: str,
    seed: int = 0,
) -> None:
    """Draws up to eight images that left at each exit, drawn by lot.

    Args:
        path: .png to write.
        images: uint8 [n, H, W, 1 or 3].
        exits: int [n], where each left, 0-based.
        answers: int [n], the label it was given.
        labels: int [n], the right one.
        number: of exits.
        title: of the picture.
        seed: of the lot.
    """
    random = np.random.default_rng(seed)
    figure, grid = plt.subplots(
        number,
        _COLUMNS,
        figsize=(WIDTH, 1.15 * number + 0.6),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(title, fontsize=11)
    for k, panels in enumerate(grid):
        rows = np.flatnonzero(exits == k)
        shown = np.sort(random.permutation(rows)[:_COLUMNS])
        for panel in panels:
            panel.set_axis_off()
        for panel, row in zip(panels, shown, strict=False):
            panel.imshow(images[row].squeeze(), cmap="gray", vmin=0, vmax=255)
            right = answers[row] == labels[row]
            text = f"{labels[row]}" if right else f"{labels[row]} as {answers[row]}"
            panel.set_title(text, fontsize=8, pad=2)
        note = f"exit_{k + 1}\n{len(rows):,}"
        panels[0].annotate(
            note,
            (0, 0.5),
            xytext=(-6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
        )
    save(figure, path, grid=False)


def can_show(images: np.ndarray) -> bool:
    """Whether these are images: [n, H, W, 1 or 3]."""
    return images.ndim == 4 and images.shape[-1] in (1, 3)

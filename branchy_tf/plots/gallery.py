"""Sample images of each exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import WIDTH, plt, save, shortened
from branchy_tf.results import exit_name

_COLUMNS = 8


def gallery(
    path: files.Path,
    images: Any,
    exits: np.ndarray,
    answers: np.ndarray,
    labels: np.ndarray,
    number: int,
    title: str,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> None:
    """Plots up to eight images of each exit, sampled at random.

    Args:
        path: the .png file to write.
        images: uint8 [n, H, W, 1 or 3]; may be read on access.
        exits: int [n], the exit of each row, 0-based.
        answers: int [n], the predicted classes.
        labels: int [n], the true classes.
        number: the number of exits.
        title: the title of the plot.
        seed: the seed of the sample.
        class_names: the names of the classes; default: their numbers.
    """
    random = np.random.default_rng(seed)
    # A separate panel for each image would take ten times as long.
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 * number + 0.4))
    figure.subplots_adjust(left=0.1, right=1, bottom=0, top=1 - 0.3 / (number + 0.4))
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()
    for k in range(number):
        rows = np.flatnonzero(exits == k)
        shown = np.sort(random.permutation(rows)[:_COLUMNS])
        for column, row in enumerate(shown):
            axes.imshow(
                np.asarray(images[row]).squeeze(),
                cmap="gray",
                vmin=0,
                vmax=255,
                extent=(column + 0.05, column + 0.95, k + 1, k + 0.25),
            )
            right = answers[row] == labels[row]
            label, answer = (
                str(i) if class_names is None else shortened(class_names[i], 12)
                for i in (labels[row], answers[row])
            )
            text = label if right else f"{label} as {answer}"
            axes.text(column + 0.5, k + 0.22, text, ha="center", fontsize=8)
        note = f"{exit_name(k + 1)}\n{len(rows):,}"
        axes.text(-0.08, k + 0.65, note, ha="right", va="center", fontsize=8)
    axes.set(xlim=(0, _COLUMNS), ylim=(number, 0), aspect="auto")
    save(figure, path, grid=False)


def can_show(images: Any) -> bool:
    """Whether `gallery` can show `images`: uint8 [n, H, W, 1 or 3]."""
    shape: tuple[int, ...] = getattr(images, "shape", ())
    return len(shape) == 4 and shape[-1] in (1, 3) and images.dtype == np.uint8

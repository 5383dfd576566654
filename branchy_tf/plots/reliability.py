"""Reliability diagrams: the accuracy of each exit over its confidence."""

from __future__ import annotations

import numpy as np
from matplotlib.lines import Line2D

from branchy_tf import files
from branchy_tf.plots.style import BLACK, BLUE, ORANGE, panels, save
from branchy_tf.results import exit_name

_BINS = 10
# Line, marker, colour, name.
_BEFORE = ("--", "s", ORANGE, "before temperature scaling")
_AFTER = ("-", "o", BLUE, "after")


def reliability(
    path: files.Path, before: np.ndarray, after: np.ndarray, labels: np.ndarray
) -> None:
    """Plots each exit's accuracy over its confidence, with and without temperature.

    Args:
        path: the .png file to write.
        before: float32 [n, N, classes], probabilities without temperature.
        after: float32 [n, N, classes], probabilities with temperature.
        labels: int [n], the true classes.

    References:
        Guo et al. (ICML 2017, arXiv 1706.04599), Figures 1 and 4.
    """
    figure, axes = panels(before.shape[1], height=3.0, sharex=True)
    for k, panel in enumerate(axes):
        panel.plot([0, 100], [0, 100], color="0.6", linewidth=1)
        errors = []
        for probabilities, style, marker, color, _ in (
            (before[:, k], *_BEFORE),
            (after[:, k], *_AFTER),
        ):
            confidence, accuracy, share, error = bins(probabilities, labels)
            x, y = 100 * confidence, 100 * accuracy
            panel.plot(x, y, style, color=color)
            # A small marker stands for few rows, whose accuracy is noisy.
            sizes = 12 + 140 * np.sqrt(share)
            panel.scatter(
                x, y, s=sizes, c=color, marker=marker, edgecolor=BLACK, zorder=3
            )
            errors.append(f"{100 * error:.2f}")
        title = f"{exit_name(k + 1)}: error {errors[0]} points, then {errors[1]}"
        panel.set(ylabel="accuracy (%)", title=title)
    axes[-1].set_xlabel("confidence: the largest probability (%)")
    handles = [
        Line2D([], [], color=color, linestyle=style, marker=marker, label=name)
        for style, marker, color, name in (_BEFORE, _AFTER)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    save(figure, path)


def bins(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The calibration of one exit in ten bins of equal width.

    Args:
        probabilities: [n, classes].
        labels: int [n], the true classes.

    Returns:
        `(confidence, accuracy, share, error)`: mean confidence, accuracy and share of
        the rows for each non-empty bin, and the expected calibration error, all
        fractions of 1.
    """
    confidence = probabilities.max(axis=-1).astype(np.float64)
    right = probabilities.argmax(axis=-1) == labels
    index = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(index, minlength=_BINS)
    used = counts > 0
    means = np.bincount(index, confidence, _BINS)[used] / counts[used]
    accuracies = np.bincount(index, right, _BINS)[used] / counts[used]
    share = counts[used] / len(labels)
    return means, accuracies, share, float(share @ np.abs(means - accuracies))

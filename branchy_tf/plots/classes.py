"""Exit rates and accuracy by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLACK, GREYS, HATCHES, WIDTH, plt, save, shortened
from branchy_tf.results import exit_name

_MOST_CLASSES = 40


def classes(
    path: files.Path,
    exits: np.ndarray,
    right: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
) -> None:
    """Plots the exit rates and the accuracy of each class.

    Args:
        path: the .png file to write.
        exits: int [n], the exit of each row, 0-based.
        right: bool [n], whether the row is classified correctly.
        labels: int [n], the true classes. Of more than 40 classes, only the 40 least
            accurate are shown.
        class_names: the names of the classes; default: their numbers.
    """
    shares, accuracy, names = by_class(exits, right, labels)
    shown = np.arange(len(names))
    title = "Exits and accuracy by class"
    if len(names) > _MOST_CLASSES:
        shown = np.sort(np.argsort(accuracy, kind="stable")[:_MOST_CLASSES])
        title += f" ({_MOST_CLASSES} least accurate of {len(names)})"
    height = 1.8 + 0.3 * len(shown)
    figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    y = np.arange(len(shown))
    left = np.zeros(len(shown))
    for k in range(shares.shape[1]):
        axes.barh(
            y,
            100 * shares[shown, k],
            left=left,
            color=GREYS[k % len(GREYS)],
            hatch=HATCHES[k % len(HATCHES)],
            edgecolor="0.35",
            linewidth=0.6,
            label=exit_name(k + 1),
        )
        left += 100 * shares[shown, k]
    axes.plot(
        100 * accuracy[shown],
        y,
        "D",
        color="white",
        markeredgecolor=BLACK,
        markeredgewidth=1.8,
        label="accuracy",
    )
    called = [str(i) if class_names is None else class_names[i] for i in names[shown]]
    axes.set_yticks(y, [shortened(name) for name in called])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set(xlabel="%", ylabel="class", xlim=(0, 102), title=title)
    columns = min(shares.shape[1] + 1, 3)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
    save(figure, path)


def by_class(
    exits: np.ndarray, right: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(shares [C, exits], accuracy [C], classes [C])`, for the classes that occur."""
    names, index = np.unique(labels, return_inverse=True)
    number = int(exits.max()) + 1
    counts = np.bincount(index * number + exits, minlength=len(names) * number)
    counts = counts.reshape(len(names), number)
    total = counts.sum(axis=1)
    return counts / total[:, None], np.bincount(index, right) / total, names

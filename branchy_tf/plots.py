"""Pictures of results: told apart by shape as well as by colour."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from branchy_tf import files
from branchy_tf.thresholds import Point

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"


def calibration(
    path: files.Path,
    scores: np.ndarray,
    correct: np.ndarray,
    costs: Sequence[float],
    points: Sequence[Point],
    chosen: Point,
    criterion: str,
) -> None:
    """Draws the frontier with the chosen point, and what each gate lets go.

    Left: accuracy against expected multiply-adds (BranchyNet, Figure 3). Right:
    for each early exit, the share of rows below a threshold (Figure 4) and the
    exit's accuracy on them.

    Args:
        path: .png to write.
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: [N] cumulative.
        points: the frontier.
        chosen: the point that was chosen.
        criterion: name of the score.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.step(
        [p.cost / 1e6 for p in points],
        [100 * p.accuracy for p in points],
        where="post",
        color=BLUE,
        marker=".",
        label="best thresholds",
    )
    left.plot(
        [c / 1e6 for c in costs],
        100 * correct.mean(axis=0),
        "s",
        color=BLACK,
        markerfacecolor="none",
        markersize=8,
        label="each exit alone",
    )
    left.plot(
        [chosen.cost / 1e6],
        [100 * chosen.accuracy],
        "*",
        color=ORANGE,
        markersize=16,
        label="chosen",
    )
    for k, cost in enumerate(costs):
        beyond = cost > costs[-1] / 2
        left.annotate(
            f"exit_{k + 1}",
            (cost / 1e6, 100 * correct[:, k].mean()),
            xytext=(-8 if beyond else 8, -12),
            ha="right" if beyond else "left",
            textcoords="offset points",
            fontsize=9,
        )
    left.set(
        xlabel="expected multiply-adds of an image (millions)",
        xlim=(0, None),
        ylabel="accuracy, validation split (%)",
        title="Accuracy against cost",
    )
    left.margins(x=0.12, y=0.12)
    left.legend(loc="lower right")

    styles = ["-", "--", ":", "-."]
    for k in range(scores.shape[1] - 1):
        order = np.argsort(scores[:, k])
        number = np.arange(1, len(order) + 1)
        style = styles[k % len(styles)]
        right.plot(
            scores[order, k],
            100 * number / len(order),
            style,
            color=BLUE,
            label=f"exit_{k + 1}: rows below",
        )
        right.plot(
            scores[order, k],
            100 * np.cumsum(correct[order, k]) / number,
            style,
            color=GREEN,
            linewidth=2.5,
            label=f"exit_{k + 1}: right among them",
        )
        right.axvline(
            chosen.thresholds[k],
            color=ORANGE,
            linestyle=style,
            label=f"T_{k + 1} = {chosen.thresholds[k]:.3g}",
        )
    right.set(
        xlabel=f"threshold on the score ({criterion}; logarithmic beyond 0.001)",
        ylabel="%",
        ylim=(0, 103),
        title="What a threshold lets go",
    )
    right.set_xscale("symlog", linthresh=1e-3)
    right.set_xlim(0, None)
    right.legend(loc="lower right")
    _save(figure, path)


def training(path: files.Path, rows: Sequence[dict[str, str]]) -> None:
    """Draws each exit's validation accuracy over the epochs of all phases.

    Args:
        path: .png to write.
        rows: of history.csv, at least one.
    """
    columns = [c for c in rows[0] if c.startswith("val_") and c.endswith("_accuracy")]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    epochs = np.arange(1, len(rows) + 1)
    looks = itertools.product(["--", "-", ":", "-."], [ORANGE, BLUE, GREEN, BLACK])
    for column, (style, color) in zip(columns, looks, strict=False):
        values = [float(row[column] or "nan") for row in rows]
        name = column.removeprefix("val_").removesuffix("_accuracy")
        axes.plot(epochs, 100 * np.array(values), style, color=color, label=name)
    for i in range(1, len(rows)):
        if rows[i]["phase"] != rows[i - 1]["phase"]:
            axes.axvline(i + 0.5, color=BLACK, linewidth=0.8)
            axes.annotate(
                rows[i]["phase"],
                (i + 0.5, 0.02),
                xytext=(4, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
            )
    axes.set(
        xlabel="epoch",
        ylabel="accuracy, validation split (%)",
        title="Accuracy of each exit while training",
    )
    axes.legend(loc="center right")
    _save(figure, path)


def study(path: files.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws each exit's accuracy in every training of a study, by variant.

    Args:
        path: .png to write.
        rows: dicts with group, variant, exit_1 and exit_2 (shares), gain.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    counts = [len({r["variant"] for r in rows if r["group"] == g}) for g in groups]
    figure, panels = plt.subplots(
        len(groups),
        2,
        figsize=(10, 1.2 + 0.42 * sum(counts)),
        layout="constrained",
        squeeze=False,
        height_ratios=counts,
    )
    for (left, right), group in zip(panels, groups, strict=True):
        here = [row for row in rows if row["group"] == group]
        names = list(dict.fromkeys(row["variant"] for row in here))
        heights = np.array([len(names) - 1 - names.index(r["variant"]) for r in here])
        for column, marker, color, shift in (
            ("exit_1", "o", ORANGE, 0.12),
            ("exit_2", "^", BLUE, -0.12),
        ):
            values = [100 * row[column] for row in here]
            left.plot(values, heights + shift, marker, color=color, label=column)
        right.plot([row["gain"] for row in here], heights, "s", color=BLACK)
        for axes in (left, right):
            axes.set_yticks(range(len(names)), reversed(names))
            axes.set_ylim(-0.5, len(names) - 0.5)
        right.set_yticklabels([])
        left.set_title(group, loc="left")
    panels[-1][0].set_xlabel("accuracy on validation rows (%)")
    panels[-1][1].set_xlabel("gain in multiply-adds at no loss of accuracy")
    panels[0][0].legend(loc="best")
    _save(figure, path)


def _save(figure: Any, path: files.Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    with files.replacing(path) as beside:
        figure.savefig(beside, dpi=120)
    plt.close(figure)

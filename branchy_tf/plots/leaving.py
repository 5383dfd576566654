"""Scores at each early exit and the effect of its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf import files
from branchy_tf.plots.style import BLUE, GREEN, ORANGE, SKY, panels, save
from branchy_tf.policy import ExitPolicy
from branchy_tf.results import exit_name

# The score below which the axis is linear.
_LINEAR = 1e-4
_BINS = 30


def leaving(
    path: files.Path,
    scores: np.ndarray,
    correct: np.ndarray,
    policy: ExitPolicy,
) -> None:
    """Plots the share of rows below each score, and their accuracy, by early exit.

    Args:
        path: the .png file to write.
        scores: float32 [n, N].
        correct: bool [n, N].
        policy: whose thresholds and criterion are drawn.

    References:
        BranchyNet (2016), Figure 4.
    """
    figure, axes = panels(len(policy.thresholds), sharex=True)
    for k, (panel, limit) in enumerate(zip(axes, policy.thresholds, strict=True)):
        order = np.argsort(scores[:, k])
        number = np.arange(1, len(order) + 1)
        panel.plot(
            scores[order, k],
            100 * number / len(order),
            color=BLUE,
            label="share of images below",
        )
        panel.plot(
            scores[order, k],
            100 * np.cumsum(correct[order, k]) / number,
            "--",
            color=GREEN,
            linewidth=2.5,
            label="accuracy on these",
        )
        _mark(panel, k, limit)
        panel.set(ylabel="%", ylim=(0, 105))
    _score_axis(figure, axes, policy.criterion)
    save(figure, path)


def histograms(
    path: files.Path,
    scores: np.ndarray,
    correct: np.ndarray,
    policy: ExitPolicy,
) -> None:
    """Plots the scores of correct and wrong answers by early exit; see `leaving`."""
    figure, axes = panels(len(policy.thresholds), sharex=True)
    top = max(float(scores[:, :-1].max(initial=0)), 10 * _LINEAR)
    edges = np.concatenate([[0], np.geomspace(_LINEAR, 1.001 * top, _BINS)])
    for k, (panel, limit) in enumerate(zip(axes, policy.thresholds, strict=True)):
        right = correct[:, k]
        panel.hist(scores[right, k], edges, color=SKY, edgecolor=BLUE, label="correct")
        panel.hist(
            scores[~right, k],
            edges,
            color="none",
            edgecolor="black",
            hatch="////",
            label="wrong",
        )
        _mark(panel, k, limit)
        panel.set_yscale("log")
        panel.set(ylim=(0.7, None), ylabel="images")
    _score_axis(figure, axes, policy.criterion)
    save(figure, path)


def _mark(panel: Any, k: int, limit: float) -> None:
    panel.set_title(f"{exit_name(k + 1)}: T = {limit:.3g}")
    # A line at infinity would stretch the axis, so it is drawn at the right end.
    where = limit if np.isfinite(limit) else panel.get_xlim()[1]
    panel.axvline(where, color=ORANGE, linestyle="-.", linewidth=2, label="threshold T")


def _score_axis(figure: Any, axes: list, criterion: str) -> None:
    for panel in axes:
        panel.set_xscale("symlog", linthresh=_LINEAR)
        panel.set_xlim(0, None)
    axes[-1].set_xlabel(f"score ({criterion}), logarithmic above {_LINEAR:g}")
    # One legend for all panels.
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=9,
    )

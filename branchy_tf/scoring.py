"""How a model does on a split: each exit alone, and with real routing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from scipy import stats
from tqdm import tqdm

from branchy_tf import costs, exits
from branchy_tf.data import Dataset, Split
from branchy_tf.predictor import EarlyExitPredictor


def every_exit(
    predictor: EarlyExitPredictor, split: Split
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [n, N] and correctness bool [n, N] of every exit."""
    with tqdm(total=len(split), unit=" images", desc="every exit") as bar:
        probabilities, scores = predictor.all_exits(split.images, progress=bar.update)
    return scores, probabilities.argmax(axis=-1) == split.labels[:, None]


def evaluate(
    model: keras.Model,
    thresholds: Sequence[float],
    criterion: str,
    dataset: Dataset,
    trained_baseline: keras.Model | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json: the test split, really routed.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        thresholds: N-1 numbers.
        criterion: name of the score.
        dataset: its test split is used.
        trained_baseline: the network trained without branches, if there is one.

    Returns:
        The fields of evaluation.json, among them 95 % intervals:
        `accuracy_interval` (Wilson), and `accuracy_drop` below the final exit
        on the same rows with `accuracy_drop_interval` (Bonett and Price).
    """
    test = dataset.test
    predictor = EarlyExitPredictor(model, thresholds, criterion)
    _, correct = every_exit(predictor, test)
    answer = predictor.predict(test.images)
    right = answer.labels == test.labels
    rates = answer.exit_rates(predictor.num_exits)
    exit_macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    macs = float(rates @ exit_macs)
    return {
        "dataset": dataset.name,
        "split": "test",
        "num_examples": len(test),
        "criterion": criterion,
        "exits": exits.exit_names(model),
        "thresholds": list(thresholds),
        "accuracy": right.mean(),
        "accuracy_interval": wilson_interval(right),
        "accuracy_drop": correct[:, -1].mean() - right.mean(),
        "accuracy_drop_interval": paired_interval(correct[:, -1], right),
        "exit_rates": rates,
        "exit_accuracies": correct.mean(axis=0),
        "leaving_accuracies": [
            right[answer.exits == k].mean() if (answer.exits == k).any() else None
            for k in range(predictor.num_exits)
        ],
        "exit_macs": exit_macs,
        "macs": macs,
        "full_macs": full_macs,
        "gain": full_macs / macs,
        "baseline_accuracy": (
            None if trained_baseline is None else plain_accuracy(trained_baseline, test)
        ),
    }


def plain_accuracy(model: keras.Model, split: Split) -> float:
    """Accuracy of a model with one logits output."""
    logits = model.predict(split.images, batch_size=256, verbose=0)
    return float((logits.argmax(axis=-1) == split.labels).mean())


def wilson_interval(right: np.ndarray) -> list[float]:
    """95 % interval of a share, from bool [n]."""
    test = stats.binomtest(int(right.sum()), len(right))
    interval = test.proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def paired_interval(first: np.ndarray, second: np.ndarray) -> list[float]:
    """95 % interval of mean(first) - mean(second), from bool [n] on the same rows.

    References:
        Bonett and Price, Adjusted Wald confidence interval for a difference of
        binomial proportions based on paired data (2012): one row is added to
        each kind of disagreement, so no disagreement at all does not look
        certain.
    """
    rows = len(first) + 2
    lost = ((first & ~second).sum() + 1) / rows
    won = ((second & ~first).sum() + 1) / rows
    difference = lost - won
    half = stats.norm.ppf(0.975) * np.sqrt((lost + won - difference**2) / rows)
    return [float(difference - half), float(difference + half)]

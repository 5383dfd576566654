"""How a model does on a split: each exit alone, and with real routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from scipy import stats
from tqdm import tqdm

from branchy_tf import costs, exits, thresholds
from branchy_tf.confidence import probabilities_and_scores
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.results import Predictions

# How far a score may be from a threshold for its row to be named.
NEAR = 1e-4


@dataclasses.dataclass(frozen=True)
class Answers:
    """What every exit says of every row.

    Attributes:
        probabilities: float32 [n, N, classes].
        scores: float32 [n, N].
        labels: int64 [n], the truth.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @property
    def given(self) -> np.ndarray:
        """int64 [n, N], the label that each exit gives."""
        return self.probabilities.argmax(axis=-1)

    @property
    def correct(self) -> np.ndarray:
        """Whether it is the right one, bool [n, N]."""
        return self.given == self.labels[:, None]


def every_exit(predictor: EarlyExitPredictor, split: Split) -> np.ndarray:
    """Logits float32 [n, N, classes] of every exit, with a progress bar.

    Raises:
        BranchyError: a row of them is no prediction (a NaN or +inf among them, or
            -inf alone); the message names exit and row.
    """
    with tqdm(total=len(split), unit=" images", desc="every exit") as bar:
        logits = predictor.logits(split.images, progress=bar.update)
    rows, columns = np.nonzero(~np.isfinite(logits.max(axis=-1)))
    if len(rows):
        exit_, row = columns[0], rows[0]
        found = "NaN" if np.isnan(logits[row, exit_]).any() else "infinite logits"
        raise BranchyError(
            f"{exits.exit_name(exit_ + 1)} gives {found} for {len(set(rows))} of "
            f"{len(logits):,} rows, first for row {row}; expected numbers. The "
            "weights or the data are damaged; train again."
        )
    return logits


def answers(
    logits: np.ndarray,
    labels: np.ndarray,
    criterion: str = "entropy",
    temperatures: Sequence[float] | None = None,
) -> Answers:
    """The answers that lie in the logits of every exit.

    Args:
        logits: float32 [n, N, classes].
        labels: int [n].
        criterion: name of the score.
        temperatures: N numbers; default: 1 each.
    """
    number = logits.shape[1]
    parts = [
        probabilities_and_scores(logits[:, k], criterion, temperature)
        for k, temperature in enumerate(
            thresholds.check_temperatures(temperatures, number)
        )
    ]
    probabilities, scores = (
        np.stack([keras.ops.convert_to_numpy(part[i]) for part in parts], axis=1)
        for i in range(2)
    )
    return Answers(probabilities, scores, labels)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A test split, really routed.

    Attributes:
        result: the content of evaluation.json.
        logits: float32 [n, N, classes], of every exit.
        answers: of every exit.
        routed: the answers that early exit gives.
    """

    result: dict[str, Any]
    logits: np.ndarray
    answers: Answers
    routed: Predictions


def evaluate(
    model: keras.Model,
    limits: Sequence[float],
    criterion: str,
    dataset: Dataset,
    trained_baseline: keras.Model | None = None,
    temperatures: Sequence[float] | None = None,
) -> Evaluation:
    """Routes the test split, and compares with a count on every exit's scores.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        limits: N-1 thresholds.
        criterion: name of the score.
        dataset: its test split is used.
        trained_baseline: the network trained without branches, if there is one.
        temperatures: N numbers that the exits' logits are divided by; default: 1.

    Returns:
        An `Evaluation`. Among the fields of its result are 95 % intervals:
        `accuracy_interval` (Wilson), `accuracy_drop` below the final exit on the
        same rows with `accuracy_drop_interval` (Bonett and Price), and those of
        the multiply-adds and the gain (bootstrap).
    """
    test = dataset.test
    predictor = EarlyExitPredictor(model, limits, criterion, temperatures)
    logits = every_exit(predictor, test)
    every = answers(logits, test.labels, criterion, temperatures)
    correct = every.correct
    routed = predictor.predict(test.images)
    right = routed.labels == test.labels
    rates = routed.exit_rates(predictor.num_exits)
    exit_macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    macs = float(rates @ exit_macs)
    low, high = thresholds.bootstrap(every.scores, correct, exit_macs, limits)["cost"]
    result = {
        "dataset": dataset.name,
        "split": "test",
        "num_examples": len(test),
        "criterion": criterion,
        "exits": exits.exit_names(model),
        "thresholds": list(limits),
        "temperatures": thresholds.check_temperatures(temperatures, len(rates)),
        "accuracy": right.mean(),
        "accuracy_interval": wilson_interval(right),
        "accuracy_drop": correct[:, -1].mean() - right.mean(),
        "accuracy_drop_interval": paired_interval(correct[:, -1], right),
        "exit_rates": rates,
        "exit_accuracies": correct.mean(axis=0),
        "leaving_accuracies": [
            right[routed.exits == k].mean() if (routed.exits == k).any() else None
            for k in range(predictor.num_exits)
        ],
        "exit_macs": exit_macs,
        "macs": macs,
        "macs_interval": [low, high],
        "full_macs": full_macs,
        "gain": full_macs / macs,
        "gain_interval": [full_macs / high, full_macs / low],
        "stored_scores": _stored(every, limits, exit_macs, routed),
        "baseline_accuracy": (
            None if trained_baseline is None else plain_accuracy(trained_baseline, test)
        ),
    }
    return Evaluation(result, logits, every, routed)


def _stored(
    every: Answers,
    limits: Sequence[float],
    exit_macs: Sequence[int],
    routed: Predictions,
) -> dict[str, Any]:
    """What a count on every exit's scores expects, and which rows went elsewhere."""
    point = thresholds.evaluate(every.scores, every.correct, exit_macs, limits)
    expected = thresholds.exit_indices(every.scores, limits)
    return {
        "accuracy": point.accuracy,
        "macs": point.cost,
        "near": NEAR,
        "rows_near_a_threshold": np.flatnonzero(
            thresholds.near(every.scores, limits, NEAR)
        ),
        "rows_routed_elsewhere": np.flatnonzero(expected != routed.exits),
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

"""Scores a model on a split: each exit alone, and routed through the exported graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from scipy import stats
from tqdm import tqdm

from branchy_tf import costs, exits, thresholds
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.exits.confidence import exit_answer
from branchy_tf.policy import ExitPolicy, flushed
from branchy_tf.predictor import EarlyExitPredictor, LogitsPredictor
from branchy_tf.results import Predictions
from branchy_tf.saved_model.checking import TOLERANCE

# Rows with a score this close to a threshold are listed.
NEAR = 1e-4
# Rows in memory at a time.
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Answers:
    """Every exit's answer to every row.

    Attributes:
        probabilities: float32 [n, N, classes].
        scores: float32 [n, N].
        labels: int64 [n], the true labels.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @property
    def given(self) -> np.ndarray:
        """The label that each exit predicts, int64 [n, N]."""
        return self.probabilities.argmax(axis=-1)

    @property
    def correct(self) -> np.ndarray:
        """Whether each exit is correct, bool [n, N]."""
        return self.given == self.labels[:, None]


def every_exit(predictor: LogitsPredictor, split: Split) -> np.ndarray:
    """Every exit's logits, float32 [n, N, classes], with a progress bar.

    Raises:
        BranchyError: a row has a NaN or +inf logit, or -inf logits only; the message
            names exit and row.
    """
    parts = []
    with tqdm(total=len(split), unit=" rows", desc="every exit") as bar:
        for inputs, _ in split.batches(_BATCH_SIZE):
            parts.append(predictor.logits(inputs, progress=bar.update))
    logits = np.concatenate(parts)
    rows, columns = np.nonzero(~np.isfinite(logits.max(axis=-1)))
    if len(rows):
        exit_, row = columns[0], rows[0]
        found = "NaN" if np.isnan(logits[row, exit_]).any() else "infinite logits"
        raise BranchyError(
            f"{exits.exit_name(exit_ + 1)} gives {found} for {len(set(rows))} of "
            f"{len(logits):,} rows, first for row {row}; expected finite numbers. The "
            "weights or the data are damaged; train again."
        )
    return logits


def route(predictor: EarlyExitPredictor, split: Split) -> Predictions:
    """The answers with early exit to all rows, which are read batch by batch."""
    parts = [predictor.predict(inputs) for inputs, _ in split.batches(_BATCH_SIZE)]
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.exits for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def answers(
    logits: np.ndarray, labels: np.ndarray, policy: ExitPolicy | None = None
) -> Answers:
    """The answers that every exit's logits imply.

    Args:
        logits: float32 [n, N, classes].
        labels: int [n].
        policy: the criterion and temperatures of the scores; default: entropy at
            temperature 1.
    """
    number = logits.shape[1]
    policy = ExitPolicy.final_exit_only(number) if policy is None else policy
    parts = [exit_answer(logits[:, k], policy, k) for k in range(number)]
    probabilities, scores = (
        np.stack([keras.ops.convert_to_numpy(part[i]) for part in parts], axis=1)
        for i in range(2)
    )
    return Answers(probabilities, flushed(scores), labels)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A test split, routed through the exported graph.

    Attributes:
        result: the content of evaluation.json.
        logits: float32 [n, N, classes], of every exit.
        answers: every exit's answers.
        routed: the answers with early exit.
    """

    result: dict[str, Any]
    logits: np.ndarray
    answers: Answers
    routed: Predictions


def evaluate(
    model: keras.Model,
    policy: ExitPolicy,
    dataset: Dataset,
    trained_baseline: keras.Model | None = None,
) -> Evaluation:
    """Routes the test split, and compares the result with every exit's scores.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        policy: decides which rows exit where.
        dataset: provides the test split.
        trained_baseline: the network trained without branches, if there is one.

    Returns:
        An `Evaluation`. Its result has 95 % intervals: `accuracy_interval` (Wilson),
        `accuracy_drop_interval` (Bonett and Price) for the drop below the final exit on
        the same rows, and bootstrap intervals for the multiply-adds and the gain.

    Raises:
        BranchyError: more rows took another exit than rounding explains.
    """
    test = dataset.test
    predictor = EarlyExitPredictor(model, policy)
    logits = every_exit(predictor, test)
    every = answers(logits, test.labels, policy)
    correct = every.correct
    routed = route(predictor, test)
    check_routing(policy, logits, every, routed)
    right = routed.labels == test.labels
    rates = routed.exit_rates(predictor.num_exits)
    exit_macs, full_macs = costs.cumulative_macs(model), costs.full_macs(model)
    macs = float(rates @ exit_macs)
    low, high = thresholds.bootstrap(every.scores, correct, exit_macs, policy.thresholds)[
        "cost"
    ]
    result = {
        "dataset": dataset.name,
        "split": "test",
        "num_examples": len(test),
        "criterion": policy.criterion,
        "exits": exits.exit_names(model),
        "thresholds": policy.thresholds,
        "temperatures": policy.temperatures,
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
        "stored_scores": _stored(every, policy, exit_macs, routed),
        "classes": _by_class(dataset, every, routed),
        "baseline_accuracy": (
            None if trained_baseline is None else plain_accuracy(trained_baseline, test)
        ),
    }
    return Evaluation(result, logits, every, routed)


def _by_class(
    dataset: Dataset, every: Answers, routed: Predictions
) -> list[dict[str, Any]]:
    """The figures of each class; None where it has no rows."""
    labels = every.labels
    right, final = routed.labels == labels, every.correct[:, -1]
    found = []
    for index in range(dataset.classes):
        own = labels == index
        rows = int(own.sum())
        found.append(
            {
                "class": dataset.class_name(index),
                "num_examples": rows,
                "accuracy": right[own].mean() if rows else None,
                "final_exit_accuracy": final[own].mean() if rows else None,
                "exit_rates": (
                    np.bincount(routed.exits[own], minlength=every.correct.shape[1])
                    / max(rows, 1)
                ),
            }
        )
    return found


def _stored(
    every: Answers,
    policy: ExitPolicy,
    exit_macs: Sequence[int],
    routed: Predictions,
) -> dict[str, Any]:
    """The figures counted on every exit's scores, and the rows that may differ."""
    limits = policy.thresholds
    point = thresholds.evaluate(every.scores, every.correct, exit_macs, limits)
    expected = policy.exit_indices(every.scores)
    return {
        "accuracy": point.accuracy,
        "macs": point.cost,
        "near": NEAR,
        "rows_near_a_threshold": np.flatnonzero(
            thresholds.within_tolerance(every.scores, limits, NEAR)
        ),
        "rows_routed_elsewhere": np.flatnonzero(expected != routed.exits),
    }


def check_routing(
    policy: ExitPolicy, logits: np.ndarray, every: Answers, routed: Predictions
) -> None:
    """Checks that the routed graph takes the exits that the scores imply.

    Args:
        policy: decides which rows exit where.
        logits: float32 [n, N, classes], of every exit.
        every: every exit's answers, from these logits.
        routed: the answers with early exit to the same rows.

    Raises:
        BranchyError: more rows took another exit than rounding explains.
    """
    scaled = logits / np.array(policy.temperatures, np.float32)[:, None]
    within = TOLERANCE * max(1.0, float(np.abs(scaled).max(initial=0)))
    policy.check_routing(every.scores, routed.exits, within, "The routed graph")


def plain_accuracy(model: keras.Model, split: Split) -> float:
    """The accuracy of a model with one logits output, a fraction of 1."""
    right = 0
    for inputs, labels in split.batches(_BATCH_SIZE):
        right += int((model.predict_on_batch(inputs).argmax(axis=-1) == labels).sum())
    return right / len(split)


def wilson_interval(right: np.ndarray) -> list[float]:
    """The 95 % Wilson interval of a share, from bool [n]."""
    test = stats.binomtest(int(right.sum()), len(right))
    interval = test.proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def paired_interval(first: np.ndarray, second: np.ndarray) -> list[float]:
    """The 95 % interval of mean(first) - mean(second), from bool [n] on the same rows.

    References:
        Bonett and Price, Adjusted Wald confidence interval for a difference of
        binomial proportions based on paired data (2012). They add one row to each kind
        of disagreement, so that the interval has a width even without disagreement.
    """
    rows = len(first) + 2
    lost = ((first & ~second).sum() + 1) / rows
    won = ((second & ~first).sum() + 1) / rows
    difference = lost - won
    half = stats.norm.ppf(0.975) * np.sqrt((lost + won - difference**2) / rows)
    return [float(difference - half), float(difference + half)]

"""Counts what thresholds do on stored scores, with intervals and kinds of loss.

A risk is the mean of a loss that is 1 or 0. `count_losses_only` and `agreement` return
it as [n, N] bool, true where that exit loses nothing; the last column is always true,
because the reference is the full network's own answer. Passed to the search in place
of correctness, they turn a drop in accuracy into the risk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.policy import check, exit_indices, exits_early, flushed

# Rows times vectors counted in one block, which takes a few megabytes.
_BLOCK = 2_000_000
_BOOTSTRAP_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Point:
    """What one vector of thresholds does on the calibration data.

    Attributes:
        thresholds: N-1 numbers.
        accuracy: the share of correct answers.
        cost: the expected cost per row, in the unit of the costs given.
        exit_rates: N fractions, the share of the rows that takes each exit.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    exit_rates: tuple[float, ...]


def evaluate(scores: Any, correct: Any, costs: Any, thresholds: Any) -> Point:
    """Counts what `thresholds` do on stored scores.

    Args:
        scores: float32 [n, N], the score of each row at each exit.
        correct: bool [n, N], whether each exit alone is correct on the row.
        costs: [N], the cumulative cost of each exit.
        thresholds: N-1 numbers.
    """
    scores, correct, costs = check_arrays(scores, correct, costs)
    check(thresholds, len(costs), rows=1)
    return evaluate_all(scores, correct, costs, [thresholds])[0]


def evaluate_all(
    scores: np.ndarray, correct: np.ndarray, costs: np.ndarray, vectors: Sequence
) -> list[Point]:
    """Evaluates many vectors at once, on arrays that have been checked."""
    points: list[Point] = []
    step = max(_BLOCK // len(scores), 1)
    for start in range(0, len(vectors), step):
        limits = flushed(vectors[start : start + step])
        remaining = np.ones((len(limits), len(scores)), bool)
        counts, right = [], np.zeros(len(limits), np.int64)
        for k in range(len(costs)):
            here = remaining
            if k < len(costs) - 1:
                here = remaining & exits_early(scores[:, k], limits[:, k, None])
            counts.append(np.count_nonzero(here, axis=1))
            right += np.count_nonzero(here & correct[:, k], axis=1)
            remaining = remaining & ~here
        table = np.stack(counts, axis=1)
        points += [
            Point(
                tuple(float(t) for t in vector),
                int(row_right) / len(scores),
                float(row @ costs) / len(scores),
                tuple((row / len(scores)).tolist()),
            )
            for vector, row_right, row in zip(
                vectors[start : start + step], right, table, strict=True
            )
        ]
    return points


def undominated(accuracy: Any, cost: Any) -> np.ndarray:
    """Indices of the Pareto-optimal points, in order of increasing cost."""
    accuracy = np.asarray(accuracy)
    # By cost, then by falling accuracy. The sort is stable, so that the first of equal
    # vectors stays.
    order = np.lexsort((-accuracy, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-1], accuracy[order][:-1]]))
    return order[accuracy[order] > best_before]


def check_arrays(scores: Any, correct: Any, costs: Any) -> tuple:
    """`(scores float32 [n, N], correct bool [n, N], costs float64 [N])`.

    Raises:
        BranchyError: the shapes do not match, there are no rows, or a cost is not
            positive.
    """
    scores = flushed(checks.real_array("scores", scores))
    correct = _as_array(correct)
    costs = checks.real_array("costs", costs).astype(np.float64, copy=False)
    if (
        scores.ndim != 2
        or scores.shape != correct.shape
        or correct.dtype != bool
        or costs.shape != scores.shape[1:]
    ):
        raise BranchyError(
            "Expected scores [n, N], correct [n, N] of bool and costs [N]. Received "
            f"scores {scores.shape}, correct {correct.shape} of {correct.dtype}, costs "
            f"{costs.shape}."
        )
    if not len(scores):
        raise BranchyError("There are no rows to calibrate on; expected at least one.")
    if not (np.isfinite(costs).all() and (costs > 0).all()):
        raise BranchyError(f"Costs must be positive. Received {costs.tolist()}.")
    return scores, correct, costs


def count_losses_only(correct: Any) -> np.ndarray:
    """Correctness in which gains do not make up for losses.

    A row counts as correct at an exit unless only the final exit is correct. An
    accuracy drop is then the share of rows that are wrong with early exit although the
    full network is correct. It is never less than the drop in accuracy, and varies far
    less on few rows.

    Args:
        correct: bool [n, N].

    Returns:
        bool [n, N].

    References:
        The clipped loss of Fast yet Safe (Jazbec et al., NeurIPS 2024,
        arXiv 2405.20915).
    """
    correct = np.asarray(correct)
    return correct | ~correct[:, -1:]


def agreement(labels: Any) -> np.ndarray:
    """Whether each exit agrees with the final one; needs no true labels.

    Args:
        labels: int [n, N], the answer of each exit.

    Returns:
        bool [n, N].
    """
    labels = np.asarray(labels)
    return labels == labels[:, -1:]


def bootstrap(
    scores: Any,
    correct: Any,
    costs: Any,
    thresholds: Any,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Percentile bootstrap intervals for accuracy, accuracy drop and cost.

    Only the exit and the correctness of a row matter to these figures. Drawing n rows
    with replacement is therefore one multinomial draw of the number of rows of each
    kind.

    Args:
        scores: float32 [n, N].
        correct: bool [n, N].
        costs: [N], cumulative.
        thresholds: N-1 numbers.
        confidence: the coverage of the intervals, a fraction of 1.
        seed: the seed of the draws.

    Returns:
        `{"accuracy": [low, high], "accuracy_drop": ..., "cost": ...}`; the drop is
        relative to the final exit on the same rows. The intervals hold for thresholds
        chosen on other rows; on the rows that chose them, accuracy is slightly
        optimistic.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    scores, correct, costs = check_arrays(scores, correct, costs)
    confidence = checks.real_number("confidence", confidence, above=0, below=1)
    seed = checks.whole_number("seed", seed, at_least=0)
    rows, exits = np.arange(len(scores)), exit_indices(scores, thresholds)
    right = correct[rows, exits].astype(np.int64)
    final = correct[:, -1].astype(np.int64)
    kinds = np.stack([exits, right, final])
    values, counts = np.unique(kinds, axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    shares = counts / len(rows)
    drawn = random.multinomial(len(rows), shares, _BOOTSTRAP_DRAWS) / len(rows)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    figures = {
        "accuracy": drawn @ values[1],
        "accuracy_drop": drawn @ (values[2] - values[1]),
        "cost": drawn @ costs[values[0]],
    }
    return {name: np.quantile(x, tails).tolist() for name, x in figures.items()}


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # the rows differ in length
        return np.array(None)

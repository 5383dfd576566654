"""What thresholds do on stored scores: the count, its intervals, and kinds of loss.

A risk is the mean of a loss that is 1 or 0. `count_losses_only` and `agreement` give
it as [n, N] bool, true where leaving at that exit loses nothing; the last column is
true all over, since the full network's own answer is what is compared with. Given to
the search in place of correctness, a drop in accuracy is then the risk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.policy import check, exit_indices, flushed, leaves

# Rows times vectors that are looked at together: some megabytes.
_BLOCK = 2_000_000
# Of a bootstrap.
_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Point:
    """What one vector of thresholds does on the calibration data.

    Attributes:
        thresholds: N-1 numbers.
        accuracy: share of the rows answered rightly.
        cost: expected cost of a row, in the unit of the costs given.
        exit_rates: N shares, of the rows that leave at each exit.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    exit_rates: tuple[float, ...]


def evaluate(scores: Any, correct: Any, costs: Any, thresholds: Any) -> Point:
    """Counts what `thresholds` do on stored scores.

    Args:
        scores: [n, N] float32, the score of each row at each exit.
        correct: [n, N] bool, whether that exit alone answers the row rightly.
        costs: [N], cumulative cost of leaving at each exit.
        thresholds: N-1 numbers.

    Returns:
        A `Point`.
    """
    scores, correct, costs = check_arrays(scores, correct, costs)
    check(thresholds, scores.shape[1], rows=1)
    return evaluate_all(scores, correct, costs, [thresholds])[0]


def evaluate_all(
    scores: np.ndarray, correct: np.ndarray, costs: np.ndarray, vectors: Sequence
) -> list[Point]:
    """The same for many vectors at once, of arrays that have been checked."""
    points: list[Point] = []
    step = max(_BLOCK // len(scores), 1)
    for start in range(0, len(vectors), step):
        limits = flushed(vectors[start : start + step])
        going = np.ones((len(limits), len(scores)), bool)
        counts, right = [], np.zeros(len(limits), np.int64)
        for k in range(len(costs)):
            last = k == len(costs) - 1
            here = going if last else going & leaves(scores[:, k], limits[:, k, None])
            counts.append(np.count_nonzero(here, axis=1))
            right += np.count_nonzero(here & correct[:, k], axis=1)
            going = going & ~here
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
    """Indices of the points that none beats in both, by rising cost."""
    accuracy = np.asarray(accuracy)
    # By cost, and the most accurate first among equals; stable, so that of equal
    # vectors the first stays.
    order = np.lexsort((-accuracy, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-1], accuracy[order][:-1]]))
    return order[accuracy[order] > best_before]


def check_arrays(scores: Any, correct: Any, costs: Any) -> tuple:
    """`(scores float32 [n, N], correct bool [n, N], costs float64 [N])`.

    Raises:
        BranchyError: shapes that do not fit together, no rows, or costs that are
            not positive.
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
    """Correctness in which no row that an exit wins makes up for one it loses.

    A row counts as right at an exit unless the final exit alone is right. With
    these, an accuracy drop is the share of rows that leaving early answers
    wrongly although the full network knew them: never less than the drop in
    accuracy, and far less a matter of luck on few rows.

    Args:
        correct: [n, N] bool.

    Returns:
        [n, N] bool.

    References:
        The clipped loss of Fast yet Safe (Jazbec et al., NeurIPS 2024,
        arXiv 2405.20915).
    """
    correct = np.asarray(correct)
    return correct | ~correct[:, -1:]


def agreement(labels: Any) -> np.ndarray:
    """Where an exit answers as the final one does; it needs no true labels.

    Args:
        labels: int [n, N], the answer of each exit.

    Returns:
        [n, N] bool.
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
    """Percentile bootstrap intervals of what thresholds do.

    Rows that leave at the same exit and fare alike are alike to all three
    figures. Drawing n rows with replacement is therefore drawing how many there
    are of each kind, from a multinomial distribution.

    Args:
        scores: [n, N] float32.
        correct: [n, N] bool.
        costs: [N] cumulative.
        thresholds: N-1 numbers.
        confidence: of the intervals.
        seed: of the draws.

    Returns:
        `{"accuracy": [low, high], "accuracy_drop": ..., "cost": ...}`; the drop is
        below the final exit on the same rows. They hold for thresholds chosen on
        other rows; for those chosen on these, accuracy is a little flattered.

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
    drawn = random.multinomial(len(rows), counts / len(rows), _DRAWS) / len(rows)
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
    except ValueError:  # of rows that differ in length
        return np.array(None)

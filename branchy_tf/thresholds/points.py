"""What one vector of thresholds does on stored scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError
from branchy_tf.thresholds.rule import exit_indices


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
    exits = exit_indices(scores, thresholds)
    counts = np.bincount(exits, minlength=scores.shape[1])
    right = int(correct[np.arange(len(exits)), exits].sum())
    return Point(
        tuple(float(t) for t in thresholds),
        right / len(exits),
        float(counts @ costs) / len(exits),
        tuple((counts / len(exits)).tolist()),
    )


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
    scores = np.asarray(scores, np.float32)
    correct = np.asarray(correct)
    costs = np.asarray(costs, np.float64)
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

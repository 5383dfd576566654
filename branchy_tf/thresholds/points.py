"""What one vector of thresholds does on stored scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError
from branchy_tf.thresholds.rule import check, leaves

# Rows times vectors that are looked at together: some megabytes.
_BLOCK = 2_000_000


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
        limits = np.array(vectors[start : start + step], np.float32)
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
    scores = checks.real_array("scores", scores).astype(np.float32, copy=False)
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


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # of rows that differ in length
        return np.array(None)

"""How sure the figures of a choice are."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.thresholds.points import check_arrays
from branchy_tf.thresholds.rule import exit_indices

_DRAWS = 10_000


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

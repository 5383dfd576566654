"""Whether promises are kept: choices on many draws of rows, measured on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from branchy_tf.thresholds.budgets import choose
from branchy_tf.thresholds.counting import check_arrays, evaluate
from branchy_tf.thresholds.guarantee import EXPECTATION, control_risk


def violations(
    scores: Any,
    kept: Any,
    costs: Any,
    max_risk: float,
    level: float,
    rows: int,
    resamplings: int = 1000,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[dict[str, Any]]:
    """How often the risk is above what was asked, for three ways to choose.

    The stored rows stand for all rows there are, so that the risk of a choice is
    known. Each time `rows` of them are drawn with replacement, and thresholds
    chosen on these.

    Args:
        scores: [n, N] float32.
        kept: [n, N] bool, where leaving loses nothing; from `losses`.
        costs: [N] cumulative.
        max_risk: what the risk is to stay below.
        level: the probability that is promised.
        rows: of a calibration.
        resamplings: how many calibrations.
        seed: of the draws.
        progress: called with 1 after each.

    Returns:
        A row for "plain" (the cheapest whose risk on the drawn rows is small
        enough), "guaranteed" and "expectation": `{"choice", "violations",
        "resamplings", "share", "interval": Clopper and Pearson's of the share,
        "mean_risk", "mean_risk_error": its standard error, "mean_cost",
        "nothing_passed": times that T=0 was all}`.
    """
    # Not at the top: a serving client imports this package and has numpy alone.
    from scipy import stats

    scores, kept, costs = check_arrays(scores, kept, costs)
    random = np.random.default_rng(seed)

    def plain(rows: np.ndarray) -> Sequence[float]:
        drawn, right = scores[rows], kept[rows]
        return choose(drawn, right, costs, max_accuracy_drop=max_risk).thresholds

    def promised(by: float | str) -> Callable[[np.ndarray], Sequence[float]]:
        return lambda rows: (
            control_risk(scores[rows], kept[rows], costs, max_risk, by).thresholds
        )

    ways: dict[str, Callable[[np.ndarray], Sequence[float]]] = {
        "plain": plain,
        "guaranteed": promised(level),
        "expectation": promised(EXPECTATION),
    }
    risks: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(resamplings):
        drawn = random.integers(len(scores), size=rows)
        for name, way in ways.items():
            point = evaluate(scores, kept, costs, way(drawn))
            risks[name].append(1 - point.accuracy)
            spent[name].append(point.cost)
        progress(1)
    results = []
    for name in ways:
        # Risks are shares of rows: half a row parts them safely.
        bad = int((np.array(risks[name]) > max_risk + 0.5 / len(scores)).sum())
        interval = stats.binomtest(bad, resamplings).proportion_ci(0.95)
        results.append(
            {
                "choice": name,
                "violations": bad,
                "resamplings": resamplings,
                "share": bad / resamplings,
                "interval": [float(interval.low), float(interval.high)],
                "mean_risk": float(np.mean(risks[name])),
                "mean_risk_error": float(np.std(risks[name]) / math.sqrt(resamplings)),
                "mean_cost": float(np.mean(spent[name])),
                "nothing_passed": int((np.array(spent[name]) == costs[-1]).sum()),
            }
        )
    return results

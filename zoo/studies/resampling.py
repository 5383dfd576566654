"""How often guarantees hold: thresholds chosen on samples, evaluated on all rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from branchy_tf.thresholds.budgets import choose
from branchy_tf.thresholds.counting import Point, check_arrays, evaluate
from branchy_tf.thresholds.guarantee import EXPECTATION, control_risk


def violations(
    scores: Any,
    retained: Any,
    costs: Any,
    max_risk: float,
    level: float,
    rows: int,
    resamplings: int = 1000,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[dict[str, Any]]:
    """How often the risk exceeds its limit, for three ways of choosing thresholds.

    The given rows stand for the whole population, so the true risk of a choice is known.
    Each calibration samples `rows` of them with replacement and chooses thresholds there.

    Args:
        scores: [n, N] float32.
        retained: [n, N] bool, where exiting loses nothing; from `calibration.retained`.
        costs: [N] cumulative.
        max_risk: maximum risk.
        level: probability that the risk stays within `max_risk`.
        rows: number of rows in each calibration.
        resamplings: number of calibrations.
        seed: of the sampling.
        progress: called with 1 after each calibration.

    Returns:
        A row for "plain" (the cheapest thresholds within `max_risk` on the sampled
        rows), "guaranteed" and "expectation": `{"choice", "violations", "resamplings",
        "share": of calibrations that violate the limit, "interval": its 95 %
        Clopper-Pearson interval, "mean_risk", "mean_risk_error": its standard error,
        "mean_cost", "no_early_exit": number of calibrations where no threshold above 0
        passed}`.
    """
    scores, retained, costs = check_arrays(scores, retained, costs)
    random = np.random.default_rng(seed)

    def plain(sample: np.ndarray) -> Sequence[float]:
        return choose(
            scores[sample], retained[sample], costs, max_accuracy_drop=max_risk
        ).thresholds

    def guaranteed(sample: np.ndarray, by: float | str) -> Sequence[float]:
        return control_risk(
            scores[sample], retained[sample], costs, max_risk, by
        ).thresholds

    methods: dict[str, Callable[[np.ndarray], Sequence[float]]] = {
        "plain": plain,
        "guaranteed": functools.partial(guaranteed, by=level),
        "expectation": functools.partial(guaranteed, by=EXPECTATION),
    }
    points: dict[str, list[Point]] = {name: [] for name in methods}
    for _ in range(resamplings):
        sample = random.integers(len(scores), size=rows)
        for name, method in methods.items():
            points[name].append(evaluate(scores, retained, costs, method(sample)))
        progress(1)
    results = []
    for name, chosen in points.items():
        risk = 1 - np.array([point.accuracy for point in chosen])
        cost = np.array([point.cost for point in chosen])
        # Risks are multiples of one row; half a row allows for rounding.
        violated = int((risk > max_risk + 0.5 / len(scores)).sum())
        interval = stats.binomtest(violated, resamplings).proportion_ci(0.95)
        results.append(
            {
                "choice": name,
                "violations": violated,
                "resamplings": resamplings,
                "share": violated / resamplings,
                "interval": [float(interval.low), float(interval.high)],
                "mean_risk": float(risk.mean()),
                "mean_risk_error": float(risk.std() / math.sqrt(resamplings)),
                "mean_cost": float(cost.mean()),
                "no_early_exit": int((cost == costs[-1]).sum()),
            }
        )
    return results

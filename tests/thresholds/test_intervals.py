from __future__ import annotations

import numpy as np
from samples import rows
from scipy import stats

from branchy_tf import thresholds


def test_bootstrap_agrees_with_scipys():
    scores, right = rows(400, 3)
    limits, costs = [0.3, 0.5], np.array([1, 2, 5.0])
    found = thresholds.bootstrap(scores, right, costs, limits)
    exits = thresholds.exit_indices(scores, limits)
    taken = right[np.arange(400), exits]
    for name, values in {
        "accuracy": taken.astype(float),
        "accuracy_drop": right[:, -1].astype(float) - taken,
        "cost": costs[exits],
    }.items():
        other = stats.bootstrap(
            (values,), np.mean, n_resamples=2000, method="percentile", rng=1
        ).confidence_interval
        np.testing.assert_allclose(
            found[name], [other.low, other.high], atol=0.05 * np.std(values) + 0.003
        )


def test_bootstrap_covers_the_truth():
    scores, right = rows(20_000, 2)
    truth = thresholds.evaluate(scores, right, [1, 2], [0.4])
    random, covered = np.random.default_rng(0), 0
    for seed in range(50):
        drawn = random.integers(20_000, size=300)
        found = thresholds.bootstrap(
            scores[drawn], right[drawn], [1, 2], [0.4], seed=seed
        )
        low, high = found["cost"]
        covered += low <= truth.cost <= high
    assert 42 <= covered <= 50

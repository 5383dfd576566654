from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from branchy_tf.tuning import bounds


def test_false_claims_are_rarely_proven():
    # As many losses as the budget just allows, looked at again and again.
    lost = np.random.default_rng(0).random((400, 3000)) < 0.0101
    losses, rows = lost.cumsum(axis=1)[:, 9::10], np.arange(10, 3001, 10)
    ever = bounds.is_proven(losses, rows, 0.99, 0.9).any(axis=1).mean()
    # Three standard errors above the 0.1 that are allowed.
    assert 0.01 < ever < 0.1 + 3 * np.sqrt(0.09 / 400)
    # A bound for one look is wrong far more often when it is looked at so often.
    at_once = (stats.binom.cdf(losses, rows, 0.01) <= 0.1).any(axis=1).mean()
    assert at_once > 0.2


def test_true_claims_are_proven_in_time():
    lost = np.random.default_rng(1).random((400, 5000)) < 0.004
    losses = lost.sum(axis=1)
    assert bounds.is_proven(losses, 5000, 0.99, 0.95).mean() > 0.95
    assert not bounds.is_proven(0, 422, 0.99, 0.95)
    assert bounds.is_proven(0, 423, 0.99, 0.95)


@pytest.mark.parametrize("rows", [1, 50, 437, 1000, 7000])
def test_the_bound_is_where_proof_ends(rows):
    for losses in {0, 1, 9, rows // 3, rows - 1, rows} & set(range(rows + 1)):
        bound = bounds.lower_bound(losses, rows, 0.95)
        assert 0 <= bound < 1 - losses / rows or losses == rows
        for budget in (bound - 1e-6, bound + 1e-6):
            if 0 < budget < 1 - losses / rows:
                proven = bounds.is_proven(losses, rows, budget, 0.95)
                assert proven == (budget < bound)
    assert bounds.lower_bound(0, 0) == bounds.lower_bound(3, 3) == 0


def test_more_rows_and_fewer_losses_prove_more():
    values = [bounds.lower_bound(losses, 2000) for losses in range(0, 40, 5)]
    assert values == sorted(values, reverse=True)
    assert bounds.lower_bound(0, 4000) > bounds.lower_bound(0, 2000)
    assert bounds.lower_bound(5, 2000, 0.8) > bounds.lower_bound(5, 2000, 0.99)


def test_the_target_rate_exceeds_the_budget_as_rarely_as_asked():
    rate = bounds.rate_to_aim_at(0.99, 2000, 0.005)
    assert stats.binom.sf(20, 2000, rate) == pytest.approx(0.005)
    assert bounds.rate_to_aim_at(0.9, 10, 0.5) == pytest.approx(0.162, abs=1e-3)

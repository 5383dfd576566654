from __future__ import annotations

import numpy as np
import pytest
from samples import rows

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError


@pytest.mark.parametrize("rates", [[0.6, 0.3], [0.0, 0.5], [1.0, 0.0]])
def test_exit_rates_are_shares_of_all_rows(rates):
    scores, right = rows(1000, 3)
    point = thresholds.choose(scores, right, [1, 2, 3], exit_rates=rates)
    assert point.exit_rates[:2] == pytest.approx(rates)


def test_rows_of_equal_score_exit_together():
    scores = np.float32([[0.1, 0], [0.2, 0], [0.2, 0], [0.2, 0], [0.3, 0]])
    limits = thresholds.quantiles(scores, [0.4])
    assert (scores[:, 0] < np.float32(limits)).sum() == 4


def test_quantiles_ignore_rows_that_never_exit():
    scores = np.float32([[np.nan, 0], [np.inf, 0], [0.1, 0]])
    limits = thresholds.quantiles(scores, [1.0])
    assert thresholds.exit_indices(scores, limits).tolist() == [1, 1, 0]


def test_knee_is_where_accuracy_becomes_expensive():
    points = [
        thresholds.Point((), accuracy, cost, ())
        for accuracy, cost in [(0.5, 1), (0.8, 2), (0.9, 3), (0.92, 6), (0.93, 10)]
    ]
    assert thresholds.find_knee(points) == points[2]
    assert thresholds.find_knee(points[:1]) == points[0]
    assert thresholds.find_knee(points[:2]) == points[1]


def test_known_frontier_is_not_searched_again():
    scores, right = rows(100, 2)
    points = thresholds.frontier(scores, right, [1, 2])
    chosen = thresholds.choose(scores, right, [1, 2], max_cost=1.5, points=points[:1])
    assert chosen == points[0]


def test_geometric_rates_change_by_one_ratio():
    shares = thresholds.geometric_rates(0.5, 4)
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    # The paper's z (1 - q)^(k - 1) q with q = 1/2.
    assert shares[0] == pytest.approx(0.5 / (1 - 0.5**4))
    assert thresholds.geometric_rates(1, 4) == pytest.approx([0.25] * 4)
    assert thresholds.geometric_rates(2, 3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])


@pytest.mark.parametrize("ratio", [1e-300, 1e300])
def test_extreme_ratios_use_one_exit(ratio):
    shares = thresholds.geometric_rates(ratio, 5)
    assert shares[0 if ratio < 1 else -1] == pytest.approx(1)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf"), "half"])
def test_rejects_invalid_ratios(ratio):
    with pytest.raises(BranchyError, match="`ratio` must be a"):
        thresholds.geometric_rates(ratio, 3)

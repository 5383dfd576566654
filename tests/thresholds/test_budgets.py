from __future__ import annotations

import numpy as np
import pytest
from samples import rows

from branchy_tf import thresholds


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

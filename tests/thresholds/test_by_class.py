from __future__ import annotations

import itertools

import numpy as np
import pytest
import samples

from branchy_tf import calibration, thresholds
from branchy_tf.errors import BranchyError

COSTS = np.array([1.0, 3.0, 7.0])


def rows(exits: int, n: int = 60, seed: int = 0):
    """Scores, correctness and labels of three classes, the last of them hard."""
    scores, correct = samples.rows(n, exits, seed, decimals=1)
    labels = np.arange(n) % 3
    correct[labels == 2, 0] &= (
        np.random.default_rng(seed).random((labels == 2).sum()) < 0.4
    )
    return scores, correct, labels


def drop(scores, correct, labels, limits) -> float:
    exits = thresholds.exit_indices(scores, limits)
    return np.nanmax(thresholds.class_drops(correct, exits, labels, 3))


def test_class_drops_by_hand():
    correct = np.array([[1, 1], [0, 1], [1, 0], [0, 0], [0, 1]], bool)
    exits = np.array([0, 0, 0, 0, 1])
    drops = thresholds.class_drops(correct, exits, np.array([0, 0, 1, 1, 2]), 4)
    np.testing.assert_allclose(drops, [0.5, -0.5, 0.0, np.nan])


@pytest.mark.parametrize("bound", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("exits", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_cheapest_thresholds_of_all_within_the_drop(exits, bound, seed):
    scores, correct, labels = rows(exits, seed=seed)
    costs = COSTS[:exits]
    free = thresholds.frontier(scores, correct, costs)
    found = thresholds.within_class_drop(
        scores, correct, correct, labels, costs, bound, free
    )
    assert all(
        drop(scores, correct, labels, point.thresholds) <= bound + 1e-6 for point in found
    )
    # Every threshold that separates the rows, tried one by one.
    cuts = [0, *(np.unique(scores) + np.float32(0.05))]
    tried = [
        thresholds.evaluate(scores, correct, costs, vector)
        for vector in itertools.product(cuts, repeat=exits - 1)
        if drop(scores, correct, labels, vector) <= bound + 1e-6
    ]
    for least in (0.0, correct[:, -1].mean()):
        best = min(p.cost for p in tried if p.accuracy >= least - 1e-9)
        ours = min(p.cost for p in found if p.accuracy >= least - 1e-9)
        assert ours == pytest.approx(best)


def test_the_bound_changes_the_choice():
    scores, correct, labels = rows(2)
    free = thresholds.frontier(scores, correct, COSTS[:2])
    found = thresholds.within_class_drop(
        scores, correct, correct, labels, COSTS[:2], 0.05, free
    )
    assert drop(scores, correct, labels, free[0].thresholds) > 0.05
    assert found[0].cost > free[0].cost
    everything = thresholds.within_class_drop(
        scores, correct, correct, labels, COSTS[:2], 0.99, free
    )
    assert [p.cost for p in everything] == [p.cost for p in free]


def test_many_exits_still_give_feasible_points():
    scores, correct, labels = rows(10)
    costs = np.arange(1.0, 11.0)
    free = thresholds.frontier(scores, correct, costs)
    found = thresholds.within_class_drop(
        scores, correct, correct, labels, costs, 0.1, free
    )
    assert found
    assert found[0].cost < costs[-1]
    for point in found:
        assert drop(scores, correct, labels, point.thresholds) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("budget", "drop", "expected"),
    [
        ({}, -0.1, "`max_class_drop` must be a fraction of 1"),
        ({}, 5, "5 percentage points are 0.05"),
        ({"guarantee": 0.9}, 0.1, "does not go with guarantee"),
        ({"exit_rates": [0.5]}, 0.1, "does not go with exit_rates"),
    ],
)
def test_rejects_invalid_bounds(budget, drop, expected):
    with pytest.raises(BranchyError) as caught:
        calibration.Request(budget, max_class_drop=drop)
    assert expected in str(caught.value)


def test_a_calibration_keeps_the_bound():
    random = np.random.default_rng(1)
    labels = np.arange(300) % 3
    logits = random.normal(size=(300, 2, 3)).astype(np.float32)
    logits[np.arange(300), :, labels] += np.array([1.5, 2.5], np.float32)
    # The first exit knows little of class 2.
    logits[labels == 2, 0] = random.normal(size=(100, 3))
    drops = []
    for bound in (None, 0.05):
        request = calibration.Request({"max_accuracy_drop": 0.1}, max_class_drop=bound)
        found = calibration.calibrate(logits, labels, [1, 3], request)
        drops.append(found.class_drops(3).max())
    assert drops[0] > 0.05 + 1e-6 >= drops[1]

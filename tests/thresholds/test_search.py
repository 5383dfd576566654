from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from samples import rows

from branchy_tf import scoring, thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.policy import SMALLEST
from branchy_tf.thresholds import search
from branchy_tf.thresholds.search import harmed_by_exiting, refine, threshold_cuts


def brute_force(scores, right, costs):
    """{(accuracy, cost)} of every distinct vector of thresholds."""
    choices = [
        [0.0, *np.nextafter(np.unique(scores[:, k]), np.float32(np.inf))]
        for k in range(scores.shape[1] - 1)
    ]
    found = set()
    for limits in itertools.product(*choices):
        taken = np.full(len(scores), scores.shape[1] - 1)
        for k in reversed(range(scores.shape[1] - 1)):
            taken[scores[:, k] < np.float32(limits[k])] = k
        accuracy = right[np.arange(len(scores)), taken].mean()
        found.add((accuracy, np.asarray(costs)[taken].mean()))
    return found


@pytest.mark.parametrize(
    ("n", "costs", "decimals"),
    [(60, [1, 3], None), (40, [1, 3], 1), (25, [1, 2, 5], None), (12, [1, 2, 4, 9], 1)],
)
def test_frontier_is_the_pareto_set_of_all_thresholds(n, costs, decimals):
    scores, right = rows(n, len(costs), decimals=decimals)
    everything = brute_force(scores, right, costs)
    best = {
        (a, c)
        for a, c in everything
        if not any((a2 >= a and c2 < c) or (a2 > a and c2 <= c) for a2, c2 in everything)
    }
    points = thresholds.frontier(scores, right, costs)
    assert len(points) == len(best)
    for point, (accuracy, cost) in zip(
        points, sorted(best, key=lambda b: b[1]), strict=True
    ):
        assert point.accuracy == pytest.approx(accuracy, abs=1e-12)
        assert point.cost == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize("exits", [2, 3, 5])
def test_points_match_a_count_on_the_rows(exits):
    scores, right = rows(300, exits)
    costs = np.arange(1, exits + 1)
    for point in thresholds.frontier(scores, right, costs)[::7]:
        taken = thresholds.exit_indices(scores, point.thresholds)
        assert point.accuracy == right[np.arange(300), taken].mean()
        assert point.cost == pytest.approx(costs[taken].mean())
        assert sum(point.exit_rates) == pytest.approx(1)


def test_thresholds_lie_strictly_between_neighbouring_scores():
    scores, right = rows(200, 2)
    column = np.unique(scores[:, 0])
    for point in thresholds.frontier(scores, right, [1, 2]):
        limit = np.float32(point.thresholds[0])
        assert limit not in column
        assert limit < np.inf


def test_choose_without_budget_is_as_accurate_as_the_final_exit():
    scores, right = rows(500, 3)
    point = thresholds.choose(scores, right, [1, 2, 4])
    assert point.accuracy >= right[:, -1].mean()
    cheaper = [
        p for p in thresholds.frontier(scores, right, [1, 2, 4]) if p.cost < point.cost
    ]
    assert all(p.accuracy < right[:, -1].mean() for p in cheaper)


def test_choose_respects_each_budget():
    scores, right = rows(500, 3)
    costs = [1, 2, 4]
    loose = thresholds.choose(scores, right, costs, max_accuracy_drop=0.05)
    assert right[:, -1].mean() - loose.accuracy <= 0.05
    assert loose.cost < thresholds.choose(scores, right, costs).cost
    assert thresholds.choose(scores, right, costs, min_accuracy=0.8).accuracy >= 0.8
    assert thresholds.choose(scores, right, costs, max_cost=1.7).cost <= 1.7


def test_budget_may_be_met_exactly():
    scores = np.float32([[0.1, 0], [0.2, 0], [0.3, 0]])
    right = np.array([[True, True], [False, True], [True, True]])
    # One row in three, as a decimal that is slightly smaller.
    point = thresholds.choose(scores, right, [1, 2], max_accuracy_drop=1 / 3)
    assert point.exit_rates[0] == 1.0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_cost": 0.5}, "the cheapest cost 1"),
        ({"min_accuracy": 1.0}, "the best reach"),
        ({"max_accuracy_drop": -0.1}, "of at least 0 and below 1"),
        ({"max_accuracy_drop": 1}, "1 percentage point is 0.01"),
        ({"max_accuracy_drop": 2.5}, "2.5 percentage points are 0.025"),
        ({"min_accuracy": 95}, "95 % is 0.95"),
        ({"min_accuracy": float("nan")}, "from 0 to 1"),
        ({"max_cost": -1}, "above 0"),
        ({"max_cost": 2, "min_accuracy": 0.5}, "one of"),
        ({"knee": True, "min_accuracy": 0.5}, "one of"),
        ({"exit_rates": [0.5, 0.5]}, "one for each early exit .1 here"),
        ({"exit_rates": [60, 30]}, "60 % is 0.6"),
        ({"exit_rates": [1.5]}, "fractions of 1"),
        ({"exit_rates": [-0.5]}, "fractions of 1"),
        ({"guarantee": 0.95}, "needs `max_accuracy_drop`"),
        ({"guarantee": 0.95, "max_accuracy_drop": 0}, "cannot be guaranteed"),
        ({"guarantee": 95, "max_accuracy_drop": 0.01}, "95 % is 0.95"),
        ({"guarantee": 0.95, "max_accuracy_drop": 0.01}, "needs 299 test rows"),
    ],
)
def test_impossible_budget_error_says_what_is_possible(budget, message):
    scores, right = rows(100, 2)
    right[0] = False
    with pytest.raises(BranchyError, match=message):
        thresholds.choose(scores, right, [1, 2], **budget)


def test_gains_do_not_make_up_for_losses():
    #         exit_1 loses row 0 and wins row 1
    right = np.array([[False, True], [True, False], [True, True]])
    scores = np.float32([[0.1, 0], [0.2, 0], [0.3, 0]])
    assert thresholds.choose(scores, right, [1, 2]).exit_rates[0] == 1.0
    strict = thresholds.count_losses_only(right)
    assert thresholds.choose(scores, strict, [1, 2]).exit_rates[0] == 0.0


def test_nan_scores_never_exit_early():
    scores = np.float32([[np.nan, 0], [0.2, 0], [0.3, 0]])
    right = np.array([[True, False], [True, True], [True, True]])
    for point in thresholds.frontier(scores, right, [1, 2]):
        assert point.exit_rates[0] <= 2 / 3 + 1e-9


@pytest.mark.parametrize(
    ("scores", "right", "costs"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2), bool), [1, 2]),
        (np.zeros((3, 2)), np.zeros((3, 3), bool), [1, 2]),
        (np.zeros((3, 2)), np.zeros((3, 2)), [1, 2]),
        (np.zeros((3, 2)), np.zeros((3, 2), bool), [1, 2, 3]),
        (np.zeros((3, 2)), np.zeros((3, 2), bool), [0, 2]),
    ],
)
def test_rejects_mismatched_arrays(scores, right, costs):
    with pytest.raises(BranchyError):
        thresholds.frontier(scores, right, costs)


@pytest.mark.parametrize("exits", [2, 3, 7])
def test_few_vectors_are_compared_for_ten_thousand_rows(exits, monkeypatch):
    compared, cheapest = [], search.best_of_grid

    def counted(scores, right, costs, cuts):
        compared.append(math.prod(map(len, cuts)))
        return cheapest(scores, right, costs, cuts)

    monkeypatch.setattr(search, "best_of_grid", counted)
    scores, right = rows(10_000, exits)
    thresholds.frontier(scores, right, np.arange(1, exits + 1))
    (count,) = compared
    assert 1 < count <= 12_000_000


def test_one_exit_has_nothing_to_choose():
    right = np.array([[True], [False]])
    (point,) = thresholds.frontier(np.zeros((2, 1)), right, [3])
    assert (point.thresholds, point.accuracy, point.cost) == ((), 0.5, 3.0)


def test_searches_many_exits():
    scores, right = rows(100, 40)
    costs = np.arange(1, 41)
    points = thresholds.frontier(scores, right, costs)
    assert points[0].cost == 1
    assert points[-1].accuracy >= right[:, -1].mean()
    accuracies = [p.accuracy for p in points]
    assert accuracies == sorted(set(accuracies))
    chosen = thresholds.choose(scores, right, costs)
    assert chosen.cost < 40


def test_refinement_alone_is_close_to_the_optimum():
    scores, right = rows(300, 4, seed=5)
    costs = np.array([1, 2, 4, 8.0])
    proven = thresholds.frontier(scores, right, costs)
    start = thresholds.evaluate(scores, right, costs, [0, 0, 0])
    vectors = refine(scores, right, costs, [start])
    found = [thresholds.evaluate(scores, right, costs, v) for v in vectors]
    for price in (0.0, 0.02, 0.05, 0.1, 0.3, 1.0):

        def worth(point, price=price):
            return point.accuracy - price * point.cost / costs[-1]

        best = max(map(worth, proven))
        assert best - 0.01 <= max(map(worth, found)) <= best + 1e-9


def best_of_quantiles(scores, right, costs, most):
    """The most correct rows for each cost on a grid of quantiles, by counting."""
    gates = scores.shape[1] - 1
    shares = np.linspace(0, 1, most)
    quantiles = np.quantile(scores, shares, axis=0, method="inverted_cdf")
    above = np.nextafter(np.float32(quantiles), np.float32(np.inf))
    grids = [[0, *above[:, k]] for k in range(gates)]
    for limits in itertools.product(*grids):
        yield thresholds.evaluate(scores, right, costs, limits)


@pytest.mark.parametrize("exits", [2, 3])
def test_frontier_is_at_least_a_grid_of_two_hundred_values(exits):
    # 200 values for two exits; for three, every 8th value of both.
    scores, right = rows(400, exits, seed=2)
    costs = np.arange(1, exits + 1.0)
    points = thresholds.frontier(scores, right, costs)
    cost = np.array([point.cost for point in points])
    screened = best_of_quantiles(scores, right, costs, 200 if exits == 2 else 25)
    for other in screened:
        ours = points[np.searchsorted(cost, other.cost + 1e-9) - 1]
        assert ours.accuracy >= other.accuracy


def test_frontier_is_at_least_a_grid_on_real_scores(trained, mnist_5k):
    split = mnist_5k.validation
    logits = trained.predict(split.images, batch_size=256, verbose=0)
    every = scoring.answers(
        np.stack([logits["exit_1"], logits["exit_2"]], axis=1), split.labels
    )
    costs = np.array([220_150.0, 1_247_720.0])
    points = thresholds.frontier(every.scores, every.correct, costs)
    cost = np.array([point.cost for point in points])
    for other in best_of_quantiles(every.scores, every.correct, costs, 200):
        ours = points[np.searchsorted(cost, other.cost + 1e-6) - 1]
        assert ours.accuracy >= other.accuracy


def test_thinned_grid_is_searched_exactly(monkeypatch):
    scores, right = rows(200, 4, seed=3)
    costs = np.array([1, 2, 4, 8.0])
    monkeypatch.setattr(search, "_MAX_VECTORS", 12**3)
    points = thresholds.frontier(scores, right, costs)
    cost = np.array([point.cost for point in points])
    for other in best_of_quantiles(scores, right, costs, 11):
        ours = points[np.searchsorted(cost, other.cost + 1e-9) - 1]
        assert ours.accuracy >= other.accuracy


def test_blocks_of_the_grid_make_no_difference(monkeypatch):
    scores, right = rows(150, 3, decimals=2)
    costs = np.array([1, 2, 5.0])
    whole = thresholds.frontier(scores, right, costs)
    monkeypatch.setattr(search, "_BLOCK", 7)
    assert thresholds.frontier(scores, right, costs) == whole


def test_cuts_lie_only_below_rows_that_exiting_harms():
    scores = np.float32([0.1, 0.2, 0.3, 0.3, 0.4])
    right = np.array([[1, 1], [0, 1], [1, 1], [0, 1], [0, 0]], bool)
    cuts = threshold_cuts(scores, harmed_by_exiting(right, np.array([1, 2.0]), 0))
    assert cuts == pytest.approx([0.15, 0.25, 0.4], abs=1e-6)


def test_warns_of_costs_that_do_not_increase():
    scores, right = rows(25, 3, decimals=1)
    right[:, 1] |= scores[:, 1] < 0.3
    costs = [3, 2, 5]
    with pytest.warns(UserWarning, match="do not increase"):
        points = thresholds.frontier(scores, right, costs)
    everything = brute_force(scores, right, costs)
    best = {
        (a, c)
        for a, c in everything
        if not any((a2 >= a and c2 < c) or (a2 > a and c2 <= c) for a2, c2 in everything)
    }
    assert len(best) > 2
    found = np.array(sorted((point.accuracy, point.cost) for point in points))
    np.testing.assert_allclose(found, sorted(best), rtol=1e-12)


def test_memory_is_far_below_the_size_of_the_grid():
    scores, right = rows(300, 7)
    tracemalloc.start()
    thresholds.frontier(scores, right, np.arange(1, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6  # of 300 * 15^6 * 8 bytes


def tiny_scores(n, exits):
    """Scores close to 0: zeros, denormal and the smallest normal numbers."""
    random = np.random.default_rng(n)
    sizes = [0, 1.4e-45, 1e-42, SMALLEST / 2, SMALLEST, 1.5 * SMALLEST, 1e-37, 1e-3]
    scores = random.choice(np.float32(sizes), (n, exits))
    return scores, random.random((n, exits)) < np.linspace(0.7, 0.9, exits)


BUDGETS = [
    {},
    {"max_accuracy_drop": 0.1},
    {"max_cost": 1.4},
    {"knee": True},
    {"exit_rates": "some"},
    {"max_accuracy_drop": 0.2, "guarantee": 0.9},
    {"max_accuracy_drop": 0.2, "guarantee": "expectation"},
]


@pytest.mark.parametrize("exits", [2, 3, 5, 9])
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_no_threshold_is_a_denormal_number(monkeypatch, exits, budget):
    # Small enough to need grid, thinning and refinement.
    monkeypatch.setattr(search, "_MAX_VECTORS", 60)
    monkeypatch.setattr(search, "_LEAST_CUTS", 3)
    scores, right = tiny_scores(300, exits)
    if "exit_rates" in budget:
        budget = {"exit_rates": [0.3 / (exits - 1)] * (exits - 1)}
    costs = np.arange(1, exits + 1)
    points = [thresholds.choose(scores, right, costs, **budget)]
    points += thresholds.frontier(scores, right, costs)
    for point in points:
        limits = np.float32(point.thresholds)
        assert ((limits == 0) | (limits >= SMALLEST)).all(), limits
        # As in TensorFlow, denormal scores and thresholds are 0.
        below = np.where(scores < SMALLEST, 0, scores)[:, :-1] < limits
        leave = np.hstack([below, np.ones((300, 1), bool)]).argmax(axis=1)
        rates = np.bincount(leave, minlength=exits) / 300
        assert rates.tolist() == list(point.exit_rates)


def test_rows_with_score_zero_can_exit_early():
    scores, right = np.zeros((50, 2), np.float32), np.ones((50, 2), bool)
    point = thresholds.choose(scores, right, [1, 2])
    assert point.exit_rates == (1.0, 0.0)
    assert point.thresholds == (SMALLEST,)
    half = np.where(np.arange(50) % 2, SMALLEST, 0).astype(np.float32)
    scores[:, 0] = half
    right[:, 0] = half == 0
    point = thresholds.choose(scores, right, [1, 2])
    assert point.exit_rates == (0.5, 0.5)

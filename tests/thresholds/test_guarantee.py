from __future__ import annotations

import numpy as np
import pytest
from samples import rows
from scipy import special, stats

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError
from branchy_tf.thresholds import guarantee

COSTS = [1, 3]


def sample(n, exits=2, seed=0):
    scores, right = rows(n, exits, seed)
    return scores, thresholds.count_losses_only(right)


def test_p_value_is_the_binomial_tail_and_below_its_bounds():
    for losses in (0, 3, 8, 15, 40):
        exact = guarantee.p_value(losses, 1500, 0.01)
        assert exact == pytest.approx(stats.binom.cdf(losses, 1500, 0.01))
        share = min(losses / 1500, 0.01)
        divergence = special.rel_entr(share, 0.01) + special.rel_entr(1 - share, 0.99)
        hoeffding_bentkus = min(np.exp(-1500 * divergence), np.e * exact)
        assert exact <= hoeffding_bentkus * (1 + 1e-9)
    # 8 losses in 1,500 rows pass at 0.1.
    assert guarantee.p_value(8, 1500, 0.01) <= 0.1


@pytest.mark.parametrize(
    ("level", "max_risk", "needed"),
    [(0.9, 0.01, 230), (0.95, 0.01, 299), (0.95, 0.05, 59), ("expectation", 0.01, 99)],
)
def test_rows_needed_is_the_smallest_number_that_passes_without_loss(
    level, max_risk, needed
):
    assert thresholds.rows_needed(level, max_risk) == needed
    if level != "expectation":
        assert guarantee.p_value(0, needed, max_risk) <= 1 - level
        assert guarantee.p_value(0, needed - 1, max_risk) > 1 - level
    scores, retained = sample(2 * needed - 2)
    with pytest.raises(BranchyError, match=f"needs {needed} test rows"):
        thresholds.control_risk(scores, retained, COSTS, max_risk, level)


@pytest.mark.parametrize("exits", [2, 3])
@pytest.mark.parametrize("level", [0.9, "expectation"])
def test_chosen_thresholds_passed_their_test(exits, level):
    scores, retained = sample(2000, exits)
    found = thresholds.control_risk(scores, retained, range(1, exits + 1), 0.05, level)
    assert any(found.thresholds)
    assert found.num_tuning + found.num_test == 2000
    _, test = thresholds.halves(2000)
    point = thresholds.evaluate(
        scores[test], retained[test], range(1, exits + 1), found.thresholds
    )
    assert found.risk == pytest.approx(1 - point.accuracy)
    if level == "expectation":
        assert found.p_value is None
        assert (1000 * found.risk + 1) / 1001 <= 0.05
    else:
        losses = round(1000 * found.risk)
        assert found.p_value == guarantee.p_value(losses, 1000, 0.05) <= 0.1


def test_halves_contain_every_row_once():
    tuning, test = thresholds.halves(11, seed=3)
    assert sorted([*tuning, *test]) == list(range(11))
    assert (len(tuning), len(test)) == (5, 6)
    assert thresholds.halves(11, seed=3)[0].tolist() == tuning.tolist()


def test_path_goes_from_safest_to_cheapest():
    scores, retained = sample(500, 3)
    path = guarantee.safest_first(scores, retained, np.array([1, 2, 4.0]))
    assert not any(path[0])
    costs = [thresholds.evaluate(scores, retained, [1, 2, 4], v).cost for v in path]
    # Up to rounding and rows of equal score.
    assert (np.diff(costs) <= 1e-9).all()


def test_no_row_exits_early_if_nothing_passes():
    scores, retained = sample(800)
    retained[:, 0] = False
    found = thresholds.control_risk(scores, retained, COSTS, 0.01, 0.95)
    assert found.thresholds == (0.0,)
    assert found.risk == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1}, "below 1.*Received 1.$"),
        ({"level": 95}, "95 % is 0.95"),
        ({"max_risk": 1}, "1 percentage point is 0.01"),
        ({"level": 0.3}, "from 0.5"),
        ({"level": "sure"}, "for example 0.95"),
        ({"max_risk": 0}, "cannot be guaranteed"),
        ({"max_risk": float("nan")}, "between 0 and 1"),
        ({"retained": np.zeros((1000, 2), bool)}, "last column"),
    ],
)
def test_rejects_invalid_arguments(change, message):
    scores, retained = sample(1000)
    arguments = {"scores": scores, "retained": retained, "costs": COSTS, "max_risk": 0.05}
    with pytest.raises(BranchyError, match=message):
        thresholds.control_risk(**(arguments | change))


def test_choose_returns_the_guaranteed_thresholds():
    scores, right = rows(1000, 2)
    point = thresholds.choose(
        scores, right, COSTS, max_accuracy_drop=0.05, guarantee=0.9, seed=2
    )
    retained = thresholds.count_losses_only(right)
    found = thresholds.control_risk(scores, retained, COSTS, 0.05, 0.9, seed=2)
    assert point.thresholds == found.thresholds
    assert (
        point.accuracy
        == thresholds.evaluate(scores, right, COSTS, found.thresholds).accuracy
    )


def test_agreement_needs_no_labels():
    assert thresholds.agreement([[1, 2, 1], [3, 3, 3]]).tolist() == [
        [True, False, True],
        [True, True, True],
    ]

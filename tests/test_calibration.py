from __future__ import annotations

import keras
import numpy as np
import pytest

from branchy_tf import calibration, scoring, thresholds
from branchy_tf.calibration import Request, calibrate
from branchy_tf.errors import BranchyError
from branchy_tf.exits import confidence
from branchy_tf.predictor import EarlyExitPredictor, LogitsPredictor

MACS = [1, 2, 4]


@pytest.fixture(scope="module")
def rows():
    """Logits of three exits, each better than the one before, and labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 1200)
    signal = np.eye(5)[labels][:, None] * np.array([2, 3, 4])[:, None]
    hard = random.gamma(1, 1, (1200, 1, 1))
    logits = signal * np.exp(-hard / 2) + random.normal(size=(1200, 3, 5))
    return logits.astype(np.float32), labels


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"max_accuracy_drop": 0.02},
        {"min_accuracy": 0.7},
        {"max_cost": 2.5},
        {"exit_rates": [0.3, 0.3]},
        {"knee": True},
    ],
)
def test_compares_all_criteria_at_equal_cost_and_takes_the_best(rows, budget):
    found = calibrate(*rows, MACS, Request(budget, criterion="all"))
    assert [row["criterion"] for row in found.compared] == list(confidence.CRITERIA)
    costs = [[p["cost"] for p in row["at_equal_cost"]] for row in found.compared]
    assert costs[0] == costs[1] == costs[2]
    own = {row["criterion"]: row for row in found.compared}[found.criterion]
    assert found.policy.temperatures == found.temperatures
    if "max_cost" in budget or "exit_rates" in budget:
        assert own["accuracy"] == max(row["accuracy"] for row in found.compared)
    elif "knee" not in budget:
        assert own["cost"] == min(row["cost"] for row in found.compared)
    assert found.chosen.accuracy == own["accuracy"]


def test_figures_match_a_count_on_the_scores(rows):
    found = calibrate(*rows, MACS, Request({"max_accuracy_drop": 0.02}))
    taken = thresholds.exit_indices(found.answers.scores, found.chosen.thresholds)
    right = found.answers.correct[np.arange(len(taken)), taken]
    assert found.chosen.accuracy == right.mean()
    assert found.chosen.cost == np.take(MACS, taken).mean()
    assert found.chosen in found.points


@pytest.mark.parametrize("risk", calibration.RISKS)
def test_each_risk_stays_within_its_bound(rows, risk):
    found = calibrate(*rows, MACS, Request({"max_accuracy_drop": 0.03}, risk=risk))
    retained = calibration.retained(found.answers, risk)
    limits = found.chosen.thresholds
    point = thresholds.evaluate(found.answers.scores, retained, MACS, limits)
    assert retained[:, -1].mean() - point.accuracy <= 0.03 + 1e-9


def test_guarantee_fits_temperatures_on_the_tuning_half(rows):
    logits, labels = rows
    budget = {"max_accuracy_drop": 0.05, "guarantee": 0.9}
    found = calibrate(logits, labels, MACS, Request(budget, risk="lost", seed=4))
    _, test = thresholds.halves(len(labels), 4)
    other = labels.copy()
    other[test] = (other[test] + 1) % 5
    again = calibrate(logits, other, MACS, Request(budget, risk="lost", seed=4))
    assert found.policy.temperatures == again.policy.temperatures
    assert found.guarantee.thresholds == found.chosen.thresholds


def test_respects_a_budget_in_other_costs(rows):
    milliseconds = [3.0, 4.0, 5.0]
    found = calibrate(*rows, MACS, Request({"max_cost": 3.6}), milliseconds)
    assert found.chosen.exit_rates @ np.array(milliseconds) <= 3.6
    assert found.chosen.cost < 4


def test_temperatures_are_optional(rows):
    assert calibrate(*rows, MACS, Request({})).policy.temperatures != (1.0, 1.0, 1.0)
    plain = calibrate(*rows, MACS, Request({}, fit_temperatures=False))
    assert plain.policy.temperatures == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "budget", "message"),
    [
        (np.zeros(0, int), {}, "0 rows of 0 class"),
        (np.zeros(50, int), {}, "50 rows of 1 class"),
        (
            np.arange(50) % 2,
            {"guarantee": 0.9, "max_accuracy_drop": 0.01},
            "460 in all. There are 50",
        ),
    ],
)
def test_rejects_unsuitable_rows(labels, budget, message):
    with pytest.raises(BranchyError, match=message):
        calibration.check_rows(labels, Request(budget))


def chance(correct: int, rows: int, labels=None) -> tuple:
    """Logits of which the final exit's are correct on the first rows, and labels."""
    labels = np.arange(rows) % 2 if labels is None else labels
    answers = np.where(np.arange(rows) < correct, labels, 1 - labels)
    return np.eye(2)[answers][:, None], labels


@pytest.mark.parametrize(
    ("correct", "rows", "is_chance"),
    [
        # The smallest passing counts by the binomial distribution at 5 %.
        (58, 100, True),
        (59, 100, False),
        (8, 10, True),
        (9, 10, False),
        (50, 100, True),
        (0, 100, True),
        (527, 1000, False),
        (526, 1000, True),
    ],
)
def test_the_final_exit_must_beat_chance(correct, rows, is_chance):
    if is_chance:
        with pytest.raises(BranchyError, match="The final exit is at chance"):
            calibration.check_learned(*chance(correct, rows))
    else:
        calibration.check_learned(*chance(correct, rows))


def test_chance_is_the_most_frequent_class():
    # 90 % correct are no better than always answering class 0, 99 % are.
    labels = (np.arange(500) >= 450).astype(int)
    with pytest.raises(BranchyError, match=r"on 90\.00% of 500 .* class is on 90\.00%"):
        calibration.check_learned(*chance(450, 500, labels))
    calibration.check_learned(*chance(495, 500, labels))


def test_says_which_temperature_hit_its_bound():
    labels = np.arange(60) % 3
    sure = 0.5 * np.eye(3)[labels]
    useless = np.random.default_rng(0).normal(0, 100, (60, 3))
    logits = np.stack([sure, useless, 2 * np.eye(3)[(labels + (labels > 1)) % 3]], axis=1)
    found = calibrate(logits.astype(np.float32), labels, MACS, Request({}))
    low, high = calibration.bounded_temperatures(found.policy)[:2]
    assert low.startswith("The temperature of exit_1 reached the bound 0.05 of its fit")
    assert high.startswith("The temperature of exit_2 reached the bound 20 of its fit")
    assert not calibration.bounded_temperatures(
        found.policy.replace(temperatures=[1, 0.2, 9])
    )


def test_rejects_a_cost_below_the_first_exits():
    with pytest.raises(BranchyError, match="all images exit at exit_1"):
        calibration.check_cost(Request({"max_cost": 0.5}), MACS)


@pytest.mark.parametrize("criterion", confidence.CRITERIA)
def test_graph_matches_the_calibration_of_an_easy_task(criterion):
    # Both exits are always correct, with scores that are 0 in float32.
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    noise = random.normal(size=(300, 3)) * 0.3
    values = (12 * np.eye(3)[labels] + noise).astype(np.float32)
    given = keras.Input((3,))
    same = {"use_bias": False, "kernel_initializer": "identity"}
    outputs = {
        name: keras.layers.Dense(3, name=name, **same)(given)
        for name in ("exit_1", "exit_2")
    }
    model = keras.Model(given, outputs)
    logits = LogitsPredictor(model).logits(values)
    found = calibrate(
        logits, labels, [1, 2], Request({"max_accuracy_drop": 0.0}, criterion)
    )
    routed = EarlyExitPredictor(model, found.policy).predict(values)
    assert found.chosen.exit_rates[0] == (routed.exits == 0).mean() == 1
    scoring.check_routing(found.policy, logits, found.answers, routed)

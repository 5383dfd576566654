from __future__ import annotations

import json

import numpy as np
import pretend
import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.policy import SMALLEST
from branchy_tf.thresholds import exit_indices
from branchy_tf.tuning import Strategy


def taught(n=3000, **options) -> Strategy:
    policy = Strategy(pretend.MACS, **options)
    policy.observe(*pretend.rows(n))
    return policy


def leave(policy, scores, labels):
    """`(exits, scores there, whether they agree)` with the thresholds in force."""
    exits = exit_indices(scores, policy.thresholds)
    rows = np.arange(len(exits))
    return exits, scores[rows, exits], labels[rows, exits] == labels[:, -1]


def test_learns_thresholds_that_save_and_keep_the_budget():
    policy = Strategy(pretend.MACS)
    assert (policy.state, policy.share) == ("learning", 1.0)
    assert policy.thresholds.dtype == np.float32
    assert policy.thresholds.tolist() == [0]
    given = policy.observe(*pretend.rows(3000))
    np.testing.assert_array_equal(given, policy.thresholds)
    assert policy.state == "tuned"
    exits, _, agrees = leave(policy, *pretend.rows(20_000, seed=1))
    assert agrees.mean() > 0.99
    assert (exits == 0).mean() > 0.3
    assert 0.99 <= policy.status()["agreement_bound"] < agrees.mean()


def test_more_rows_allow_more_and_cost_fewer_labels():
    few, many = taught(700), taught(6000)
    assert few.thresholds < many.thresholds
    assert few.share > 2 * many.share
    assert many.share >= 0.01


def test_too_few_rows_prove_nothing():
    policy = taught(600)
    assert (policy.state, policy.share) == ("learning", 1.0)
    assert policy.status()["agreement_bound"] == 1


def test_a_loss_too_many_lowers_the_thresholds_at_once():
    policy = taught(2000)
    before = policy.thresholds
    sure = np.array([[0.5 * before[0], 0.01]])
    for seed in range(8):
        # Seldom enough to raise no alarm.
        policy.observe(*pretend.rows(40, seed))
        after = policy.observe(sure, np.array([[1, 2]]))
        assert policy.state == "tuned"
        assert policy.status()["agreement_bound"] >= 0.99
        if after < before:
            break
    assert after < before


def test_other_scores_make_it_fall_back_without_a_label():
    policy = taught()
    seen = 0
    for row in pretend.rows(300, seed=2, factor=4)[0]:
        exits, scores, _ = leave(policy, row[None], np.zeros((1, 2)))
        seen += 1
        if not policy.watch(exits, scores).any():
            break
    assert policy.state == "suspicious"
    assert policy.share == 1
    assert 3 < seen < 100


def test_other_answers_make_it_fall_back_and_learn_anew():
    policy = taught()
    seen = 0
    for scores, labels in zip(*pretend.rows(900, 3, harm=0.2), strict=True):
        policy.observe(scores[None], labels[None])
        seen += 1
        if policy.changes:
            break
    assert seen < 300
    assert policy.state == "learning"
    assert policy.thresholds.tolist() == [0]
    # What it knows now is only from the rows since.
    assert policy.status()["rows"] <= seen
    policy.observe(*pretend.rows(5000, seed=4, harm=0.2))
    # A fifth disagrees, however sure: nearly nobody may leave.
    exits, _, agrees = leave(policy, *pretend.rows(20_000, seed=5, harm=0.2))
    assert agrees.mean() > 0.99
    assert (exits == 0).mean() < 0.05


def test_goes_on_as_before_when_a_suspicion_was_wrong():
    policy = taught()
    while policy.state == "tuned":
        policy.watch([1], [9.0])
    before = policy.status()["rows"]
    scores, labels = pretend.rows(200, seed=5)
    seen = 0
    for score, label in zip(scores, labels, strict=True):
        policy.observe(score[None], label[None])
        seen += 1
        if policy.state == "tuned":
            break
    assert policy.state == "tuned"
    assert (policy.suspicions, policy.changes) == (1, 0)
    # Nothing is lost, and the rows of the suspicion count.
    assert policy.status()["rows"] == before + seen


def test_a_suspicion_that_does_not_end_is_a_change():
    policy = taught()
    while policy.state == "tuned":
        policy.watch([1], [9.0])
    # Keeps the alarm where it is.
    policy._alarm.see = lambda rank, lost: 5e3
    policy.observe(*pretend.rows(499, seed=5))
    assert policy.state == "suspicious"
    policy.observe(*pretend.rows(1, seed=6))
    assert policy.changes == 1


def test_keeps_the_newest_rows_only():
    policy = taught(6000)
    policy.observe(*pretend.rows(1500, seed=7))
    assert policy.status()["rows"] == 6000


def test_nan_never_leaves_and_is_no_news():
    scores, labels = pretend.rows(3000)
    scores[::50, 0] = np.nan
    policy = Strategy(pretend.MACS)
    policy.observe(scores, labels)
    assert policy.state == "tuned"
    assert exit_indices(scores[::50], policy.thresholds).all()
    json.dumps(policy.status(), allow_nan=False)


def test_three_exits_take_thresholds_that_pay():
    scores, labels = pretend.rows(6000)
    # A second exit that always agrees, at a price between.
    scores = np.stack([scores[:, 0], scores[:, 1], scores[:, 1]], axis=1)
    labels = np.stack([labels[:, 0], labels[:, 1], labels[:, 1]], axis=1)
    policy = Strategy([1, 2, 4])
    policy.observe(scores, labels)
    exits = exit_indices(scores, policy.thresholds)
    assert (exits == 2).mean() < 0.01
    assert (exits == 0).mean() > 0.3


def test_goes_on_from_json():
    first, second = taught(2000), Strategy(pretend.MACS)
    second.from_json(first.to_json())
    np.testing.assert_array_equal(first.thresholds, second.thresholds)
    for seed in range(8, 14):
        rows = pretend.rows(100, seed)
        np.testing.assert_array_equal(first.observe(*rows), second.observe(*rows))
    assert first.status() == second.status()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"costs": [1]}, "for each of two exits or more"),
        ({"costs": [4, 1]}, r"rise from exit to exit.*Received \[4, 1\]"),
        ({"costs": [0, 1]}, "positive"),
        ({"costs": [1, np.inf]}, "positive and rise"),
        ({"budget": 1.0}, "nobody can promise 1"),
        ({"budget": 0.0}, "between 0 and 1"),
        ({"window": 99}, "a window of 100 rows or more"),
        ({"share": 0.0}, "above 0 and at most 1"),
        ({"share": 1.5}, "above 0 and at most 1"),
    ],
)
def test_refuses_what_cannot_be_meant(arguments, expected):
    with pytest.raises(BranchyError, match=expected):
        Strategy(**({"costs": pretend.MACS} | arguments))


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 1)])
def test_refuses_rows_of_other_exits(shape):
    policy = Strategy(pretend.MACS)
    with pytest.raises(BranchyError, match=r"all 2 exits, \[B, 2\] each"):
        policy.observe(np.zeros(shape), np.zeros(shape, int))
    with pytest.raises(BranchyError, match="Received"):
        policy.observe(np.zeros((3, 2)), np.zeros((2, 2), int))
    assert policy.status()["rows"] == 0


def test_thresholds_are_no_denormal_numbers():
    scores, labels = pretend.rows(3000)
    # NumPy alone can tell these from 0.
    scores[:, 0] = 1.4e-45
    strategy = Strategy(pretend.MACS)
    given = strategy.observe(scores, np.ones_like(labels))
    assert strategy.state == "tuned"
    assert given.tolist() == [SMALLEST]
    vectors = strategy.to_json()["path"]["vectors"]
    assert ((vectors == 0) | (vectors >= SMALLEST)).all()

from __future__ import annotations

import types

import numpy as np
import pytest
import small
from scipy import stats

from branchy_tf import data, exits, scoring
from branchy_tf.errors import BranchyError
from branchy_tf.policy import ExitPolicy
from branchy_tf.predictor import EarlyExitPredictor
from branchy_tf.saved_model import routing


def share(right: int, rows: int) -> np.ndarray:
    return np.arange(rows) < right


@pytest.mark.parametrize(("right", "rows"), [(95, 100), (1, 7), (0, 50), (50, 50)])
def test_wilson_interval_by_its_formula(right, rows):
    p, z2 = right / rows, stats.norm.ppf(0.975) ** 2
    middle = (p + z2 / (2 * rows)) / (1 + z2 / rows)
    half = np.sqrt(z2 * (p * (1 - p) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    low, high = scoring.wilson_interval(share(right, rows))
    assert low == pytest.approx(max(middle - half, 0), abs=1e-9)
    assert high == pytest.approx(min(middle + half, 1), abs=1e-9)


def test_wilson_interval_of_a_published_example():
    # Newcombe (1998), Table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    np.testing.assert_allclose(
        scoring.wilson_interval(share(81, 263)), [0.2553, 0.3662], atol=5e-5
    )


def pair(both: int, first_only: int, second_only: int, neither: int):
    """Two bool arrays with given numbers of agreements and disagreements."""
    first = [1] * (both + first_only) + [0] * (second_only + neither)
    second = [1] * both + [0] * first_only + [1] * second_only + [0] * neither
    return np.array(first, bool), np.array(second, bool)


def test_paired_interval_by_hand():
    # 98 rows and 2 more: 11 lost and 4 won of 100, so 0.07, and a variance of
    # (0.11 + 0.04 - 0.07^2) / 100.
    low, high = scoring.paired_interval(*pair(70, 10, 3, 15))
    half = 1.959964 * np.sqrt(0.001451)
    assert (low, high) == pytest.approx((0.07 - half, 0.07 + half), abs=1e-6)


def test_paired_interval_turns_with_its_arguments():
    first, second = pair(70, 10, 3, 15)
    low, high = scoring.paired_interval(first, second)
    assert scoring.paired_interval(second, first) == pytest.approx([-high, -low])


@pytest.mark.parametrize("rows", [10, 1000])
def test_interval_has_a_width_without_disagreement(rows):
    first, second = pair(rows - 1, 0, 0, 1)
    low, high = scoring.paired_interval(first, second)
    half = 1.959964 * np.sqrt(2) / (rows + 2)
    assert (low, high) == pytest.approx((-half, half), rel=1e-5)


def test_paired_interval_covers_the_truth():
    # 95 % of such intervals contain the true difference.
    random = np.random.default_rng(0)
    kinds = random.choice(4, p=[0.9, 0.04, 0.01, 0.05], size=(2000, 500))
    intervals = np.array(
        [scoring.paired_interval((k == 0) | (k == 1), (k == 0) | (k == 2)) for k in kinds]
    )
    covered = (intervals[:, 0] <= 0.03) & (intervals[:, 1] >= 0.03)
    assert 0.93 < covered.mean() < 0.98


def test_correctness_is_counted_per_exit():
    logits = np.float32([[[2, 0], [0, 1]], [[1, 0], [3, 0]]])
    every = scoring.answers(logits, np.array([1, 0]))
    assert every.given.tolist() == [[0, 1], [0, 0]]
    assert every.correct.tolist() == [[False, True], [True, True]]
    assert every.scores.shape == (2, 2)


def test_each_exit_uses_its_own_temperature():
    logits = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    labels = np.zeros(5, int)
    plain = scoring.answers(logits / np.float32([[2], [0.5]]), labels)
    policy = ExitPolicy(thresholds=[0], temperatures=[2, 0.5])
    warm = scoring.answers(logits, labels, policy)
    np.testing.assert_allclose(warm.probabilities, plain.probabilities, rtol=1e-5)
    np.testing.assert_allclose(warm.scores, plain.scores, rtol=1e-4)


def test_rejects_nan_with_exit_and_row():
    logits = np.zeros((4, 2, 3), np.float32)
    logits[2, 1, 0] = np.nan
    predictor = types.SimpleNamespace(logits=lambda images, progress: logits)
    split = data.Split(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, int))
    with pytest.raises(BranchyError, match=r"exit_2 gives NaN for 1 of 4 .* row 2;"):
        scoring.every_exit(predictor, split)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, np.inf, 0], "infinite logits"),
        ([-np.inf] * 3, "infinite logits"),
        ([np.nan, np.inf, 0], "NaN"),
        ([0, -np.inf, 0], None),
    ],
)
def test_rejects_invalid_logits_but_not_masked_classes(given, expected):
    logits = np.zeros((4, 2, 3), np.float32)
    logits[2, 1] = given
    predictor = types.SimpleNamespace(logits=lambda images, progress: logits)
    split = data.Split(np.zeros((4, 1)), np.zeros(4, int))
    if expected is None:
        np.testing.assert_array_equal(scoring.every_exit(predictor, split), logits)
        assert np.isfinite(scoring.answers(logits, split.labels).scores).all()
        return
    with pytest.raises(BranchyError, match=rf"exit_2 gives {expected} for 1 of 4 .* 2;"):
        scoring.every_exit(predictor, split)


def test_plain_accuracy():
    model = exits.baseline(small.model())
    split = small.dataset().test
    answers = np.asarray(model(split.images)).argmax(axis=1)
    assert 0 < scoring.plain_accuracy(model, data.Split(split.images, answers)) == 1
    wrong = np.where(np.arange(10) < 4, (answers + 1) % 3, answers)
    assert scoring.plain_accuracy(model, data.Split(split.images, wrong)) == (
        pytest.approx(0.6)
    )


def test_detects_a_graph_that_contradicts_the_scores(monkeypatch):
    model, dataset = small.model(), small.dataset()
    _, scores = EarlyExitPredictor(model, [0]).all_exits(dataset.test.images)
    policy = ExitPolicy(thresholds=[float(np.sort(scores[:, 0])[4:6].mean())])
    result = scoring.evaluate(model, policy, dataset).result
    assert result["exit_rates"].tolist() == [0.5, 0.5]
    # Simulates a denormal threshold: no row exits early.
    monkeypatch.setattr(
        routing, "exits_early", lambda scores, limits: scores < 0 * limits
    )
    with pytest.raises(BranchyError) as caught:
        scoring.evaluate(model, policy, dataset)
    assert "The routed graph sends 5 of 10 rows to another exit" in str(caught.value)
    assert "Exit rates 0.0%, 100.0%; expected 50.0%, 50.0%" in str(caught.value)

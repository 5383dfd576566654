from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import special, stats

from branchy_tf import confidence
from branchy_tf.errors import BranchyError

LOGITS = np.random.default_rng(0).normal(scale=4, size=(50, 7)).astype("float32")


def score(logits, criterion):
    probabilities, scores = confidence.probabilities_and_scores(logits, criterion)
    return np.asarray(probabilities), np.asarray(scores)


def test_probabilities_are_the_softmax():
    np.testing.assert_allclose(
        score(LOGITS, "entropy")[0], special.softmax(LOGITS, axis=-1), rtol=1e-5
    )


def test_entropy_is_in_nats():
    expected = stats.entropy(special.softmax(LOGITS.astype("float64"), axis=-1), axis=-1)
    np.testing.assert_allclose(score(LOGITS, "entropy")[1], expected, rtol=1e-4)


def test_max_prob_and_margin():
    ordered = np.sort(special.softmax(LOGITS.astype("float64"), axis=-1))
    _, scores = score(LOGITS, "max_prob")
    np.testing.assert_allclose(scores, 1 - ordered[:, -1], rtol=1e-4, atol=1e-6)
    _, scores = score(LOGITS, "margin")
    expected = 1 - (ordered[:, -1] - ordered[:, -2])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
def test_scores_are_never_negative_and_finite_for_extreme_logits(criterion):
    _, scores = score(np.float32([[1e4, 0, -1e4], [0, 0, 0], [80, 80, 0]]), criterion)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores[0] < 1e-6 < scores[1]


@pytest.mark.parametrize("criterion", list(confidence.CRITERIA))
def test_a_nan_scores_nan(criterion):
    _, scores = score(np.float32([[np.nan, 1, 2], [3, 1, 2]]), criterion)
    assert np.isnan(scores[0])
    assert not np.isnan(scores[1])


def test_low_precision_logits_are_scored_in_float32():
    logits = keras.ops.cast(LOGITS, "float16")
    probabilities, scores = confidence.probabilities_and_scores(logits)
    assert probabilities.dtype == scores.dtype == "float32"


def test_an_unknown_criterion_is_refused_with_the_known():
    with pytest.raises(BranchyError, match="entropy, max_prob, margin"):
        score(LOGITS, "mood")

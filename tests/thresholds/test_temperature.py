from __future__ import annotations

import numpy as np
import pytest

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError


def drawn_labels(logits, seed=0):
    """Labels sampled from the probabilities of the logits."""
    gumbel = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + gumbel).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fits_the_temperature_of_an_overconfident_exit(temperature):
    logits = np.random.default_rng(1).normal(scale=3, size=(4000, 5))
    labels = drawn_labels(logits)
    found = thresholds.fit_temperature(temperature * logits, labels)
    assert found == pytest.approx(temperature, rel=0.08)


def test_temperature_is_finite_without_errors():
    found = thresholds.fit_temperature(np.eye(3) * 2, np.arange(3))
    assert 0.05 <= found < 0.1


def test_large_logits_do_not_overflow():
    logits = np.random.default_rng(1).normal(scale=3, size=(4000, 5))
    labels = drawn_labels(logits)
    near = thresholds.fit_temperature(5 * logits, labels)
    with np.errstate(over="raise"):
        far = thresholds.fit_temperature(5 * logits + 1e4, labels)
    assert far == pytest.approx(near, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_rows_without_a_finite_logit_of_their_label_do_not_count():
    logits = np.random.default_rng(1).normal(scale=3, size=(400, 5))
    labels = drawn_labels(logits)
    expected = thresholds.fit_temperature(logits, labels)
    # Masking improbable classes changes little; rows without a finite logit, nothing.
    odd = np.tile(logits[:1], (5, 1))
    odd[0, 0], odd[1, 3], odd[2], odd[3, 1], odd[4, 2] = (
        -np.inf,
        np.nan,
        -np.inf,
        np.inf,
        0,
    )
    more = np.concatenate([logits, odd[:4]]), np.append(labels, [0, 0, 0, 1])
    assert thresholds.fit_temperature(*more) == pytest.approx(expected, rel=1e-6)
    masked = np.concatenate([logits, np.full((400, 1), -np.inf)], axis=1)
    assert thresholds.fit_temperature(masked, labels) == pytest.approx(expected)
    assert thresholds.fit_temperature(odd[:1], [0]) == 1.0


def test_rejects_mismatched_rows():
    with pytest.raises(BranchyError, match="at least one row"):
        thresholds.fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(BranchyError, match="labels"):
        thresholds.fit_temperature(np.zeros((4, 3)), np.zeros(3, int))

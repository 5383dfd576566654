from __future__ import annotations

import numpy as np
import pytest

from branchy_tf import thresholds
from branchy_tf.errors import BranchyError


def test_below_leaves_and_equal_stays():
    scores = np.float32([[0.1, 9, 9], [0.2, 0.1, 9], [0.2, 0.3, 9], [0.5, 0.5, 0]])
    assert thresholds.exit_indices(scores, [0.2, 0.3]).tolist() == [0, 1, 2, 2]


def test_zero_lets_none_leave_and_infinity_all():
    scores = np.float32([[0, 0], [1, 0], [1e30, 0]])
    assert thresholds.exit_indices(scores, [0]).tolist() == [1, 1, 1]
    assert thresholds.exit_indices(scores, [np.inf]).tolist() == [0, 0, 0]


def test_nan_goes_on():
    assert thresholds.exit_indices(np.float32([[np.nan, 0]]), [np.inf]).tolist() == [1]


def test_each_row_may_have_its_own():
    scores = np.float32([[0.5, 0], [0.5, 0]])
    assert thresholds.exit_indices(scores, [[0.4], [0.6]]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.1], "expected 2"),
        ([0.1, 0.2, 0.3], "expected 2"),
        ([0.1, -0.2], "received -0.2"),
        ([0.1, float("nan")], "received nan"),
        (0.1, "expected 2"),
        (["a", "b"], "must be numbers"),
        (np.zeros((3, 2)), "3 rows for 4 examples"),
        ([[0.1], [0.2, 0.3]], "must be numbers"),
    ],
)
def test_bad_thresholds_are_refused(given, message):
    with pytest.raises(BranchyError, match=message):
        thresholds.check(given, num_exits=3, rows=4)


def test_near_are_rows_that_reach_an_exit_and_score_about_its_threshold():
    scores = np.float32([[0.2, 9], [0.2001, 9], [0.3, 9], [0.1, 9]])
    assert thresholds.near(scores, [0.20005], 1e-4).tolist() == [1, 1, 0, 0]
    assert not thresholds.near(scores, [0], 1e-4).any()
    assert not thresholds.near(scores, [np.inf], 1e-4).any()
    # Gone before: where it would have scored at the second exit is no matter.
    scores = np.float32([[0.1, 0.5, 9], [0.9, 0.5, 9]])
    assert thresholds.near(scores, [0.2, 0.5], 1e-4).tolist() == [False, True]


@pytest.mark.parametrize("exit_index", [0, 1, 2])
def test_forcing_sends_every_row_to_one_exit(exit_index):
    scores = np.float32([[0, 0, 0], [1, 2, 3], [1e30, 1e30, 0]])
    limits = thresholds.forcing(exit_index, 3)
    assert limits.dtype == np.float32
    assert set(thresholds.exit_indices(scores, limits)) == {exit_index}


def test_many_vectors_at_once_are_as_one_by_one():
    random = np.random.default_rng(0)
    scores = random.random((50, 4), np.float32)
    scores[3, 1], scores[4, 0] = np.nan, np.inf
    vectors = random.random((7, 3), np.float32)
    vectors[0], vectors[1], vectors[2, 0] = 0, np.inf, scores[5, 0]
    together = thresholds.exits_by_vector(scores, vectors)
    assert together.dtype == np.int32
    alone = [thresholds.exit_indices(scores, vector) for vector in vectors]
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(together)) == 4

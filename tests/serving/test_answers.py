from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from branchy_tf.results import Predictions
from branchy_tf.serving.answers import ExpectedAnswers

RANDOM = np.random.default_rng(0)
SCORES = np.float32([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7], [0.5, 0.5, 0.5], [0.2, 0.9, 0.1]])
EXPECTED = ExpectedAnswers(
    RANDOM.dirichlet(np.ones(5), (4, 3)).astype(np.float32), SCORES
)
ROWS = np.array([3, 0, 2])
LIMITS = np.float32([[0.1, 1.0], [0.15, 0.0], [0.0, 0.0]])
EXITS = np.int32([1, 0, 2])


def answer(**changes):
    """What is right for ROWS and LIMITS, but for the changes."""
    right = Predictions(
        EXPECTED.probabilities[ROWS, EXITS], EXITS, EXPECTED.scores[ROWS, EXITS]
    )
    return dataclasses.replace(right, **changes)


def right(given, thresholds=LIMITS):
    return EXPECTED.right(given, ROWS, thresholds).tolist()


def test_each_row_is_compared_with_its_own_image_and_thresholds():
    assert right(answer()) == [True, True, True]
    assert right(answer(), LIMITS[::-1]) == [False, True, False]
    others = np.roll(ROWS, 1)
    assert EXPECTED.right(answer(), others, LIMITS).tolist() == [False] * 3


def test_rows_may_share_thresholds():
    all_leave = EXPECTED.probabilities[ROWS, 0], np.int32([0] * 3), SCORES[ROWS, 0]
    assert right(Predictions(*all_leave), [np.inf, np.inf]) == [True] * 3
    assert right(Predictions(*all_leave), [0, np.inf]) == [False] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"probabilities": np.roll(EXPECTED.probabilities[ROWS, EXITS], 1, axis=1)},
        {"exits": np.int32([2, 1, 0])},
        {"exits": np.int32([-1, 3, 99])},
        {"exits": EXITS[:2]},
        {"scores": SCORES[ROWS, EXITS] + 0.01},
        {"scores": np.float32([np.nan] * 3)},
        {"probabilities": EXPECTED.probabilities[ROWS, EXITS, :4]},
    ],
)
def test_rejects_wrong_answers(changes):
    assert right(answer(**changes)) == [False, False, False]


def test_a_score_equal_to_its_threshold_may_exit_or_stay():
    rows = np.array([2, 2])
    exits = np.int32([0, 1])
    both = Predictions(EXPECTED.probabilities[rows, exits], exits, SCORES[rows, exits])
    on_it = np.float32([[0.50001, 1]] * 2)
    assert EXPECTED.right(both, rows, on_it).tolist() == [True, True]
    assert EXPECTED.right(both, rows, on_it + 0.01).tolist() == [True, False]
    assert EXPECTED.right(both, rows, on_it - 0.01).tolist() == [False, True]


@pytest.mark.parametrize("limit", [0, -1, np.nan])
def test_nothing_exits_at_a_threshold_of_zero(limit):
    sure = ExpectedAnswers(EXPECTED.probabilities[:1, :2], np.zeros((1, 2), np.float32))
    for index, expected in ((0, False), (1, True)):
        given = Predictions(
            sure.probabilities[:, index], np.int32([index]), np.float32([0])
        )
        assert sure.right(given, np.array([0]), np.float32([[limit]])) == [expected]

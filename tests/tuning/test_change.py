from __future__ import annotations

import numpy as np
import pytest

from branchy_tf.tuning import change


def rows_until(level, ranks, lost, most=3000):
    """How many rows it takes the alarm to reach a level."""
    alarm = change.Alarm(0.99)
    for number in range(1, most + 1):
        if alarm.see(ranks(), lost()) >= level:
            return number
    return most


def test_false_alarms_are_as_rare_as_their_level():
    random = np.random.default_rng(0)
    taken = [
        rows_until(100, random.random, lambda: bool(random.random() < 0.01))
        for _ in range(60)
    ]
    assert np.mean(taken) > 100


@pytest.mark.parametrize("power", [3, 1 / 3])
def test_notices_a_change_of_scores_alone(power):
    random = np.random.default_rng(1)
    taken = [rows_until(3e3, lambda: random.random() ** power, lambda: None)
             for _ in range(20)]  # fmt: skip
    assert np.mean(taken) < 60


def test_notices_a_change_of_agreement_alone():
    random = np.random.default_rng(2)
    taken = [rows_until(3e3, random.random, lambda: bool(random.random() < 0.1))
             for _ in range(20)]  # fmt: skip
    assert np.mean(taken) < 150


def test_notices_a_change_after_a_long_calm():
    random = np.random.default_rng(3)
    alarm = change.Alarm(0.99)
    for _ in range(2000):
        alarm.see(random.random(), False)
    levels = [alarm.see(0.97, None) for _ in range(30)]
    assert levels[-1] > 1e5
    alarm.reset()
    assert alarm.level == 0


def test_places_go_from_sure_to_unsure():
    places = change.places(np.array([0, 0, 0, 1, 1, 1]),
                           np.array([0, 0.5, 9e9, 0, 3, np.nan]))  # fmt: skip
    assert (np.diff(places) > 0).all()
    assert change.places(np.array([1]), np.array([np.inf])) == places[-1]


def test_ranks_are_uniform_even_with_ties():
    random = np.random.default_rng(4)
    known = np.sort(random.integers(0, 3, 2000)).astype(float)
    ranks = change.ranks(known, random.integers(0, 3, 5000).astype(float), random)
    counts, _ = np.histogram(ranks, bins=10, range=(0, 1))
    np.testing.assert_allclose(counts / 5000, 0.1, atol=0.02)
    assert change.ranks(known, np.array([-1.0]), random) < 1 / 2000
    assert change.ranks(known, np.array([7.0]), random) > 1999 / 2001


def test_round_trips_through_json():
    first, second = change.Alarm(0.99), change.Alarm(0.99)
    for _ in range(5):
        first.see(0.9, True)
    second.from_json(first.to_json())
    assert second.level == first.level > 0
    assert second.see(0.9, None) == first.see(0.9, None)
    with pytest.raises(ValueError, match="reshape"):
        second.from_json(first.to_json() | {"on_losses": [1.0]})

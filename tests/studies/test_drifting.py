from __future__ import annotations

import numpy as np
import pretend
import pytest

from branchy_tf import thresholds
from branchy_tf.tuning import Strategy
from zoo.studies import drifting

MACS = np.array(pretend.MACS)


def pretended(n, seed=0, **options):
    return drifting.Rows(*pretend.rows(n, seed, **options))


@pytest.mark.parametrize("name", list(drifting.DRIFTS))
def test_drifts_change_pixels_and_no_shape(name, digits):
    changed = drifting.DRIFTS[name](digits)
    assert changed.dtype == np.uint8
    assert changed.shape == digits.shape
    assert (changed != digits).mean() > 0.1
    np.testing.assert_array_equal(changed, drifting.DRIFTS[name](digits))


def test_drifts_by_hand():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    image[0, 4, 4] = 200
    mean = 200 / 64
    assert drifting.flat(image, 0.5)[0, 4, 4, 0] == round(mean + (200 - mean) / 2)
    assert drifting.flat(image, 0.5)[0, 0, 0, 0] == round(mean / 2)
    blurred = drifting.blurred(image, 1)
    assert blurred[0, 4, 4, 0] == pytest.approx(200 / (2 * np.pi), abs=1)
    assert blurred[0, 4, 5, 0] == blurred[0, 3, 4, 0] > 0
    noise = drifting.noisy(np.full((1, 200, 200, 1), 128, np.uint8), 10) - 128.0
    assert noise.std() == pytest.approx(10, rel=0.05)


def test_a_drift_comes_in_the_middle():
    assert drifting.drift_share(8).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    slowly = drifting.drift_share(16, slowly=True)
    assert slowly.tolist() == [0] * 9 + [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_a_stream_draws_clean_rows_then_changed_ones():
    clean, changed = pretended(500), pretended(500, factor=10)
    requests = drifting.stream(clean, changed, drifting.drift_share(2000), seed=3)
    assert np.isin(requests.scores[:1000, 0], clean.scores[:, 0]).all()
    assert np.isin(requests.scores[1001:, 0], changed.scores[:, 0]).all()
    again = drifting.stream(clean, changed, drifting.drift_share(2000), seed=3)
    np.testing.assert_array_equal(requests.labels, again.labels)


def test_counts_by_window_by_hand():
    labels = np.array([[1, 1], [2, 1], [1, 1], [0, 1]])
    requests = drifting.Rows(np.zeros((4, 2), np.float32), labels)
    found = drifting.by_window(requests, np.array([0, 0, 1, 0]), MACS, 2)
    assert found["agreement"].tolist() == [0.5, 0.5]
    assert found["macs"].tolist() == [1, 2.5]


def test_the_oracle_is_the_cheapest_within_the_budget():
    requests = pretended(8000)
    overall = drifting.oracle(requests, MACS, 0.99)
    windows = drifting.oracle(requests, MACS, 0.99, window=2000)
    assert overall.accuracy == pytest.approx(0.99, abs=2e-4)
    assert overall.cost < windows.cost < 4

    def lowest(point):
        exits = thresholds.exit_indices(requests.scores, point.thresholds)
        return drifting.by_window(requests, exits, MACS, 2000)["agreement"].min()

    assert lowest(overall) < 0.99 <= lowest(windows) + 1e-12


def test_tuned_thresholds_keep_the_budget_through_a_drift_where_static_break_it():
    clean, changed = pretended(6000), pretended(6000, harm=0.08, factor=0.4)
    requests = drifting.stream(clean, changed, drifting.drift_share(12_000), seed=1)
    policy = Strategy(pretend.MACS)
    static = policy.observe(*pretend.rows(5000, seed=9))
    exits = drifting.serve(policy, requests, seed=1)
    tuned = drifting.by_window(requests, exits, MACS, 2000)
    assert tuned["agreement"].min() >= 0.99
    assert tuned["macs"][:3].max() < 2.5
    assert policy.status()["changes"] == 1
    exits = thresholds.exit_indices(requests.scores, static)
    still = drifting.by_window(requests, exits, MACS, 2000)
    assert still["agreement"][:3].min() >= 0.99
    assert still["agreement"][3:].max() < 0.95

from __future__ import annotations

import numpy as np
import pretend
import pytest

from branchy_tf import thresholds
from branchy_tf.tuning import Strategy
from zoo.studies import drifting

MACS = np.array(pretend.MACS)


def outputs(n, seed=0, **options):
    return drifting.ExitOutputs(*pretend.rows(n, seed, **options))


@pytest.mark.parametrize("name", list(drifting.DRIFTS))
def test_drifts_change_pixels_but_not_shapes(name, digits):
    changed = drifting.DRIFTS[name](digits)
    assert changed.dtype == np.uint8
    assert changed.shape == digits.shape
    assert (changed != digits).mean() > 0.1
    np.testing.assert_array_equal(changed, drifting.DRIFTS[name](digits))


def test_drifts_match_hand_computed_pixels():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    image[0, 4, 4] = 200
    mean = 200 / 64
    assert drifting.low_contrast(image, 0.5)[0, 4, 4, 0] == round(mean + (200 - mean) / 2)
    assert drifting.low_contrast(image, 0.5)[0, 0, 0, 0] == round(mean / 2)
    blurred = drifting.blurred(image, 1)
    assert blurred[0, 4, 4, 0] == pytest.approx(200 / (2 * np.pi), abs=1)
    assert blurred[0, 4, 5, 0] == blurred[0, 3, 4, 0] > 0
    noise = drifting.noisy(np.full((1, 200, 200, 1), 128, np.uint8), 10) - 128.0
    assert noise.std() == pytest.approx(10, rel=0.05)


def test_drift_starts_halfway():
    assert drifting.drift_share(8).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    gradual = drifting.drift_share(16, gradual=True)
    assert gradual.tolist() == [0] * 9 + [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_stream_samples_clean_then_drifted_rows():
    clean, drifted = outputs(500), outputs(500, factor=10)
    requests = drifting.stream(clean, drifted, drifting.drift_share(2000), seed=3)
    assert np.isin(requests.scores[:1000, 0], clean.scores[:, 0]).all()
    assert np.isin(requests.scores[1001:, 0], drifted.scores[:, 0]).all()
    again = drifting.stream(clean, drifted, drifting.drift_share(2000), seed=3)
    np.testing.assert_array_equal(requests.labels, again.labels)


def test_windows_match_hand_computed_figures():
    labels = np.array([[1, 1], [2, 1], [1, 1], [0, 1]])
    requests = drifting.ExitOutputs(np.zeros((4, 2), np.float32), labels)
    found = drifting.per_window(requests, np.array([0, 0, 1, 0]), MACS, 2)
    assert found["agreement"].tolist() == [0.5, 0.5]
    assert found["macs"].tolist() == [1, 2.5]


def test_oracle_is_the_cheapest_within_the_budget():
    requests = outputs(8000)
    overall = drifting.oracle(requests, MACS, 0.99)
    windows = drifting.oracle(requests, MACS, 0.99, window=2000)
    assert overall.accuracy == pytest.approx(0.99, abs=2e-4)
    assert overall.cost < windows.cost < 4

    def lowest(point):
        exits = thresholds.exit_indices(requests.scores, point.thresholds)
        return drifting.per_window(requests, exits, MACS, 2000)["agreement"].min()

    assert lowest(overall) < 0.99 <= lowest(windows) + 1e-12


def test_tuned_thresholds_keep_the_budget_that_static_ones_break():
    clean, drifted = outputs(6000), outputs(6000, harm=0.08, factor=0.4)
    requests = drifting.stream(clean, drifted, drifting.drift_share(12_000), seed=1)
    strategy = Strategy(pretend.MACS)
    static = strategy.observe(*pretend.rows(5000, seed=9))
    exits = drifting.serve(strategy, requests, seed=1)
    tuned = drifting.per_window(requests, exits, MACS, 2000)
    assert tuned["agreement"].min() >= 0.99
    assert tuned["macs"][:3].max() < 2.5
    assert strategy.status()["changes"] == 1
    exits = thresholds.exit_indices(requests.scores, static)
    still = drifting.per_window(requests, exits, MACS, 2000)
    assert still["agreement"][:3].min() >= 0.99
    assert still["agreement"][3:].max() < 0.95

"""The tuner around the real client of a real server, on real digits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import servers

from branchy_tf import costs
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.tuning import ThresholdTuner

ROWS = 25


@pytest.fixture(scope="module")
def macs(trained):
    return costs.cumulative_macs(trained)


def test_answers_are_those_of_the_thresholds_in_force(client, predictor, macs, mnist_5k):
    images = mnist_5k.test.images
    full, _ = predictor.all_exits(images)
    full = full[:, -1].argmax(axis=-1)
    left = []
    with ThresholdTuner(client, macs, share=0.1) as tuner:
        tuner.learn(mnist_5k.train.images[:2000])
        assert tuner.status()["state"] == "tuned"
        assert (tuner.thresholds > 0).all()
        for start in range(0, len(images), ROWS):
            rows = slice(start, start + ROWS)
            limits = tuner.thresholds
            answer = tuner.predict(images[rows], timeout=60)
            known = predictor.predict(images[rows], limits)
            asked_all = bool((answer.exits == 1).all())
            expected = full[rows] if asked_all else known.labels
            np.testing.assert_array_equal(answer.labels, expected)
            if not asked_all:
                np.testing.assert_array_equal(answer.exits, known.exits)
            left.append(answer)
        assert tuner.status()["model_version"] == 1
    exits = np.concatenate([answer.exits for answer in left])
    labels = np.concatenate([answer.labels for answer in left])
    assert (exits == 0).mean() > 0.2
    assert (labels == full).mean() >= 0.99


def test_relearns_when_the_version_changes(exported, macs, mnist_5k, tmp_path):
    base = tmp_path / servers.MODEL
    shutil.copytree(exported / "1", base / "1")
    images = mnist_5k.train.images
    with (
        EmbeddedServer(base, servers.MODEL, 0, file_system_poll_wait_seconds=1) as server,
        EarlyExitClient(f"localhost:{server.port}", servers.MODEL, timeout=60) as client,
        ThresholdTuner(client, macs, state_file=tmp_path / "tuner.json") as tuner,
    ):
        tuner.learn(images[:2000])
        assert tuner.thresholds.any()
        shutil.copytree(exported / "1", tmp_path / "2")
        (tmp_path / "2").rename(base / "2")
        servers.until(lambda: tuner.predict(images[:ROWS]).model_version == 2)
        assert tuner.status()["model_version"] == 2
        assert tuner.status()["state"] == "learning"
        assert not tuner.thresholds.any()
        tuner.learn(images[:2000])
        assert tuner.status()["state"] == "tuned"

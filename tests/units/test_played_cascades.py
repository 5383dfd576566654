"""The command play over a cascade: which unit answered, and what happens without one."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest
from cascade_files import write

from branchy_tf import EarlyExitPredictor, playing, units
from branchy_tf.serving import EarlyExitClient
from branchy_tf.serving.embedded import EmbeddedServer

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "playing"))
import play_process


@pytest.fixture(scope="module")
def predictor(network, policy):
    return EarlyExitPredictor(network, policy)


def test_plays_with_a_cascade_yaml(exact_dir, tmp_path):
    flags = [f"--cascade={exact_dir / 'cascade.yaml'}", "--dataset=mnist_5k"]
    with play_process.playing(tmp_path, *flags) as connection:
        known = play_process.facts(connection)
        assert known["units"] == ["device", "cloud"]
        assert known["criterion"] == "entropy"
        assert known["macs"] == [220_150, 1_247_720]
        found = play_process.answer(connection, "sample=3&thresholds=0")
        assert (found["exit"], found["degraded"]) == (1, False)
        assert play_process.answer(connection, "sample=3&thresholds=inf")["exit"] == 0


@pytest.mark.parametrize("on_failure", ["answer", "error"])
def test_a_gateway_tells_the_unit_and_that_one_failed(
    tmp_path, exact_dir, predictor, hard, gateway, on_failure
):
    cloud = EmbeddedServer(exact_dir / "cloud", port=0)
    cloud.start()
    where = f"servers: 'localhost:{cloud.port}'"
    config = write(tmp_path, exact_dir, where, f"on_failure: {on_failure}\n")
    probabilities, scores = predictor.all_exits(hard[:1])
    with (
        gateway(config) as served,
        EarlyExitClient(served.address, "net", timeout=30) as client,
    ):
        subject = playing.of_server(client, served.address, "net")
        assert subject.facts.units == ("device", "cloud")
        calibrated = predictor.policy.thresholds
        assert subject.facts.thresholds == pytest.approx(calibrated)
        found = subject.ask(hard[0], [0.0])
        assert (found.exit, found.degraded) == (1, False)
        np.testing.assert_allclose(found.probabilities, probabilities[0], atol=1e-4)
        np.testing.assert_allclose(found.scores, scores[0], atol=1e-4)
        cloud.stop(0)
        limits = [0.0 if on_failure == "answer" else np.inf]
        found = subject.ask(hard[0], limits)
        assert (found.exit, found.degraded) == (0, on_failure == "answer")
        np.testing.assert_allclose(found.probabilities[0], probabilities[0, 0], atol=1e-4)
        assert np.isnan(found.probabilities[1]).all()
        assert np.isnan(found.scores[1])
        assert subject.time_exits(hard[0])[1] is None


def test_unknown_units_leave_the_costs_out(tmp_path, exact_dir, cloud_server):
    where = f"servers: 'localhost:{cloud_server.port}'"
    config = write(tmp_path, exact_dir, where)
    with units.Cascade(config) as cascade:
        facts = playing.of_cascade(cascade, config, ["a"] * 10).facts
    assert facts.macs is None
    assert facts.criterion == "entropy"
    assert facts.class_names == ["a"] * 10

"""The figures of a cascade, shortened."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import cascade
import cascade_lab

from branchy_tf import units, zoo


@pytest.fixture(scope="module")
def policy():
    return zoo.calibration("branchy_lenet", "mnist").policy


@pytest.fixture(scope="module")
def model(shipped):
    return shipped("branchy_lenet", "mnist")


def test_nothing_is_lost_while_the_last_unit_fails(model, policy, mnist_5k, tmp_path):
    # Long enough for an outage, however slow the machine: it ends after the faults.
    found = cascade.failures(
        model,
        policy,
        mnist_5k.test.images,
        tmp_path,
        requests=1500,
        outage=0.5,
        pause=0.2,
    )
    assert found.problems == []
    assert found.figures["degraded"] > 0


def test_a_cut_network_agrees_with_the_whole(shipped, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 32, 32, 3), np.uint8)
    network = shipped("branchy_resnet", "cifar10_depth20")
    policy = zoo.calibration("branchy_resnet", "cifar10_depth20").policy
    from branchy_tf import data

    test = data.Split(images, np.zeros(64, np.int64))
    found = cascade.agreement(network, policy, test, tmp_path)
    assert found.figures["none"]["exits"] == found.figures["none"]["labels"] == 0


def test_the_gateway_is_compared_with_a_unit(model, policy, mnist_5k, tmp_path):
    parts = units.cut(model, ["exit_1"], ["device", "cloud"])
    units.export(parts, tmp_path / "units", policy, model_name="network")
    images = mnist_5k.test.images[:32]
    found = cascade.overhead(
        tmp_path / "units", "device", images, tmp_path, seconds=0.3, rounds=1
    )
    # The bounds need a quiet machine; here the figures only have to be there.
    assert found.figures["share_1"] > 0
    assert found.figures["share_32"] > 0
    assert found.figures["cpu_ms_1"] > 0


def test_the_lab_compares_places_and_simulates_them(model, policy, mnist_5k, tmp_path):
    test = mnist_5k.test.take(np.arange(20))
    found = cascade_lab.run(
        model, policy, test, ["exit_1"], tmp_path, rate=40.0, rounds=1
    )
    assert found.problems == []
    results = found.figures
    assert results["cascade, image"]["bytes"] < results["edge only"]["bytes"]
    for figures in results.values():
        assert figures["simulated"] > 0
    # Two ways over both lines.
    assert results["cloud only"]["simulated"] > 90

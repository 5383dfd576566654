"""A model served in another process, and its clients."""

from __future__ import annotations

from collections.abc import Iterator

import blocking
import numpy as np
import pytest
import servers

import branchy_tf
from branchy_tf import thresholds
from branchy_tf.serving import EarlyExitClient, backends


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "embedded_only(why): skipped where --server_backend names another server",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    backend = item.config.getoption("server_backend")
    marker = item.get_closest_marker("embedded_only")
    if marker is not None and backend != backends.EMBEDDED:
        (why,) = marker.args
        pytest.skip(f"not for {backend}: {why}")


@pytest.fixture(scope="session")
def served(request, exported, tmp_path_factory) -> Iterator[servers.ServeProcess]:
    """`exported`, served by --server_backend in another process; do not stop it."""
    backend = request.config.getoption("server_backend")
    servers.skip_without(backend)
    log = tmp_path_factory.mktemp("served") / "log"
    server = servers.ServeProcess(exported, log, backend=backend)
    try:
        assert server.address
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def client(served) -> Iterator[EarlyExitClient]:
    with EarlyExitClient(served.address, servers.MODEL, timeout=60) as client:
        yield client


@pytest.fixture
def fake() -> Iterator[servers.FakeServer]:
    with servers.FakeServer() as server:
        yield server


@pytest.fixture(params=[EarlyExitClient, blocking.Blocking], ids=["sync", "async"])
def connect(request) -> type:
    """Creates clients; tests that use it run with both kinds."""
    return request.param


@pytest.fixture
def fake_client(fake, connect) -> Iterator:
    with connect(fake.address, servers.MODEL) as client:
        yield client


@pytest.fixture(scope="session")
def calibration(run_dir) -> thresholds.Calibration:
    """The calibration of `exported`."""
    return thresholds.Calibration.read(run_dir / "thresholds.json", ["exit_1", "exit_2"])


@pytest.fixture(scope="session")
def calibrated(calibration) -> list[float]:
    """The default thresholds of `exported`."""
    return list(calibration.thresholds)


@pytest.fixture(scope="session")
def predictor(trained, calibration) -> branchy_tf.EarlyExitPredictor:
    """The predictor that a server of `exported` must agree with."""
    return branchy_tf.EarlyExitPredictor(trained, calibration)


@pytest.fixture(scope="session")
def halving(predictor, mnist_5k) -> float:
    """A threshold at which about half of `digits` exit early, far from any score."""
    _, scores = predictor.all_exits(mnist_5k.test.images[:64])
    middle = np.sort(scores[:, 0])[20:44]
    widest = np.diff(middle).argmax()
    return float(middle[widest : widest + 2].mean())

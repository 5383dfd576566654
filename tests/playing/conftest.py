"""A page over the shipped B-LeNet, which is shared by all tests of playing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from branchy_tf import playing, zoo


@pytest.fixture(scope="session")
def policy():
    """The calibrated policy of the shipped B-LeNet."""
    return zoo.calibration("branchy_lenet", "mnist").policy


@pytest.fixture(scope="session")
def samples(mnist_5k):
    return mnist_5k.test.take(np.arange(60))


@pytest.fixture(scope="session")
def server(shipped, policy, samples) -> Iterator[playing.PlayServer]:
    """A running server; do not change it."""
    subject = playing.of_model(shipped("branchy_lenet", "mnist"), policy)
    with playing.PlayServer(subject, samples) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()

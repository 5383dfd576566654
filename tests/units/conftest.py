"""Cut networks, exported, and gateways to test with."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest

from branchy_tf import units, zoo
from branchy_tf.serving.embedded import EmbeddedServer
from branchy_tf.units.gateway import Gateway

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "serving"))


class RunningGateway:
    """A gateway in a thread of its own.

    Attributes:
        address: host:port.
        gateway: the `Gateway`.
    """

    def __init__(self, config: pathlib.Path, **options) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.gateway = self.do(self._start(config, options))
        self.address = f"127.0.0.1:{self.gateway.port}"

    async def _start(self, config: pathlib.Path, options: dict) -> Gateway:
        gateway = Gateway(config, port=0, **options)
        await gateway.start()
        return gateway

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def stop(self) -> None:
        self.do(self.gateway.stop(grace=5))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 before it exists."""
        value = self.gateway.metrics.registry.get_sample_value(name, labels)
        return value or 0.0


@contextlib.contextmanager
def running(config: pathlib.Path, **options) -> Iterator[RunningGateway]:
    """Serves a cascade.yaml in this process."""
    gateway = RunningGateway(config, **options)
    try:
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(scope="session")
def gateway() -> Callable:
    """A context manager that serves a cascade.yaml: `gateway(config)`."""
    return running


@pytest.fixture(scope="session")
def network(shipped) -> keras.Model:
    """B-LeNet with its shipped weights; do not change it."""
    return shipped("branchy_lenet", "mnist")


@pytest.fixture(scope="session")
def policy():
    """The shipped policy of `network`."""
    return zoo.calibration("branchy_lenet", "mnist").policy


@pytest.fixture(scope="session")
def cut_dir(network, policy, tmp_path_factory) -> pathlib.Path:
    """`network` in the units device and cloud, codec uint8; do not change it."""
    folder = tmp_path_factory.mktemp("units")
    parts = units.cut(network, ["exit_1"], ["device", "cloud"])
    units.export(parts, folder, policy, model_name="branchy_lenet")
    return folder


@pytest.fixture(scope="session")
def exact_dir(network, policy, tmp_path_factory) -> pathlib.Path:
    """As `cut_dir`, with the codec none."""
    folder = tmp_path_factory.mktemp("exact_units")
    parts = units.cut(network, ["exit_1"], ["device", "cloud"])
    units.export(parts, folder, policy, model_name="branchy_lenet", codec="none")
    return folder


@pytest.fixture(scope="session")
def device_server(exact_dir) -> Iterator[EmbeddedServer]:
    """Serves the unit device of `exact_dir`."""
    with EmbeddedServer(exact_dir / "device", port=0) as server:
        yield server


@pytest.fixture(scope="session")
def cloud_server(exact_dir) -> Iterator[EmbeddedServer]:
    """Serves the unit cloud of `exact_dir`."""
    with EmbeddedServer(exact_dir / "cloud", port=0) as server:
        yield server


@pytest.fixture
def hard(mnist_5k) -> np.ndarray:
    """96 real test images, uint8 [96, 28, 28, 1]."""
    return mnist_5k.test.images[:96]

"""Keeps the network of a cascade.yaml running: connects, and follows changes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import time

from absl import logging

from branchy_tf import files
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.units import configs
from branchy_tf.units.metrics import CascadeMetrics
from branchy_tf.units.network import Network

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.2
_CONNECT_SECONDS = 2.0


class RunningCascade:
    """The current network of a cascade.yaml.

    Args:
        path: of the cascade.yaml.
        metrics: of the cascade.

    Raises:
        BranchyError: the file, or a unit that runs in this process, is invalid.
    """

    def __init__(self, path: files.Path, metrics: CascadeMetrics) -> None:
        self._path = files.absolute(path)
        self._metrics = metrics
        self._read = _state(self._path)
        self._config = configs.load(self._path)
        self._network: Network | None = None
        self._ready = asyncio.Event()
        self._problem: ServerError | None = None
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> None:
        """Opens the units, then connects and watches in the background.

        Raises:
            BranchyError: units that are reachable do not fit.
        """
        self._network = await Network.open(self._config, self._metrics)
        with contextlib.suppress(ServerError):
            await self._connect()
        self._keep(self._watch())

    async def stop(self) -> None:
        """Waits for the requests in progress and closes the units."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._network is not None:
            await self._network.close()

    @property
    def is_ready(self) -> bool:
        """Whether every unit has been reached."""
        return self._ready.is_set()

    async def network(self, deadline: float) -> Network:
        """The current network, once every unit has been reached.

        Args:
            deadline: in `time.monotonic()`.

        Raises:
            ServerError: a unit was not reached in time.
        """
        if self._network is not None and self._ready.is_set():
            return self._network
        try:
            await asyncio.wait_for(self._ready.wait(), deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise self._problem or ServerError(
                "UNAVAILABLE", "The units have not been reached yet."
            ) from None
        assert self._network is not None
        return self._network

    async def _connect(self) -> None:
        assert self._network is not None
        try:
            await self._network.connect(_CONNECT_SECONDS)
        except ServerError as error:
            self._problem = error
            raise
        self._ready.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS if self.is_ready else _RETRY_SECONDS)
            try:
                found = _state(self._path)
                if found != self._read:
                    self._read = found
                    await self._reload()
                elif not self.is_ready:
                    await self._connect()
            except (BranchyError, ServerError, OSError) as error:
                logging.log_every_n_seconds(
                    logging.WARNING, "The cascade stays as it is: %s", 10, error
                )

    async def _reload(self) -> None:
        """Switches to the changed file; the old units finish their requests."""
        fresh = await Network.open(configs.load(self._path), self._metrics)
        try:
            await fresh.connect(_CONNECT_SECONDS)
        except BaseException:
            await fresh.close()
            raise
        old, self._network = self._network, fresh
        self._ready.set()
        logging.info("%s has changed, and its units are in use.", self._path)
        if old is not None:
            self._keep(old.close())

    def _keep(self, coroutine) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _state(path: pathlib.Path) -> tuple[int, int, int] | None:
    """Changes whenever the file does; None without the file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

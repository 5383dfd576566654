"""A cascade of units in a program."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from branchy_tf import checks, files, policy
from branchy_tf.errors import BranchyError
from branchy_tf.results import Predictions
from branchy_tf.units.metrics import CascadeMetrics
from branchy_tf.units.network import Model
from branchy_tf.units.running import RunningCascade

T = TypeVar("T")


class Cascade:
    """Answers rows with the units of a cascade.yaml; thread-safe.

    The file may change while it runs; see `units.configs` for what it holds.

    Args:
        config: path of the cascade.yaml.
        model: the model to ask, if the file has several entries.
        timeout: seconds for a call.
        metrics: counts rows, bytes and failures; default: its own.

    Raises:
        BranchyError: the file is invalid, or units do not fit each other.

    Example:

    ```python
    with units.Cascade("exports/cascade.yaml") as cascade:
        answer = cascade.predict(images)
        answer.labels, answer.exits, answer.degraded
    ```
    """

    def __init__(
        self,
        config: files.Path,
        model: str | None = None,
        timeout: float = 10.0,
        metrics: CascadeMetrics | None = None,
    ) -> None:
        self._timeout = _seconds(timeout)
        self._model = model
        self.metrics = CascadeMetrics() if metrics is None else metrics
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="cascade", daemon=True
        )
        self._thread.start()
        self._closed = False
        try:
            self._running = self._do(self._start(config))
        except BaseException:
            self._end()
            raise

    async def _start(self, config: files.Path) -> RunningCascade:
        running = RunningCascade(config, self.metrics)
        await running.start()
        return running

    def __enter__(self) -> Cascade:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for calls in progress and closes the connections."""
        if not self._closed:
            self._do(self._running.stop())
            self._end()

    def predict(
        self, images: Any, thresholds: Any = None, timeout: float | None = None
    ) -> Predictions:
        """Classifies rows, each at the first exit that is sure enough.

        Args:
            images: [B, ...] of the network's input shape and dtype (zoo models: raw
                pixels, uint8); a dict by name for several inputs.
            thresholds: N-1 numbers or [B, N-1]; default: those of the export.
            timeout: seconds; default: the cascade's.

        Returns:
            `Predictions` of B rows. `degraded` marks rows that a later unit should have
            answered.

        Raises:
            BranchyError: images or thresholds do not fit, or the cascade is closed.
            ServerError: the first unit failed, or a later one with `on_failure: error`.
        """
        return self._do(self._predict(images, thresholds, self._deadline(timeout)))

    def describe(self, timeout: float | None = None) -> Model:
        """What the units say of the network that they make up.

        Args:
            timeout: seconds; default: the cascade's.

        Returns:
            A `Model`: its inputs, exits, classes and default thresholds, and the unit of
            each exit.

        Raises:
            BranchyError: the file has several entries and none was named, or the cascade
                is closed.
            ServerError: a unit was not reached in time.
        """
        return self._do(self._describe(self._deadline(timeout)))

    def _deadline(self, timeout: float | None) -> float:
        if self._closed:
            raise BranchyError("The cascade is closed; create another one.")
        seconds = self._timeout if timeout is None else _seconds(timeout)
        return time.monotonic() + seconds

    async def _describe(self, deadline: float) -> Model:
        return (await self._running.network(deadline)).model(self._model)

    async def _predict(
        self, images: Any, thresholds: Any, deadline: float
    ) -> Predictions:
        network = await self._running.network(deadline)
        model = network.model(self._model)
        arrays, rows = checks.batch(images, model.inputs)
        if not rows:
            raise BranchyError("The batch is empty; expected at least one row.")
        limits = None
        if thresholds is not None:
            limits = policy.check(thresholds, model.exits, rows)
        return await network.answer(model.name, arrays, limits, deadline)

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _seconds(timeout: Any) -> float:
    return checks.real_number(
        "timeout", timeout, above=0, at_most=10**8, what="number of seconds"
    )

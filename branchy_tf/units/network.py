"""Runs requests through the units of a cascade.

Each row goes from unit to unit until one is sure of it. Only rows that go on are sent
on. If a later unit fails, its rows keep the best answer so far and are marked, or the
request fails; cascade.yaml says which.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from branchy_tf.checks import TensorSpec
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import Predictions, exit_name
from branchy_tf.units import interfaces
from branchy_tf.units.batching import Batcher
from branchy_tf.units.configs import ANSWER, CascadeConfig
from branchy_tf.units.interfaces import FEATURES, ONWARD, THRESHOLDS, Interface
from branchy_tf.units.links import Link, open_link
from branchy_tf.units.metrics import CascadeMetrics

# Kept of a request's time for its own answer: a tenth, at most this many seconds.
_RESERVE_SECONDS = 0.1
# What the features were made for does not fit the unit's weights; see `UnitModule`.
_REFUSED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}


@dataclasses.dataclass
class _Stop:
    """One unit on the way of a row."""

    link: Link
    batcher: Batcher
    interface: Interface


@dataclasses.dataclass(frozen=True)
class Model:
    """One model that clients can use.

    Attributes:
        name: its name.
        version: of the first unit.
        inputs: by name.
        exits: the number of exits of all units together.
        classes: the number of classes.
        thresholds: the default thresholds.
        units: the name of the unit of each exit.
    """

    name: str
    version: int
    inputs: Mapping[str, TensorSpec]
    exits: int
    classes: int
    thresholds: np.ndarray
    units: tuple[str, ...]


class Network:
    """The units of one cascade.yaml, and the way through them.

    Args:
        config: the checked cascade.yaml.
        metrics: counts rows, bytes and failures.
        links: to the units, by name.
    """

    def __init__(
        self,
        config: CascadeConfig,
        metrics: CascadeMetrics,
        links: Mapping[str, Link],
    ) -> None:
        self.config = config
        self._metrics = metrics
        self._links = links
        self._chains: dict[str, list[_Stop]] = {}
        self._models: dict[str, Model] = {}
        self._batchers = {
            name: Batcher(link, metrics) for name, link in self._links.items()
        }
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def open(cls, config: CascadeConfig, metrics: CascadeMetrics) -> Network:
        """Opens the units of a cascade.yaml.

        Raises:
            BranchyError: a unit cannot be opened; the others are closed again.
        """
        links: dict[str, Link] = {}
        try:
            for name, unit in config.units.items():
                links[name] = await open_link(unit)
        except BaseException:
            for link in links.values():
                await link.close()
            raise
        return cls(config, metrics, links)

    async def connect(self, timeout: float) -> None:
        """Asks every unit what it takes and returns, and checks that they fit.

        Raises:
            BranchyError: units do not fit each other.
            ServerError: a unit does not answer.
        """
        names = list(self._links)
        described = await asyncio.gather(
            *(self._links[name].describe(timeout) for name in names)
        )
        found = dict(zip(names, described, strict=True))
        for chain in self.config.chains.values():
            interfaces.check_chain([found[name] for name in chain])
        self._chains = {
            model: [
                _Stop(self._links[name], self._batchers[name], found[name])
                for name in chain
            ]
            for model, chain in self.config.chains.items()
        }
        self._summarise()

    def _summarise(self) -> None:
        """Updates what clients see of each model."""
        self._models = {
            name: _model(
                name,
                [stop.interface for stop in chain],
                chain[0].link.config.thresholds,
            )
            for name, chain in self._chains.items()
        }

    async def close(self) -> None:
        """Waits until no request uses the units, and closes them."""
        await self._idle.wait()
        for link in self._links.values():
            await link.close()

    def model(self, name: str | None = None) -> Model:
        """A model by name; without a name the only one.

        Raises:
            BranchyError: an unknown name, or none where there are several.
        """
        known = list(self._models)
        if name is None and len(known) == 1:
            (name,) = known
        if name not in self._models:
            raise BranchyError(
                f"There is no model {name!r}; pass one of: {', '.join(known)}."
            )
        return self._models[name]

    async def answer(
        self,
        name: str,
        inputs: Mapping[str, np.ndarray],
        thresholds: np.ndarray | None,
        deadline: float,
        version: int | None = None,
    ) -> Predictions:
        """Answers rows, each at the first exit that is sure enough.

        Args:
            name: of the model.
            inputs: by name, B > 0 rows each.
            thresholds: float32 [1 or B, N-1]; None: the units' defaults.
            deadline: in `time.monotonic()`.
            version: of the first unit that must answer; default: the newest.

        Returns:
            `Predictions` of B rows with `degraded`.

        Raises:
            ServerError: the first unit failed, or a later one did and the cascade is
                set to `on_failure: error`.
        """
        self._users += 1
        self._idle.clear()
        try:
            chain = self._chains[name]
            return await self._walk(name, chain, inputs, thresholds, deadline, version)
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def _walk(
        self,
        name: str,
        chain: Sequence[_Stop],
        inputs: Mapping[str, np.ndarray],
        thresholds: np.ndarray | None,
        deadline: float,
        version: int | None,
    ) -> Predictions:
        if thresholds is None:
            thresholds = self.model(name).thresholds[None]
        count = len(next(iter(inputs.values())))
        if len(thresholds) < count:
            thresholds = np.repeat(thresholds, count, axis=0)
        limits = _disable_for_nonfinite(inputs, thresholds)
        probabilities = np.empty((count, chain[0].interface.classes), np.float32)
        exits = np.empty(count, np.int32)
        scores = np.empty(count, np.float32)
        degraded = np.zeros(count, bool)

        rows: Any = slice(None)
        before = 0
        current = dict(inputs)
        for k, stop in enumerate(chain):
            unit = stop.interface
            end = before + len(unit.thresholds)
            asked = current | {THRESHOLDS: limits[:, before:end]}
            try:
                reply = await stop.batcher.run(
                    asked, _deadline_of(stop, k, deadline), version if not k else None
                )
            except ServerError as error:
                if error.code in _REFUSED:
                    await self._describe(stop)
                if not k or self.config.on_failure != ANSWER:
                    raise (_later(error) if k else error) from None
                degraded[rows] = True
                self._metrics.count_degraded(unit.name, error.code, len(rows))
                logging.log_every_n_seconds(
                    logging.WARNING,
                    "Unit %s failed; its rows keep the best answer so far. %s",
                    10,
                    unit.name,
                    error,
                )
                break
            outputs = reply.outputs
            if not k:
                version = reply.version
            if reply.version != unit.version:
                # Another version: its default thresholds may differ.
                await self._describe(stop)
            probabilities[rows] = outputs["probabilities"]
            exits[rows] = outputs["exit"] + before
            scores[rows] = outputs["score"]
            if not unit.goes_on:
                break
            onward = outputs[ONWARD]
            if not onward.any():
                break
            rows = rows[onward] if k else np.flatnonzero(onward)
            limits, before = limits[onward], end
            current = {
                key: value for key, value in outputs.items() if key.startswith(FEATURES)
            } or {key: value[rows] for key, value in inputs.items()}
        total = self.model(name).exits
        self._metrics.count_exits(
            name,
            [exit_name(i + 1) for i in range(total)],
            np.bincount(exits, minlength=total).tolist(),
        )
        return Predictions(probabilities, exits, scores, version, degraded)

    async def _describe(self, stop: _Stop) -> None:
        """Asks a unit again what it takes; keeps what is known if it does not fit."""
        try:
            fresh = await stop.link.describe(1.0)
        except (ServerError, BranchyError) as error:
            logging.warning("Unit %s: %s", stop.interface.name, error)
            return
        for chain in self._chains.values():
            if any(other.link is stop.link for other in chain):
                changed = [
                    fresh if other.link is stop.link else other.interface
                    for other in chain
                ]
                try:
                    interfaces.check_chain(changed)
                except BranchyError as error:
                    logging.warning("%s", error)
                    return
        for chain in self._chains.values():
            for other in chain:
                if other.link is stop.link:
                    other.interface = fresh
        self._summarise()


def _model(
    name: str, chain: Sequence[Interface], thresholds: Sequence[float] | None
) -> Model:
    exits = sum(unit.exits for unit in chain)
    if thresholds is None:
        thresholds = [limit for unit in chain for limit in unit.thresholds]
    if len(thresholds) != exits - 1:
        raise BranchyError(
            f"Unit {chain[0].name!r} has {len(thresholds)} `thresholds`, but there are "
            f"{exits} exits from there on: {', '.join(unit.name for unit in chain)}. "
            f"Write {exits - 1}."
        )
    return Model(
        name=name,
        version=chain[0].version,
        inputs=chain[0].inputs,
        exits=exits,
        classes=chain[0].classes,
        thresholds=np.asarray(thresholds, np.float32),
        units=tuple(unit.name for unit in chain for _ in range(unit.exits)),
    )


def _deadline_of(stop: _Stop, k: int, deadline: float) -> float:
    """When a unit must have answered, so that its failure can still be answered."""
    now = time.monotonic()
    if k:
        deadline -= min(_RESERVE_SECONDS, 0.1 * max(deadline - now, 0.0))
    timeout = stop.link.config.timeout
    return deadline if timeout is None else min(deadline, now + timeout)


def _later(error: ServerError) -> ServerError:
    """The error of a later unit: a client must not take it for its own mistake."""
    if error.code not in _REFUSED:
        return error
    return ServerError("FAILED_PRECONDITION", str(error).partition(": ")[2])


def _disable_for_nonfinite(
    inputs: Mapping[str, np.ndarray], limits: np.ndarray
) -> np.ndarray:
    """The thresholds, NaN for rows with NaN or infinity in their inputs.

    Such a row never exits early. The units that come later do not see the inputs.
    """
    found: Any = limits
    for value in inputs.values():
        if value.dtype.kind == "f":
            finite = np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
            if not finite.all():
                found = np.where(finite[:, None], found, np.float32("nan"))
    return found

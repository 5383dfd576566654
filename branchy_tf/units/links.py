"""Links to units: on servers over gRPC, or in this process.

A link runs a unit's signature on a batch. It raises `ServerError` with gRPC's status when
the unit is unreachable, late or refuses.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import grpc.aio
import numpy as np

from branchy_tf.errors import BranchyError, ServerError, first_line
from branchy_tf.serving import compression, messages, wire
from branchy_tf.serving.channels import Route, explain
from branchy_tf.serving.messages import Target
from branchy_tf.units import interfaces
from branchy_tf.units.configs import UnitConfig
from branchy_tf.units.interfaces import Interface

# How long a server that failed is asked only if all others have failed too.
_AVOIDED_SECONDS = 0.5
_POLL_SECONDS = 1.0
# A status of a server that certainly computed nothing, or that another may answer.
_RETRIED = {"UNAVAILABLE"}


class Reply(NamedTuple):
    """A unit's reply to one call.

    Attributes:
        outputs: by name.
        version: of the servable that answered.
        sent: bytes of the request, before gzip and after zstd; 0 in this process.
        received: bytes of the response; 0 in this process.
    """

    outputs: dict[str, np.ndarray]
    version: int
    sent: int = 0
    received: int = 0


class Link(abc.ABC):
    """Runs one unit.

    Attributes:
        config: where it runs.
        width: the most concurrent calls that help.
    """

    def __init__(self, config: UnitConfig) -> None:
        self.config = config
        self.width = config.concurrency * max(1, len(config.targets))

    @abc.abstractmethod
    async def describe(self, timeout: float) -> Interface:
        """What the unit takes and returns.

        Raises:
            BranchyError: it is no unit.
            ServerError: it does not answer.
        """

    @abc.abstractmethod
    async def run(
        self,
        inputs: Mapping[str, np.ndarray],
        timeout: float,
        version: int | None = None,
    ) -> Reply:
        """Runs a batch.

        Args:
            inputs: by name, with thresholds.
            timeout: seconds.
            version: of the servable; default: the configured one, or the newest.

        Raises:
            ServerError: no server answered.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends its connections, or frees its model."""


class _Replica:
    """One server of a unit."""

    def __init__(self, target: Target, route: Route) -> None:
        self.target = target
        self.route = route
        self.busy = 0
        self.avoided_until = 0.0
        channel = route.open(grpc.aio, retries=False)
        self._channel = channel
        self.predict = channel.unary_unary(wire.PREDICT)
        self.metadata = channel.unary_unary(wire.GET_MODEL_METADATA)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Counts a call, and turns gRPC's errors into `ServerError`."""
        self.busy += 1
        try:
            yield
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            code, details = "UNAVAILABLE", "The connection was closed."
            if isinstance(error, grpc.aio.AioRpcError):
                code, details = error.code().name, error.details() or ""
            if code in _RETRIED:
                self.avoided_until = time.monotonic() + _AVOIDED_SECONDS
            raise explain(self.target, self.route, code, details) from None
        finally:
            self.busy -= 1

    async def close(self) -> None:
        await self._channel.close()


class RemoteLink(Link):
    """A unit on one or more servers.

    A call goes to the server with the fewest calls in progress. Predict has no side
    effects, so a call that a server did not answer goes on to the next one.

    Args:
        config: with `targets`.
    """

    def __init__(self, config: UnitConfig) -> None:
        super().__init__(config)
        self._replicas = [
            _Replica(target, Route.to(target.server, config.tls))
            for target in config.targets
        ]

    async def describe(self, timeout: float) -> Interface:
        deadline = time.monotonic() + timeout

        async def ask(replica: _Replica) -> Interface:
            request = messages.metadata_request(replica.target, None)
            data = await replica.metadata(request, timeout=_left(deadline))
            response = replica.target.parse(wire.GetModelMetadataResponse, data)
            packed = response.metadata["signature_def"].value
            served = replica.target.parse(wire.SignatureDefMap, packed).signature_def
            return interfaces.read(
                self.config.name, response.model_spec.version.value, served
            )

        return await self._try(ask)

    async def run(
        self,
        inputs: Mapping[str, np.ndarray],
        timeout: float,
        version: int | None = None,
    ) -> Reply:
        deadline = time.monotonic() + timeout

        async def ask(replica: _Replica) -> Reply:
            request = messages.predict_request(
                replica.target, interfaces.SIGNATURE, version, inputs
            )
            packed, options = compression.prepare(self.config.compression, request)
            data = await replica.predict(packed, timeout=_left(deadline), **options)
            response = replica.target.parse(wire.PredictResponse, data)
            try:
                outputs = {
                    name: wire.to_array(proto) for name, proto in response.outputs.items()
                }
            except (ValueError, BranchyError) as error:
                raise replica.target.unexpected(first_line(error)) from None
            number = response.model_spec.version.value
            return Reply(outputs, number, len(packed), len(data))

        return await self._try(ask)

    async def _try(self, ask: Any) -> Any:
        tried: set[int] = set()
        while True:
            replica = self._choose(tried)
            tried.add(id(replica))
            try:
                with replica.using():
                    return await ask(replica)
            except ServerError as error:
                if error.code not in _RETRIED or len(tried) == len(self._replicas):
                    raise

    def _choose(self, tried: set[int]) -> _Replica:
        now = time.monotonic()
        return min(
            (replica for replica in self._replicas if id(replica) not in tried),
            key=lambda replica: (replica.avoided_until > now, replica.busy),
        )

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.close()


class LocalLink(Link):
    """A unit in this process: the newest version in a folder, as a server runs it.

    Args:
        config: with `path`.

    Raises:
        BranchyError: the folder has no version that loads.
    """

    def __init__(self, config: UnitConfig) -> None:
        # Imports TensorFlow, which a gateway to servers does without.
        from branchy_tf.serving.embedded.versions import Versions

        super().__init__(config)
        assert config.path is not None
        if not config.path.is_dir():
            raise BranchyError(
                f"There is no folder {config.path} of unit {config.name!r}. Pass the "
                "folder with its versions, as `cascade export` wrote it."
            )
        self._versions = Versions(config.path)
        self._versions.poll()
        if not self._versions.available():
            reasons = [version.error for version in self._versions.statuses()]
            raise BranchyError(
                f"{config.path} holds no version of unit {config.name!r} that loads"
                f"{': ' + reasons[0] if reasons else ''}. Export it."
            )
        self._pool = futures.ThreadPoolExecutor(
            self.width, thread_name_prefix=config.name
        )
        self._polled = time.monotonic()
        self._poll: asyncio.Future | None = None

    async def describe(self, timeout: float) -> Interface:
        with self._versions.use(None) as found:
            assert found is not None
            number, model = found
            served = {
                name: wire.SignatureDef.FromString(definition.SerializeToString())
                for name, definition in model.signatures.items()
            }
        return interfaces.read(self.config.name, number, served)

    async def run(
        self,
        inputs: Mapping[str, np.ndarray],
        timeout: float,
        version: int | None = None,
    ) -> Reply:
        loop = asyncio.get_running_loop()
        due = time.monotonic() - self._polled >= _POLL_SECONDS
        if due and (self._poll is None or self._poll.done()):
            self._polled = time.monotonic()
            # In a thread: loading a version takes seconds.
            self._poll = loop.run_in_executor(None, self._versions.poll)
        work = loop.run_in_executor(self._pool, self._run, inputs, version)
        try:
            return await asyncio.wait_for(work, timeout)
        except asyncio.TimeoutError:
            raise ServerError(
                "DEADLINE_EXCEEDED",
                f"Unit {self.config.name!r} did not answer in this process in time.",
            ) from None

    def _run(self, inputs: Mapping[str, np.ndarray], version: int | None) -> Reply:
        with self._versions.use(version) as found:
            if found is None:
                raise ServerError(
                    "NOT_FOUND",
                    f"Unit {self.config.name!r} has no version {version} in "
                    f"{self.config.path}.",
                )
            number, model = found
            try:
                return Reply(model.run(interfaces.SIGNATURE, inputs), number)
            except Exception as error:
                # TensorFlow's statuses are exceptions of their own.
                code = getattr(error, "error_code", None)
                name = _status_name(code)
                raise ServerError(name, first_line(error)) from None

    async def close(self) -> None:
        if self._poll is not None:
            await asyncio.wait([self._poll])
        self._pool.shutdown(wait=True)
        self._versions.stop()


async def open_link(config: UnitConfig) -> Link:
    """The link to a unit.

    Raises:
        BranchyError: invalid TLS files, or a folder without a version.
    """
    if config.path is None:
        return RemoteLink(config)
    # In a thread: loading a version takes seconds, in which others must be answered.
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, LocalLink, config)


def _status_name(code: int | None) -> str:
    for status in grpc.StatusCode:
        if status.value[0] == code:
            return status.name
    return "INTERNAL"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ServerError("DEADLINE_EXCEEDED", "No time was left for the unit.")
    return left

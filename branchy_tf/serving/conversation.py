"""The protocol of a client, without I/O.

Every client method is a generator here. It yields a `Send` or a `Pause`, receives the
responses' bytes or a `ServerError`, and returns the result. The blocking and the asyncio
client share it, and its tests need no server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from branchy_tf import checks, thresholds
from branchy_tf.checks import ranges
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import AllExits, Predictions
from branchy_tf.serving import messages, wire
from branchy_tf.serving.messages import Signature, Target
from branchy_tf.serving.metrics import ClientMetrics

# Concurrent requests of one call.
IN_FLIGHT = 4
# Default limits of a request: a batching TF Serving refuses more than 1,000 rows, and
# many gRPC servers and proxies more than 4 MB; half of that leaves room for the rest of
# the message.
_ROWS, _BYTES = 1000, 2 * 2**20
# How often the parts of one call are sent, as the version may change meanwhile.
_ROUNDS = 5
# Errors that an outdated signature may have caused.
_STALE = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL"}
_PAUSE_SECONDS = 0.05
_STATUS_SECONDS = 2.0
_LONGEST = 10**8  # seconds, three years


@dataclasses.dataclass(frozen=True)
class Send:
    """Sends requests, at most `IN_FLIGHT` at a time.

    Receives the list of the responses' bytes, in order.

    Attributes:
        method: path of the gRPC method.
        requests: functions that serialise a request just before it is sent.
        deadline: of all responses, in `time.monotonic()`.
    """

    method: str
    requests: Sequence[Callable[[], bytes]]
    deadline: float

    def left(self) -> float:
        """Seconds until the deadline.

        Raises:
            ServerError: DEADLINE_EXCEEDED; none are left.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ServerError(
                "DEADLINE_EXCEEDED",
                "No time was left; pass a longer timeout or send fewer rows.",
            )
        return left


@dataclasses.dataclass(frozen=True)
class Pause:
    """Sleeps."""

    seconds: float


T = TypeVar("T")
Answer = TypeVar("Answer", Predictions, AllExits)
Steps = Generator[Send | Pause, Any, T]


@dataclasses.dataclass(frozen=True)
class _Question:
    """One kind of request.

    Attributes:
        signature: name of the served signature.
        fit: returns the arrays to send, one row per example; raises `BranchyError`.
        read: parses a response; raises `ServerError`.
    """

    signature: str
    fit: Callable[[Signature], dict[str, np.ndarray]]
    read: Callable[[Target, Any, int, Signature], Any]


class Conversation:
    """The methods of a client as generators; thread-safe.

    Args:
        target: the model to query.
        timeout: default seconds per call.
        max_rows: the most rows in one request; default: what servers accept.
        metrics: counts calls.
        inputs: the ranges that the model was trained on, or None if unknown.
    """

    def __init__(
        self,
        target: Target,
        timeout: float,
        max_rows: int | None = None,
        metrics: ClientMetrics | None = None,
        inputs: Mapping[str, ranges.InputRange] | None = None,
    ) -> None:
        if max_rows is not None:
            max_rows = checks.whole_number("max_rows", max_rows, at_least=1)
        if metrics is not None and not isinstance(metrics, ClientMetrics):
            raise BranchyError(
                "`metrics` must be a ClientMetrics, such as ClientMetrics(). Received "
                f"{checks.shown(metrics)}."
            )
        self.target = target
        self._timeout = _checked(timeout)
        self._max_rows = max_rows
        self._metrics = metrics
        self._inputs = inputs
        self._has_warned = False
        # Only replaced as a whole, so threads need no lock.
        self._signature: Signature | None = None

    def predict(
        self, images: Any, limits: Any, timeout: float | None
    ) -> Steps[Predictions]:
        """See `EarlyExitClient.predict`."""
        name = messages.CALIBRATED if limits is None else messages.EARLY_EXIT

        def fit(signature: Signature) -> dict[str, np.ndarray]:
            arrays, rows = self._checked_batch(images, signature)
            if limits is not None:
                checked = thresholds.check(limits, signature.num_exits, rows)
                # One row per image: a batching server requires every input to have the
                # batch as its first dimension.
                arrays["thresholds"] = np.broadcast_to(checked, (rows, checked.shape[1]))
            return arrays

        with self._watch("predict"):
            question = _Question(name, fit, messages.read_predictions)
            answer = yield from self._answer(question, self._deadline(timeout))
        if self._metrics is not None:
            self._metrics.count(self.target.model, answer)
        return answer

    def all_exits(self, images: Any, timeout: float | None) -> Steps[AllExits]:
        """See `EarlyExitClient.all_exits`."""

        def fit(signature: Signature) -> dict[str, np.ndarray]:
            return self._checked_batch(images, signature)[0]

        with self._watch("all_exits"):
            question = _Question(messages.ALL_EXITS, fit, messages.read_all_exits)
            return (yield from self._answer(question, self._deadline(timeout)))

    def describe(
        self, timeout: float | None
    ) -> Steps[tuple[dict[str, checks.TensorSpec], int]]:
        """See `EarlyExitClient.describe`."""
        signature = yield from self.signature(timeout)
        return dict(signature.inputs), signature.num_exits

    def signature(self, timeout: float | None) -> Steps[Signature]:
        """See `EarlyExitClient.signature`."""
        with self._watch("describe"):
            return (yield from self._ask_signature(self._deadline(timeout)))

    def wait_until_ready(self, timeout: float) -> Steps[int]:
        """See `EarlyExitClient.wait_until_ready`."""
        with self._watch("wait_until_ready"):
            deadline = self._deadline(timeout)
            request = messages.status_request(self.target)
            while True:
                soon = min(deadline, time.monotonic() + _STATUS_SECONDS)
                try:
                    if self.target.label is not None:
                        # GetModelStatus ignores labels; GetModelMetadata follows them.
                        return (yield from self._ask_signature(soon)).version
                    (reply,) = yield Send(wire.GET_MODEL_STATUS, [lambda: request], soon)
                    return messages.read_status(self.target, reply)
                except ServerError:
                    if time.monotonic() + _PAUSE_SECONDS >= deadline:
                        raise
                yield Pause(_PAUSE_SECONDS)

    def _checked_batch(
        self, images: Any, signature: Signature
    ) -> tuple[dict[str, np.ndarray], int]:
        arrays, rows = checks.batch(images, signature.inputs)
        warning = ranges.check(self._inputs, arrays)
        if warning is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(warning, stacklevel=2)
        return arrays, rows

    def _watch(self, method: str) -> contextlib.AbstractContextManager[None]:
        if self._metrics is None:
            return contextlib.nullcontext()
        return self._metrics.watch(self.target.model, method)

    def _deadline(self, timeout: float | None) -> float:
        seconds = self._timeout if timeout is None else _checked(timeout)
        return time.monotonic() + seconds

    def _ask_signature(
        self, deadline: float, version: int | None = None
    ) -> Steps[Signature]:
        request = messages.metadata_request(self.target, version)
        (reply,) = yield Send(wire.GET_MODEL_METADATA, [lambda: request], deadline)
        self._signature = messages.read_signature(self.target, reply)
        return self._signature

    def _answer(self, question: _Question, deadline: float) -> Steps[Any]:
        """Asks with the known signature; if that fails, with the current one."""
        known = self._signature or (yield from self._ask_signature(deadline))
        problem: BranchyError | ServerError
        try:
            return (yield from self._ask(question, known, deadline))
        except BranchyError as error:
            problem = error
        except ServerError as error:
            # The server may have changed.
            self._signature = None
            if error.code not in _STALE:
                raise
            problem = error
        fresh = yield from self._ask_signature(deadline)
        if fresh == known:
            raise problem
        return (yield from self._ask(question, fresh, deadline))

    def _ask(
        self, question: _Question, signature: Signature, deadline: float
    ) -> Steps[Any]:
        """Sends a batch in parts and joins their answers, all from one version.

        The parts first name no version, so the newest answers. If it changes in between,
        parts that an older version answered are sent again to the newest; if that
        version has gone by then, all parts are.
        """
        target = self.target
        parts = self._split(question, signature)
        replies: list[Any] = [None] * len(parts)
        pinned = None
        for _ in range(_ROUNDS):
            missing = [i for i, reply in enumerate(replies) if reply is None]
            requests = [
                _Request(target, question.signature, pinned, parts[i]) for i in missing
            ]
            try:
                answers = yield Send(wire.PREDICT, requests, deadline)
                for i, data in zip(missing, answers, strict=True):
                    replies[i] = target.parse(wire.PredictResponse, data)
                newest = max(map(_version, replies))
                for wanted in (pinned, target.version):
                    if wanted is not None and newest != wanted:
                        raise target.unexpected(f"version {newest}, not {wanted}")
                pinned = newest
                if newest != signature.version:
                    before = signature
                    signature = yield from self._ask_signature(deadline, newest)
                    if dataclasses.replace(before, version=newest) != signature:
                        # Another model: the answers so far do not count.
                        parts = self._split(question, signature)
                        replies = [None] * len(parts)
            except ServerError as error:
                if error.code != "NOT_FOUND" or pinned is None:
                    raise
                replies, pinned = [None] * len(parts), None
                continue
            replies = [
                reply if reply is not None and _version(reply) == newest else None
                for reply in replies
            ]
            if None not in replies:
                answers = [
                    question.read(target, reply, _rows(part), signature)
                    for reply, part in zip(replies, parts, strict=True)
                ]
                if len({answer.probabilities.shape[1:] for answer in answers}) > 1:
                    raise target.unexpected("different numbers of classes")
                return _join(answers)
        raise ServerError(
            "ABORTED",
            f"{target.server} changed the version of {target.model} {_ROUNDS} times "
            "during one batch; ask again.",
        )

    def _split(
        self, question: _Question, signature: Signature
    ) -> list[dict[str, np.ndarray]]:
        """Splits the arrays into requests."""
        if question.signature not in signature.names:
            raise BranchyError(
                f"Model {self.target.model!r} on {self.target.server} has no "
                f"{question.signature} signature; it has {', '.join(signature.names)}. "
                "Ask for a model that branchy_tf.export wrote."
            )
        arrays = question.fit(signature)
        rows = _rows(arrays)
        if not rows:
            raise BranchyError(
                "The batch is empty; expected at least one row. Make no call "
                "without images: some servers hang on an empty batch."
            )
        bytes_of_row = sum(array.nbytes for array in arrays.values()) // rows or 1
        size = self._max_rows or min(_ROWS, max(1, _BYTES // bytes_of_row))
        size = min(size, rows)
        if size * bytes_of_row > wire.MOST_BYTES:
            raise BranchyError(
                f"{size} rows have {size * bytes_of_row:,} bytes; a request holds "
                f"at most {wire.MOST_BYTES:,}. Pass a smaller `max_rows`."
            )
        return [
            {name: array[i : i + size] for name, array in arrays.items()}
            for i in range(0, rows, size)
        ]


@dataclasses.dataclass(frozen=True)
class _Request:
    """Serialises a request just before it is sent."""

    target: Target
    signature: str
    version: int | None
    arrays: dict[str, np.ndarray]

    def __call__(self) -> bytes:
        return messages.predict_request(
            self.target, self.signature, self.version, self.arrays
        )


def _checked(timeout: Any) -> float:
    # With more seconds gRPC overflows and fails at once.
    return checks.real_number(
        "timeout", timeout, above=0, at_most=_LONGEST, what="number of seconds"
    )


def _rows(arrays: dict[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


def _version(response: Any) -> int:
    return response.model_spec.version.value


def _join(answers: list[Answer]) -> Answer:
    """Concatenates answers in order."""
    if len(answers) == 1:
        return answers[0]
    arrays = [
        field.name
        for field in dataclasses.fields(answers[0])
        if isinstance(getattr(answers[0], field.name), np.ndarray)
    ]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(answer, name) for answer in answers])
        for name in arrays
    }
    return dataclasses.replace(answers[0], **joined)

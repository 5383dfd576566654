"""The exit policy: which rows leave the network where.

Criterion, thresholds and temperatures are one decision, so they travel as one object,
`ExitPolicy`: through calibration, the exported graph, the predictor and the reports.
The rule stands here too, once, for numpy arrays and TensorFlow tensors alike.

Importing this needs numpy alone, so that a client and other runtimes can use it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.results import exit_name

# Names of the scores; `exits.confidence` computes them.
CRITERION_NAMES = ("entropy", "max_prob", "margin")

# The smallest normal float32. TensorFlow reads what is smaller, a denormal number,
# as 0; so a threshold down there would let rows leave in NumPy and none in the graph.
SMALLEST = float(np.finfo(np.float32).tiny)

# The share of all rows that rounding may send to another exit. Scores that crowd
# around a threshold flip one by one; if more do, the policy does not hold.
_MOST_FLIPPED = 0.05


class HasPolicy(Protocol):
    """What brings a policy with it: a `thresholds.Calibration`, for example."""

    @property
    def policy(self) -> ExitPolicy: ...


PolicyLike: TypeAlias = (
    "ExitPolicy | HasPolicy | str | os.PathLike[str] | Sequence[float] | np.ndarray"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitPolicy:
    """Criterion, thresholds and temperatures: who leaves at which exit.

    A row leaves at the first exit n whose score is strictly below thresholds[n-1],
    else at the final one. A row whose score is NaN never leaves early.

    Args:
        criterion: name of the score: entropy, max_prob or margin.
        thresholds: N-1 numbers, in exit order. 0 lets no row leave at that exit,
            infinity all. Numbers below float32's smallest normal number, 1.2e-38, are
            taken as 0, which is how TensorFlow reads them.
        temperatures: N positive numbers that the exits' logits are divided by; None
            stands for 1 each.
        weights: fingerprint of the weights that the policy was calibrated for, "" where
            it is not known. Not part of the decision: equal policies may differ in it.

    Raises:
        BranchyError: a threshold is negative or NaN, there is not one temperature more
            than there are thresholds, or the criterion is unknown.

    Example:

    ```python
    policy = ExitPolicy(thresholds=[0.1, 0.4])
    policy.exit_indices(scores)             # float32 [n, 3] -> int32 [n]
    policy = ExitPolicy.load("runs/lenet/thresholds.json")
    ```
    """

    criterion: str = "entropy"
    thresholds: Sequence[float]
    temperatures: Sequence[float] | None = None
    weights: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        number = _count(self.thresholds) + 1
        limits = check(self.thresholds, number, rows=1)[0]
        # As they were given, not as float32: 0.1 is to be written as 0.1.
        given = np.asarray(self.thresholds, np.float64).ravel()
        thresholds = [
            float(t) if limit else 0.0 for t, limit in zip(given, limits, strict=True)
        ]
        object.__setattr__(self, "thresholds", tuple(thresholds))
        temperatures = check_temperatures(self.temperatures, number)
        object.__setattr__(self, "temperatures", temperatures)

    @classmethod
    def of(cls, given: PolicyLike) -> ExitPolicy:
        """The policy that something stands for.

        Args:
            given: a policy; what has one, such as a `Calibration`; the path of a
                thresholds.json; or plain thresholds, for entropy without temperatures.

        Raises:
            BranchyError: it is none of these.
        """
        if isinstance(given, ExitPolicy):
            return given
        if isinstance(given, (str, os.PathLike)):
            return cls.load(given)
        brought = getattr(given, "policy", None)
        if isinstance(brought, ExitPolicy):
            return brought
        return cls(thresholds=given)  # type: ignore[arg-type]  # numbers, or refused

    @classmethod
    def to_the_end(cls, num_exits: int) -> ExitPolicy:
        """The policy with which every row runs to the final exit."""
        return cls(thresholds=[0.0] * (num_exits - 1))

    @classmethod
    def load(cls, path: files.Path) -> ExitPolicy:
        """Reads a thresholds.json.

        Raises:
            BranchyError: there is no such file, or it holds no valid policy.
        """
        return cls.from_json(files.read_json(path), path)

    def save(self, path: files.Path) -> None:
        """Writes a thresholds.json; of validation and frontier it knows nothing."""
        names = [exit_name(k + 1) for k in range(self.num_exits)]
        files.write_json(
            path, self.to_json() | {"exits": names, "validation": {}, "frontier": []}
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields, as thresholds.json has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any], source: files.Path) -> ExitPolicy:
        """The policy in the content of a thresholds.json.

        Args:
            value: the content.
            source: where it comes from, for error messages.

        Raises:
            BranchyError: it holds no valid policy.
        """
        missing = [name for name in ("criterion", "thresholds") if name not in value]
        if missing:
            raise BranchyError(
                f"{source} lacks {', '.join(missing)}. Calibrate again to replace it."
            )
        known = [field.name for field in dataclasses.fields(cls)]
        try:
            policy = cls(**{name: value[name] for name in known if name in value})
        except BranchyError as error:
            raise BranchyError(f"{source}: {error}") from None
        for given, limit in zip(value["thresholds"], policy.thresholds, strict=True):
            if given and not limit:
                raise BranchyError(
                    f"{source} has the threshold {given:.3g}, which is below float32's "
                    f"smallest normal number, {SMALLEST:.3g}: TensorFlow takes it as 0, "
                    "and no row leaves there. Calibrate again to replace it."
                )
        return policy

    def replace(self, **changes: Any) -> ExitPolicy:
        """A copy with other values of some fields."""
        return dataclasses.replace(self, **changes)

    @property
    def num_exits(self) -> int:
        """N."""
        return len(self.thresholds) + 1

    @property
    def limits(self) -> np.ndarray:
        """The thresholds as the graph takes them: float32 [1, N-1]."""
        return check(self.thresholds, self.num_exits)

    def temperature(self, exit_index: int) -> float:
        """What the logits of an exit, 0-based, are divided by."""
        assert self.temperatures is not None
        return self.temperatures[exit_index]

    def check_exits(self, num_exits: int) -> ExitPolicy:
        """Returns itself if it is for that many exits.

        Raises:
            BranchyError: it is not.
        """
        check(self.thresholds, num_exits, rows=1)
        return self

    def check_weights(
        self, weights: str, source: files.Path = "The policy"
    ) -> ExitPolicy:
        """Returns itself unless it is known to be for other weights.

        Args:
            weights: fingerprint of the model's; "" accepts any.
            source: where the policy comes from, for the error message.

        Raises:
            BranchyError: it is for others.
        """
        if weights and self.weights and weights != self.weights:
            raise BranchyError(
                f"{source} was made for other weights than this model has: scores may "
                "mean something else now. Calibrate this model, or pass --thresholds."
            )
        return self

    def exit_indices(self, scores: np.ndarray) -> np.ndarray:
        """Where each row leaves.

        Args:
            scores: [n, N] float32, of this policy's criterion and temperatures.

        Returns:
            int32 [n], 0-based.
        """
        return exit_indices(scores, self.thresholds)

    def misrouted(
        self, scores: np.ndarray, exits: np.ndarray, within: float
    ) -> np.ndarray:
        """Rows that left elsewhere than their scores say, beyond what rounding explains.

        A row may turn either way where a score on its way is close to its threshold.
        But if more than 5 % of all rows turn, none of them is excused.

        Args:
            scores: [n, N] float32, of every exit.
            exits: int [n], where the routed graph let them leave.
            within: how far rounding may move a score.

        Returns:
            int64 [m], the indices of these rows.
        """
        elsewhere = self.exit_indices(scores) != exits
        if elsewhere.sum() <= max(1, _MOST_FLIPPED * len(elsewhere)):
            elsewhere &= ~near(scores, self.thresholds, within)
        return np.flatnonzero(elsewhere)

    def check_routing(
        self, scores: np.ndarray, exits: np.ndarray, within: float, what: str
    ) -> None:
        """Checks that rows left where their scores say; see `misrouted`.

        Args:
            scores: [n, N] float32, of every exit.
            exits: int [n], where they left.
            within: how far rounding may move a score.
            what: let them leave, for the error message.

        Raises:
            BranchyError: they left elsewhere.
        """
        wrong = self.misrouted(scores, exits, within)
        if len(wrong):
            expected, taken = (
                ", ".join(
                    f"{rate:.1%}"
                    for rate in np.bincount(where, minlength=self.num_exits) / len(exits)
                )
                for where in (self.exit_indices(scores), exits)
            )
            raise BranchyError(
                f"{what} sends {len(wrong):,} of {len(exits):,} rows to another exit "
                f"than their scores, the first of them row {wrong[0]}; rounding does not "
                f"explain it. Exit rates {taken}; expected {expected}. Calibrate again; "
                "if it stays so, the model does not give the same answer twice."
            )


def leaves(scores: Any, thresholds: Any) -> Any:
    """Whether rows with these scores leave: strictly below, never with NaN.

    The one place where scores meet thresholds; it takes numpy arrays and
    TensorFlow tensors alike.

    References:
        "if e < T_n", BranchyNet (2016), Figure 2.
    """
    return scores < thresholds


def flushed(values: Any) -> np.ndarray:
    """The values as TensorFlow reads them: float32, denormal numbers as 0."""
    values = np.asarray(values, np.float32)
    return np.where(np.abs(values) < np.float32(SMALLEST), np.float32(0), values)


def check_scores(scores: Any) -> np.ndarray:
    """Scores as float32 [n, N], denormal numbers as 0.

    Raises:
        BranchyError: no numbers, or of another shape.
    """
    values = checks.real_array("scores", scores)
    if values.ndim != 2 or not values.shape[1]:
        raise BranchyError(
            f"`scores` has shape {values.shape}; expected [n, N], a row for each example "
            "and a column for each exit."
        )
    return flushed(values)


def exit_indices(scores: np.ndarray, thresholds: Any) -> np.ndarray:
    """Where each row leaves.

    Args:
        scores: [n, N] float32.
        thresholds: N-1 numbers, or [n, N-1].

    Returns:
        int32 [n], 0-based; N-1, the last exit, for rows that no earlier one
        lets go.
    """
    scores = check_scores(scores)
    return _first_exits(scores, check(thresholds, scores.shape[1], len(scores)))


def exits_by_vector(scores: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Where each row leaves with each of many vectors, which have been checked.

    Args:
        scores: float32 [n, N].
        vectors: float32 [V, N-1].

    Returns:
        int32 [V, n], as `exit_indices` gives them.
    """
    return _first_exits(flushed(scores), vectors[:, None])


def _first_exits(scores: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Exits int32 [..., n] for scores [n, N] and limits [..., 1 or n, N-1]."""
    last = scores.shape[1] - 1
    exits = np.full((*limits.shape[:-2], len(scores)), last, np.int32)
    for k in reversed(range(last)):
        exits[leaves(scores[:, k], limits[..., k])] = k
    return exits


def near(scores: np.ndarray, thresholds: Any, within: float) -> np.ndarray:
    """Rows whose way hangs on the last digits of a score: bool [n].

    Those that reach an exit, as far as one can tell, and score about its threshold
    there. Another batch size or machine may send them elsewhere.

    Args:
        scores: [n, N] float32.
        thresholds: N-1 numbers. Nothing scores below 0, so that one is never near.
        within: how far off a score may be.
    """
    limits = check(thresholds, scores.shape[1], rows=1)
    early = scores[:, :-1]
    gone = leaves(early, limits - within).cumsum(axis=1) > 0
    return (~gone & (abs(early - limits) <= within) & (limits > 0)).any(axis=1)


def forcing(exit_index: int, num_exits: int) -> np.ndarray:
    """Thresholds with which every row leaves at one exit, 0-based: float32 [N-1]."""
    return np.where(np.arange(num_exits - 1) < exit_index, 0, np.inf).astype(np.float32)


def check(thresholds: Any, num_exits: int, rows: int | None = None) -> np.ndarray:
    """Thresholds as float32, one row of them or one for each example.

    Args:
        thresholds: N-1 numbers, in exit order; or [1 or B, N-1], an own row for
            each example. 0 lets no example leave, infinity all.
        num_exits: N.
        rows: B, where it is known.

    Returns:
        float32 [1, N-1] or [B, N-1]; denormal numbers are 0, as in TensorFlow.

    Raises:
        BranchyError: wrong number, negative, NaN, or not numbers at all.
    """
    expected = (
        f"expected {num_exits - 1}, one for each exit but the last"
        if num_exits != 2
        else "expected 1, for exit_1"
    )
    try:
        values = np.asarray(checks.real_array("thresholds", thresholds), np.float32)
    except BranchyError:
        raise BranchyError(
            f"`thresholds` must be numbers; {expected}. Received "
            f"{checks.shown(thresholds)}."
        ) from None
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != num_exits - 1:
        raise BranchyError(
            f"`thresholds` has shape {np.shape(thresholds)}; {expected}, or a row of "
            f"that many for each example. Received {checks.shown(thresholds)}."
        )
    if rows is not None and values.shape[0] not in (1, rows):
        raise BranchyError(
            f"`thresholds` has {values.shape[0]} rows for {rows} examples; expected 1 "
            "row or one for each."
        )
    bad = values[~(values >= 0)]
    if bad.size:
        raise BranchyError(
            f"`thresholds` must be at least 0 and not NaN; received {bad.flat[0]}. 0 "
            "lets no example leave at that exit, inf lets all."
        )
    return flushed(values)


def check_temperatures(temperatures: Any, num_exits: int) -> tuple[float, ...]:
    """One positive number for each exit; None stands for 1 everywhere.

    Raises:
        BranchyError: another number of them, or not positive numbers.
    """
    if temperatures is None:
        return (1.0,) * num_exits
    try:
        values = checks.real_array("temperatures", temperatures).astype(np.float64)
    except BranchyError:
        values = np.zeros(0)
    # In float32, a smaller one would be 0.
    fit = all(SMALLEST <= t <= np.finfo(np.float32).max for t in values.ravel())
    if values.shape != (num_exits,) or not fit:
        raise BranchyError(
            f"`temperatures` must be {num_exits} positive numbers, one for each exit. "
            f"Received {checks.shown(temperatures)}."
        )
    return tuple(values.tolist())


def check_criterion(criterion: str) -> str:
    """Returns `criterion` if it is known.

    Raises:
        BranchyError: it is not.
    """
    return checks.one_of("criterion", criterion, CRITERION_NAMES)


def _count(thresholds: Any) -> int:
    """How many thresholds there are; 1 where it is not even a list."""
    try:
        shape = np.shape(thresholds)
    except ValueError:
        return 1
    return shape[-1] if shape else 1

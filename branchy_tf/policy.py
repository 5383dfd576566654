"""The exit policy: which rows exit the network where.

Criterion, thresholds and temperatures are one decision, so they travel as one object,
`ExitPolicy`: through calibration, the exported graph, the predictor and the reports.
The rule itself is defined here once, for NumPy arrays and TensorFlow tensors alike.

This module needs only NumPy, so that a client and other runtimes can import it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from branchy_tf import checks, files
from branchy_tf.checks import ranges
from branchy_tf.errors import BranchyError
from branchy_tf.results import exit_name

# The names of the scores; `exits.confidence` computes them.
CRITERION_NAMES = ("entropy", "max_prob", "margin")

# The smallest normal float32. TensorFlow treats smaller (denormal) numbers as 0, so
# with such a threshold rows would exit early in NumPy but not in the graph.
SMALLEST = float(np.finfo(np.float32).tiny)

# The share of all rows that rounding may send to another exit. If more rows change
# their exit, the cause is not rounding.
_MOST_FLIPPED = 0.05

# The fields of a policy in a thresholds.json.
FILE_KINDS: checks.Kinds = {
    "criterion": ("a string", checks.is_text),
    "thresholds": ("a list of numbers", checks.is_numbers),
    "temperatures": ("a list of numbers", checks.is_numbers),
    "weights": ("a string", checks.is_text),
    "inputs": (
        "an object or null",
        lambda value: value is None or checks.is_object(value),
    ),
}


# What tells the ranges of a model's inputs: themselves, something with a policy, or
# a file with `inputs`: branchy.json, thresholds.json or data.json.
InputsLike: TypeAlias = (
    "Mapping[str, ranges.InputRange] | ExitPolicy | HasPolicy | str | os.PathLike[str]"
)


class HasPolicy(Protocol):
    """An object with a policy, such as a `thresholds.Calibration`."""

    @property
    def policy(self) -> ExitPolicy: ...


PolicyLike: TypeAlias = (
    "ExitPolicy | HasPolicy | str | os.PathLike[str] | Sequence[float] | np.ndarray"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitPolicy:
    """Criterion, thresholds and temperatures: which rows exit where.

    A row takes the first exit n whose score is strictly below thresholds[n-1],
    otherwise the final exit. A row whose score is NaN never exits early.

    Args:
        criterion: the name of the score: entropy, max_prob or margin.
        thresholds: N-1 numbers, in exit order. With 0 no row takes that exit, with
            infinity every row does. Numbers below float32's smallest normal number,
            1.2e-38, count as 0, as in TensorFlow.
        temperatures: N positive numbers; the logits of each exit are divided by its
            temperature. None means 1 for every exit.
        weights: the fingerprint of the weights that the policy was calibrated for, or
            "" if unknown. Equality ignores it.
        inputs: the range of each input that these weights were trained on, by name, or
            None if unknown. Predictor, export and client compare batches with it.
            Equality ignores it.

    Raises:
        BranchyError: a threshold is negative or NaN, the number of temperatures is not
            one more than that of thresholds, or the criterion is unknown.

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
    inputs: Mapping[str, ranges.InputRange] | None = dataclasses.field(
        default=None, compare=False
    )

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        number = _count(self.thresholds) + 1
        limits = check(self.thresholds, number, rows=1)[0]
        # Keep the values as given instead of as float32, so that 0.1 is written as 0.1.
        given = np.asarray(self.thresholds, np.float64).ravel()
        thresholds = [
            float(t) if limit else 0.0 for t, limit in zip(given, limits, strict=True)
        ]
        object.__setattr__(self, "thresholds", tuple(thresholds))
        temperatures = check_temperatures(self.temperatures, number)
        object.__setattr__(self, "temperatures", temperatures)

    @classmethod
    def of(cls, given: PolicyLike) -> ExitPolicy:
        """Converts to a policy.

        Args:
            given: a policy; an object with a `policy`, such as a `Calibration`; the
                path of a thresholds.json; or plain thresholds, which get entropy and no
                temperatures.

        Raises:
            BranchyError: `given` is none of these.
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
    def final_exit_only(cls, num_exits: int) -> ExitPolicy:
        """The policy with which every row runs to the final exit.

        Args:
            num_exits: N.
        """
        return cls(thresholds=[0.0] * (num_exits - 1))

    @classmethod
    def load(cls, path: files.Path) -> ExitPolicy:
        """Reads a thresholds.json.

        Raises:
            BranchyError: the file is missing or holds no valid policy.
        """
        if files.path(path).is_dir():
            raise BranchyError(
                f"{path} is a folder; expected a file such as "
                f"{files.path(path) / 'thresholds.json'}."
            )
        return cls.from_json(files.read_json(path), path)

    def save(self, path: files.Path) -> None:
        """Writes a thresholds.json with empty `validation` and `frontier`."""
        names = [exit_name(k + 1) for k in range(self.num_exits)]
        files.write_json(
            path, self.to_json() | {"exits": names, "validation": {}, "frontier": []}
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as thresholds.json stores them."""
        value = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        if self.inputs is not None:
            value["inputs"] = {n: known.to_json() for n, known in self.inputs.items()}
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any], source: files.Path) -> ExitPolicy:
        """Reads the policy from the content of a thresholds.json.

        Args:
            value: the content.
            source: the origin of the content, for error messages.

        Raises:
            BranchyError: the content holds no valid policy.
        """
        missing = [name for name in ("criterion", "thresholds") if name not in value]
        if missing:
            raise BranchyError(
                f"{source} lacks {', '.join(missing)}. Calibrate again to replace it."
            )
        checks.check_kinds(source, value, FILE_KINDS)
        known = [field.name for field in dataclasses.fields(cls)]
        fields = {name: value[name] for name in known if name in value}
        fields["inputs"] = ranges.ranges_from_json(value.get("inputs"), source)
        try:
            policy = cls(**fields)
        except BranchyError as error:
            raise BranchyError(f"{source}: {error}") from None
        for given, limit in zip(value["thresholds"], policy.thresholds, strict=True):
            if given and not limit:
                raise BranchyError(
                    f"{source} has the threshold {given:.3g}, which is below float32's "
                    f"smallest normal number, {SMALLEST:.3g}: TensorFlow treats it as 0, "
                    "so no row would exit there. Calibrate again to replace it."
                )
        return policy

    def replace(self, **changes: Any) -> ExitPolicy:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def num_exits(self) -> int:
        """N, the final exit included."""
        return len(self.thresholds) + 1

    @property
    def limits(self) -> np.ndarray:
        """The thresholds as the graph expects them: float32 [1, N-1]."""
        return check(self.thresholds, self.num_exits)

    def temperature(self, exit_index: int) -> float:
        """The temperature of an exit, 0-based."""
        assert self.temperatures is not None
        return self.temperatures[exit_index]

    def check_exits(self, num_exits: int) -> ExitPolicy:
        """Returns the policy if it is for a model with `num_exits` exits.

        Raises:
            BranchyError: the policy is for another number of exits.
        """
        check(self.thresholds, num_exits, rows=1)
        return self

    def check_weights(
        self, weights: str, source: files.Path = "The policy"
    ) -> ExitPolicy:
        """Returns the policy unless it was calibrated for other weights.

        Args:
            weights: the fingerprint of the model's weights; "" accepts any policy.
            source: the origin of the policy, for the error message.

        Raises:
            BranchyError: the policy was calibrated for other weights.
        """
        if weights and self.weights and weights != self.weights:
            raise BranchyError(
                f"{source} was made for other weights than this model has, so its "
                "thresholds may not fit. Calibrate this model, or pass thresholds."
            )
        return self

    def exit_indices(self, scores: np.ndarray) -> np.ndarray:
        """The exit that each row takes.

        Args:
            scores: float32 [n, N], by this policy's criterion and temperatures.

        Returns:
            int32 [n], 0-based.
        """
        return exit_indices(scores, self.thresholds)

    def misrouted(
        self, scores: np.ndarray, exits: np.ndarray, within: float
    ) -> np.ndarray:
        """Finds rows whose exit contradicts their scores by more than rounding.

        A row with a score close to a threshold may take either exit. If more than 5 %
        of the rows take another exit, though, all of these count as misrouted.

        Args:
            scores: float32 [n, N], of every exit.
            exits: int [n], the exits that the routed graph took.
            within: how far rounding may move a score.

        Returns:
            int64 [m], the indices of the misrouted rows.
        """
        elsewhere = self.exit_indices(scores) != exits
        if elsewhere.sum() <= max(1, _MOST_FLIPPED * len(elsewhere)):
            elsewhere &= ~within_tolerance(scores, self.thresholds, within)
        return np.flatnonzero(elsewhere)

    def check_routing(
        self, scores: np.ndarray, exits: np.ndarray, within: float, what: str
    ) -> None:
        """Checks that the rows took the exits that their scores imply.

        Args:
            scores: float32 [n, N], of every exit.
            exits: int [n], the exits taken.
            within: how far rounding may move a score.
            what: what routed the rows, for the error message.

        Raises:
            BranchyError: some rows were misrouted; see `misrouted`.
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
                "if the error remains, the model's answers are not reproducible."
            )


def trained_inputs(given: InputsLike | None) -> Mapping[str, ranges.InputRange] | None:
    """The ranges that a model was trained on, by input name; None if unknown.

    Args:
        given: the ranges; a policy, or an object with one; or the path of a
            branchy.json, a thresholds.json, a data.json, or of an exported version.

    Raises:
        BranchyError: it is none of these.
    """
    if isinstance(given, (str, os.PathLike)):
        path = files.path(given)
        if path.is_dir():
            path = path / "assets.extra" / "branchy.json"
        return ranges.ranges_from_json(files.read_json(path).get("inputs"), path)
    brought = getattr(given, "policy", given)
    if isinstance(brought, ExitPolicy):
        return brought.inputs
    if given is None or (
        isinstance(given, Mapping)
        and all(isinstance(known, ranges.InputRange) for known in given.values())
    ):
        return given
    raise BranchyError(
        "`inputs` must be a policy, or the path of a branchy.json or thresholds.json. "
        f"Received {checks.shown(given)}."
    )


def exits_early(scores: Any, thresholds: Any) -> Any:
    """Whether rows exit early: their score is strictly below the threshold.

    A NaN score or threshold gives False. Takes NumPy arrays and TensorFlow tensors
    alike; all code that compares scores with thresholds calls this function.

    References:
        "if e < T_n", BranchyNet (2016), Figure 2.
    """
    return scores < thresholds


def flushed(values: Any) -> np.ndarray:
    """The values as float32 with denormal numbers flushed to 0, as in TensorFlow."""
    values = np.asarray(values, np.float32)
    return np.where(np.abs(values) < np.float32(SMALLEST), np.float32(0), values)


def check_scores(scores: Any) -> np.ndarray:
    """Scores as float32 [n, N] with denormal numbers flushed to 0.

    Raises:
        BranchyError: the scores are not numbers or have another shape.
    """
    values = checks.real_array("scores", scores)
    if values.ndim != 2 or not values.shape[1]:
        raise BranchyError(
            f"`scores` has shape {values.shape}; expected [n, N], one row per example "
            "and one column per exit."
        )
    return flushed(values)


def exit_indices(scores: np.ndarray, thresholds: Any) -> np.ndarray:
    """The exit that each row takes.

    Args:
        scores: float32 [n, N].
        thresholds: N-1 numbers, or [n, N-1].

    Returns:
        int32 [n], 0-based; N-1, the final exit, for rows that take no earlier one.
    """
    scores = check_scores(scores)
    return _first_exits(scores, check(thresholds, scores.shape[1], len(scores)))


def exits_by_vector(scores: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The exit that each row takes under each of many threshold vectors.

    Args:
        scores: float32 [n, N].
        vectors: float32 [V, N-1], already checked.

    Returns:
        int32 [V, n], 0-based.
    """
    return _first_exits(flushed(scores), vectors[:, None])


def _first_exits(scores: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Exit indices int32 [..., n] for scores [n, N] and limits [..., 1 or n, N-1]."""
    last = scores.shape[1] - 1
    exits = np.full((*limits.shape[:-2], len(scores)), last, np.int32)
    for k in reversed(range(last)):
        exits[exits_early(scores[:, k], limits[..., k])] = k
    return exits


def within_tolerance(scores: np.ndarray, thresholds: Any, within: float) -> np.ndarray:
    """Rows whose exit depends on the last digits of a score: bool [n].

    These rows may reach an exit and score within `within` of its threshold there.
    Another batch size or machine may send them to another exit.

    Args:
        scores: float32 [n, N].
        thresholds: N-1 numbers. A threshold of 0 is ignored: no score is below it.
        within: the largest difference between score and threshold.
    """
    limits = check(thresholds, scores.shape[1], rows=1)
    early = scores[:, :-1]
    exited = exits_early(early, limits - within).cumsum(axis=1) > 0
    return (~exited & (abs(early - limits) <= within) & (limits > 0)).any(axis=1)


def forcing(exit_index: int, num_exits: int) -> np.ndarray:
    """Thresholds that send every row to one exit, 0-based: float32 [N-1]."""
    return np.where(np.arange(num_exits - 1) < exit_index, 0, np.inf).astype(np.float32)


def check(thresholds: Any, num_exits: int, rows: int | None = None) -> np.ndarray:
    """Checks thresholds and returns them as float32.

    Args:
        thresholds: N-1 numbers, in exit order; or [1 or B, N-1], one row per example.
        num_exits: N.
        rows: B, if known.

    Returns:
        float32 [1, N-1] or [B, N-1]; denormal numbers are 0, as in TensorFlow.

    Raises:
        BranchyError: the thresholds have a wrong shape, are negative or NaN, or are
            not numbers.
    """
    expected = (
        f"expected {num_exits - 1}, one for each exit but the final one"
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
            f"`thresholds` has shape {np.shape(thresholds)}; {expected}, or such a row "
            f"for each example. Received {checks.shown(thresholds)}."
        )
    if rows is not None and values.shape[0] not in (1, rows):
        raise BranchyError(
            f"`thresholds` has {values.shape[0]} rows for {rows} examples; expected 1 "
            "row, or one row per example."
        )
    bad = values[~(values >= 0)]
    if bad.size:
        raise BranchyError(
            f"`thresholds` must be at least 0 and not NaN; received {bad.flat[0]}. With "
            "0 no example takes that exit, with inf every example does."
        )
    return flushed(values)


def check_temperatures(temperatures: Any, num_exits: int) -> tuple[float, ...]:
    """Checks one positive temperature per exit; None means 1 for every exit.

    Raises:
        BranchyError: the temperatures are not N positive numbers.
    """
    if temperatures is None:
        return (1.0,) * num_exits
    try:
        values = checks.real_array("temperatures", temperatures).astype(np.float64)
    except BranchyError:
        values = np.zeros(0)
    # A smaller temperature would be 0 in float32.
    fit = all(SMALLEST <= t <= np.finfo(np.float32).max for t in values.ravel())
    if values.shape != (num_exits,) or not fit:
        raise BranchyError(
            f"`temperatures` must be {num_exits} positive numbers, one per exit. "
            f"Received {checks.shown(temperatures)}."
        )
    return tuple(values.tolist())


def check_criterion(criterion: str) -> str:
    """Returns `criterion`, or raises `BranchyError` if it is unknown."""
    return checks.one_of("criterion", criterion, CRITERION_NAMES)


def _count(thresholds: Any) -> int:
    """The number of thresholds; 1 if `thresholds` has no shape."""
    try:
        shape = np.shape(thresholds)
    except ValueError:
        return 1
    return shape[-1] if shape else 1

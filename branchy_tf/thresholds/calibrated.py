"""The content of thresholds.json, and the fit of temperatures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.policy import FILE_KINDS, ExitPolicy, check

# Without a lower limit, an exit without errors would get the temperature 0.
TEMPERATURES = (0.05, 20.0)
_REQUIRED = ("criterion", "exits", "thresholds", "validation", "frontier")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The content of a thresholds.json.

    Attributes:
        policy: the criterion, thresholds, temperatures and weights fingerprint.
        exits: the names of all N exits.
        validation: the policy's figures on the validation split.
        frontier: `[{"thresholds", "accuracy", "macs"}, ...]` in order of increasing
            cost, for the policy's criterion and temperatures.
        budget: the requested budget, by the names of calibrate's flags.
        guarantee: the guarantee of the policy, or None.
    """

    policy: ExitPolicy
    exits: Sequence[str]
    validation: dict[str, Any]
    frontier: Sequence[dict[str, Any]]
    budget: dict[str, Any] = dataclasses.field(default_factory=dict)
    guarantee: dict[str, Any] | None = None

    @property
    def criterion(self) -> str:
        """The policy's criterion."""
        return self.policy.criterion

    @property
    def thresholds(self) -> Sequence[float]:
        """The policy's N-1 thresholds. Pass on the policy rather than these alone."""
        return self.policy.thresholds

    @property
    def temperatures(self) -> Sequence[float] | None:
        """The policy's N temperatures."""
        return self.policy.temperatures

    def write(self, path: files.Path) -> None:
        """Writes the file, infinity as the string "inf"."""
        policy = self.policy.to_json()
        files.write_json(
            path,
            {
                "criterion": policy.pop("criterion"),
                "exits": self.exits,
                "thresholds": policy.pop("thresholds"),
                "validation": self.validation,
                "frontier": self.frontier,
                "temperatures": policy.pop("temperatures"),
                "budget": self.budget,
                "guarantee": self.guarantee,
                **policy,
            },
        )

    @classmethod
    def read(
        cls, path: files.Path, exits: Sequence[str], weights: str = ""
    ) -> Calibration:
        """Reads the file for a model with these exits.

        Args:
            path: a thresholds.json.
            exits: the names of all N exits of the model.
            weights: the fingerprint of its weights; "" accepts any.

        Raises:
            BranchyError: the file is missing, incomplete or for another model.
        """
        path = files.path(path)
        if path.is_dir():
            raise BranchyError(
                f"{path} is a folder; expected a file such as {path / 'thresholds.json'}."
            )
        if not path.is_file():
            raise BranchyError(
                f"There are no thresholds: {path} is missing. Calibrate the model first, "
                "or pass thresholds."
            )
        value = files.read_json(path)
        missing = [name for name in _REQUIRED if name not in value]
        if missing:
            raise BranchyError(
                f"{path} lacks {', '.join(missing)}. Calibrate again to replace it."
            )
        checks.check_kinds(path, value, _KINDS)
        if value["exits"] != list(exits):
            others = ", ".join(value["exits"])
            raise BranchyError(
                f"{path} is for a model with exits {others}; this one has "
                f"{', '.join(exits)}. Calibrate this model."
            )
        try:
            check(value["thresholds"], len(exits), rows=1)
        except BranchyError as error:
            raise BranchyError(f"{path}: {error} Calibrate again.") from None
        policy = ExitPolicy.from_json(value, path)
        policy.check_weights(weights, path)
        optional = {
            name: value[name] for name in ("budget", "guarantee") if name in value
        }
        return cls(
            policy, value["exits"], value["validation"], value["frontier"], **optional
        )


def _points(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, dict)
        and checks.is_numbers(point.get("thresholds"))
        and checks.is_numbers([point.get("accuracy"), point.get("macs")])
        for point in value
    )


_KINDS: checks.Kinds = {
    **FILE_KINDS,
    "exits": (
        "a list of strings",
        lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value),
    ),
    "validation": ("an object", checks.is_object),
    "frontier": ("a list of objects with thresholds, accuracy and macs", _points),
    "budget": ("an object", checks.is_object),
    "guarantee": (
        "an object or null",
        lambda value: value is None or checks.is_object(value),
    ),
}


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature T that maximises the likelihood of softmax(logits / T).

    Args:
        logits: [n, classes], any float dtype.
        labels: [n], class indices.

    Returns:
        A number from 0.05 to 20; above 1 for an overconfident exit. Rows whose label
        has no finite logit do not count; without any other rows the result is 1.

    Raises:
        BranchyError: there are no rows, or the shapes do not match.

    References:
        Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks
        (ICML 2017, arXiv 1706.04599), section 4.2.
    """
    # Not at the top: a serving client imports this package without SciPy.
    from scipy import optimize

    logits = checks.real_array("logits", logits).astype(np.float64, copy=False)
    labels = checks.real_array("labels", labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise BranchyError(
            "Expected logits [n, classes] and labels [n] with at least one row. Received "
            f"{logits.shape} and {labels.shape}."
        )
    if labels.dtype.kind == "f" or not 0 <= labels.min() <= labels.max() < len(logits[0]):
        raise BranchyError(
            f"`labels` must be class indices from 0 to {len(logits[0]) - 1}. Received "
            f"{checks.shown(labels)}."
        )

    largest = logits.max(axis=1)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    # A label that is masked out (-inf) is impossible at every temperature.
    possible = np.isfinite(own) & np.isfinite(largest)
    if not possible.any():
        return 1.0
    # The shift is done once. SciPy's logsumexp would repeat it at each temperature,
    # which takes ten times as long, and more memory, with thousands of classes.
    shifted = logits[possible] - largest[possible, None]
    own = own[possible] - largest[possible]

    def cross_entropy(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        scaled = shifted / temperature
        np.exp(scaled, out=scaled)
        return float((np.log(scaled.sum(axis=1)) - own / temperature).mean())

    bounds = tuple(math.log(limit) for limit in TEMPERATURES)
    return math.exp(optimize.minimize_scalar(cross_entropy, bounds=bounds).x)

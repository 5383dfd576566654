"""thresholds.json: calibrated thresholds and what they do."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.thresholds.rule import check
from branchy_tf.thresholds.temperature import check_temperatures


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The content of a thresholds.json.

    Attributes:
        criterion: of the scores, e.g. "entropy".
        exits: names of all N exits.
        thresholds: N-1 numbers.
        validation: what the thresholds do on the validation split.
        frontier: `[{"thresholds", "accuracy", "macs"}, ...]`, rising cost.
        temperatures: N numbers that the exits' logits are divided by; 1 each in a
            file that has none.
        budget: what was asked for, by the names of calibrate's flags.
        guarantee: what is promised of the thresholds, or None.
        weights: fingerprint of the model's weights, "" where it is not known.
    """

    criterion: str
    exits: Sequence[str]
    thresholds: Sequence[float]
    validation: dict[str, Any]
    frontier: Sequence[dict[str, Any]]
    temperatures: Sequence[float] = ()
    budget: dict[str, Any] = dataclasses.field(default_factory=dict)
    guarantee: dict[str, Any] | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.temperatures:
            object.__setattr__(self, "temperatures", [1.0] * len(self.exits))

    def write(self, path: files.Path) -> None:
        """Writes the file; infinity becomes the string "inf"."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(
        cls, path: files.Path, exits: Sequence[str], weights: str = ""
    ) -> Calibration:
        """Reads the file for a model with these exits.

        Args:
            path: of the file.
            exits: names of all N exits of the model.
            weights: fingerprint of its weights; "" accepts any.

        Raises:
            BranchyError: no file, an incomplete one, or one of another model.
        """
        path = files.path(path)
        if not path.is_file():
            raise BranchyError(
                f"There are no thresholds: {path} is missing. Run python -m "
                "branchy_tf.calibrate with the same --run_dir, or pass --thresholds."
            )
        value = files.read_json(path)
        missing = [name for name in _REQUIRED if name not in value]
        if missing:
            raise BranchyError(
                f"{path} lacks {', '.join(missing)}. Calibrate again to replace it."
            )
        _check_kinds(path, value)
        if value["exits"] != list(exits):
            others = ", ".join(value["exits"])
            raise BranchyError(
                f"{path} is for a model with exits {others}; this one has "
                f"{', '.join(exits)}. Calibrate this model."
            )
        known = value.get("weights", "")
        if weights and known and weights != known:
            raise BranchyError(
                f"{path} was made for other weights than this model has: scores may "
                "mean something else now. Calibrate this model, or pass --thresholds."
            )
        try:
            check(value["thresholds"], len(exits))
            if "temperatures" in value:
                check_temperatures(value["temperatures"], len(exits))
        except BranchyError as error:
            raise BranchyError(f"{path}: {error} Calibrate again.") from None
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: value[name] for name in fields if name in value})


_REQUIRED = [
    field.name
    for field in dataclasses.fields(Calibration)
    if field.default is field.default_factory is dataclasses.MISSING
]


def _numbers(value: Any) -> bool:
    # True and False are ints in Python, and no number in a file.
    return isinstance(value, list) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
    )


def _points(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, dict)
        and _numbers(point.get("thresholds"))
        and _numbers([point.get("accuracy"), point.get("macs")])
        for point in value
    )


# `{field: (what it must be, whether a value is)}`.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "criterion": ("a string", lambda value: isinstance(value, str)),
    "exits": (
        "a list of strings",
        lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value),
    ),
    "thresholds": ("a list of numbers", _numbers),
    "validation": ("an object", lambda value: isinstance(value, dict)),
    "frontier": ("a list of objects with thresholds, accuracy and macs", _points),
    "temperatures": ("a list of numbers", _numbers),
    "budget": ("an object", lambda value: isinstance(value, dict)),
    "guarantee": (
        "an object or null",
        lambda value: value is None or isinstance(value, dict),
    ),
    "weights": ("a string", lambda value: isinstance(value, str)),
}


def _check_kinds(path: pathlib.Path, value: dict[str, Any]) -> None:
    for name, (expected, is_one) in _KINDS.items():
        if name in value and not is_one(value[name]):
            shown = " ".join(repr(value[name]).split())
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise BranchyError(
                f"{path}: {name} is {shown}; expected {expected}. Calibrate again to "
                "replace the file."
            )

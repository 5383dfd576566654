"""thresholds.json: calibrated thresholds and what they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
        if value["exits"] != list(exits):
            others = value["exits"]
            if isinstance(others, list):
                others = ", ".join(map(str, others))
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
        check(value["thresholds"], len(exits))
        if "temperatures" in value:
            check_temperatures(value["temperatures"], len(exits))
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: value[name] for name in fields if name in value})


_REQUIRED = [
    field.name
    for field in dataclasses.fields(Calibration)
    if field.default is field.default_factory is dataclasses.MISSING
]

"""thresholds.json: calibrated thresholds and what they do."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.thresholds.rule import check


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The content of a thresholds.json.

    Attributes:
        criterion: of the scores, e.g. "entropy".
        exits: names of all N exits.
        thresholds: N-1 numbers.
        validation: what the thresholds do on the validation split.
        frontier: `[{"thresholds", "accuracy", "macs"}, ...]`, rising cost.
    """

    criterion: str
    exits: Sequence[str]
    thresholds: Sequence[float]
    validation: dict[str, Any]
    frontier: Sequence[dict[str, Any]]

    def write(self, path: files.Path) -> None:
        """Writes the file; infinity becomes the string "inf"."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: files.Path, exits: Sequence[str]) -> Calibration:
        """Reads the file for a model with these exits.

        Raises:
            BranchyError: no file, an incomplete one, or one of another model.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise BranchyError(
                f"There are no thresholds: {path} is missing. Run python -m "
                "branchy_tf.calibrate with the same --run_dir, or pass --thresholds."
            )
        value = files.read_json(path)
        fields = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in fields if name not in value]
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
        check(value["thresholds"], len(exits))
        return cls(**{name: value[name] for name in fields})

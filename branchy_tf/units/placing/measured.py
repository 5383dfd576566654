"""What units cost, read from the units themselves. Imports no TensorFlow for exports."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from branchy_tf import files
from branchy_tf.errors import BranchyError
from branchy_tf.units import configs
from branchy_tf.units.placing.topology import UnitCosts

if TYPE_CHECKING:
    from branchy_tf.units.cutting import Unit

_MB = 1e6
# A number of a feature in the codec uint8, and what each channel of a row adds.
_CHANNEL_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Measured:
    """Units and the chains that they form.

    Attributes:
        units: by name.
        chains: the names of the units of each cascade, in order.
    """

    units: Mapping[str, UnitCosts] = dataclasses.field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def of(units: Iterable[Unit] | files.Path | None) -> Measured:
    """The costs of units.

    Args:
        units: from `units.cut`; or a folder that `cascade export` wrote; None: nothing.

    Raises:
        BranchyError: the folder holds no units.
    """
    if units is None:
        return Measured()
    if isinstance(units, (str, os.PathLike)):
        return _of_folder(files.folder(units))
    return _of_units(list(units))


def _of_folder(folder: pathlib.Path) -> Measured:
    config = configs.load(folder / "cascade.yaml")
    found = {}
    for name in config.units:
        numbers = files.version_folders(folder / name)
        if not numbers:
            raise BranchyError(
                f"{folder / name} holds no version of unit {name!r}; expected a folder "
                "that `cascade export` wrote."
            )
        version = folder / name / str(max(numbers))
        path = version / "assets.extra/branchy.json"
        value = files.read_json(path)
        with files.reading(path, "the branchy.json of a unit"):
            sends_features = bool(value["features"])
            found[name] = UnitCosts(
                name,
                tuple(float(x) for x in value["macs"] or [0] * len(value["exits"])),
                _size(version) / _MB,
                _bytes(value["inputs"]),
                _bytes(value["features"]) if sends_features else 0.0,
            )
    return Measured(found, config.chains)


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bytes(specs: Mapping[str, Mapping[str, Any]]) -> float:
    """Bytes of one row of all tensors."""
    return float(
        sum(
            math.prod(spec["shape"][1:]) * np.dtype(spec["dtype"]).itemsize
            for name, spec in specs.items()
            if name != "thresholds"
        )
    )


def _of_units(units: list[Unit]) -> Measured:
    found = {}
    for unit in units:
        tensors = unit.model.inputs
        # The zoo's images travel as bytes, and features in the codec uint8.
        into = sum(
            _encoded(x) if unit.takes == "features" else math.prod(x.shape[1:])
            for x in tensors
        )
        found[unit.name] = UnitCosts(
            unit.name,
            tuple(map(float, unit.macs)),
            sum(math.prod(w.shape) for w in unit.model.weights) * 4 / _MB,
            float(into),
            float(sum(_encoded(x) for x in unit.carried)),
        )
    names = {unit.name: unit.next for unit in units}
    entries = [name for name in names if name not in names.values()]
    chains = {}
    for entry in entries:
        chain: list[str] = []
        name: str | None = entry
        while name is not None and name in names and name not in chain:
            chain.append(name)
            name = names[name]
        chains[entry] = tuple(chain)
    return Measured(found, chains)


def _encoded(tensor: Any) -> int:
    return math.prod(tensor.shape[1:]) + _CHANNEL_BYTES * tensor.shape[-1]

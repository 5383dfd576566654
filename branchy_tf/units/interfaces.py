"""What units take and send, read from a served signature, and whether two units fit.

Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf.checks import TensorSpec
from branchy_tf.errors import BranchyError
from branchy_tf.serving import wire

SIGNATURE = "unit"
ONWARD = "onward"
THRESHOLDS = "thresholds"
# The name of every tensor that travels with a row to the next unit begins so.
FEATURES = "features_"
MADE_FOR = f"{FEATURES}made_for"
ANSWERS = ("probabilities", "exit", "score")


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a unit takes and returns.

    Attributes:
        name: of the unit.
        version: of its servable.
        inputs: by name, without the thresholds.
        sends: the features that it sends, by name; empty if the image is sent again.
        goes_on: whether rows may go on to another unit.
        thresholds: its default thresholds, one for each exit that rows may go on from.
        classes: the number of classes.
    """

    name: str
    version: int
    inputs: Mapping[str, TensorSpec]
    sends: Mapping[str, TensorSpec]
    goes_on: bool
    thresholds: tuple[float, ...]
    classes: int

    @property
    def takes_features(self) -> bool:
        """Whether its inputs are another unit's features."""
        return any(name.startswith(FEATURES) for name in self.inputs)

    @property
    def exits(self) -> int:
        """The number of its exits."""
        return len(self.thresholds) + (not self.goes_on)


def read(name: str, version: int, signatures: Mapping[str, Any]) -> Interface:
    """The interface in the SignatureDefs of a servable.

    Args:
        name: of the unit.
        version: of the servable.
        signatures: `{name: SignatureDef}`.

    Raises:
        BranchyError: the servable is not a unit.
    """
    definition = signatures.get(SIGNATURE)
    needed = {THRESHOLDS, *ANSWERS}
    if definition is None or not needed <= {*definition.inputs, *definition.outputs}:
        raise BranchyError(
            f"Unit {name!r} is served by a model that is no unit: it has the signatures "
            f"{', '.join(sorted(signatures)) or 'none'}; expected {SIGNATURE}. Serve "
            "what `python -m branchy_tf.cascade export` wrote."
        )
    inputs, outputs = _specs(definition.inputs), _specs(definition.outputs)
    count = inputs.pop(THRESHOLDS).shape[1] or 0
    limits = wire.to_array(definition.defaults[THRESHOLDS]).reshape(-1)
    if len(limits) != count:
        raise BranchyError(
            f"Unit {name!r} has {len(limits)} default thresholds for {count} exits. "
            "Export it again."
        )
    return Interface(
        name=name,
        version=version,
        inputs=inputs,
        sends={key: spec for key, spec in outputs.items() if key.startswith(FEATURES)},
        goes_on=ONWARD in outputs,
        thresholds=tuple(limits.tolist()),
        classes=outputs["probabilities"].shape[1] or 0,
    )


def check_chain(chain: Sequence[Interface]) -> None:
    """Checks that units fit each other, one after the other.

    Raises:
        BranchyError: two units do not fit; the message names both.
    """
    for front, later in itertools.pairwise(chain):
        _check_pair(front, later, chain[0])
    for unit in chain[:-1]:
        if not unit.goes_on:
            raise BranchyError(
                f"Unit {unit.name!r} answers every row itself, but names a next unit. "
                "Remove its `next`."
            )
    if chain[-1].goes_on:
        raise BranchyError(
            f"Unit {chain[-1].name!r} sends rows on, but names no next unit. Name it as "
            "`next`."
        )


def _check_pair(front: Interface, later: Interface, entry: Interface) -> None:
    if front.classes != later.classes:
        raise BranchyError(
            f"Unit {front.name!r} has {front.classes} classes, but {later.name!r} has "
            f"{later.classes}. Serve units that were trained for the same classes."
        )
    if later.takes_features:
        sent, sender = front.sends, front.name
    else:
        sent, sender = entry.inputs, f"{entry.name} (its inputs again)"
    differ = sorted(
        name
        for name in {*sent, *later.inputs}
        if str(sent.get(name)) != str(later.inputs.get(name))
    )
    if not differ:
        return
    left, right = _codec(front.sends), _codec(later.inputs)
    if later.takes_features and left != right and front.sends:
        raise BranchyError(
            f"Unit {front.name!r} sends features with the codec {left}, but "
            f"{later.name!r} takes {right}. Export both with the same --codec."
        )
    name = differ[0]
    raise BranchyError(
        f"Units do not fit: {sender} sends {name} as {sent.get(name) or 'nothing'}, but "
        f"{later.name} takes {later.inputs.get(name) or 'nothing'} of that name. Serve "
        "units that were cut from one network."
    )


def _codec(specs: Mapping[str, TensorSpec]) -> str:
    """The codec of features, from their names and dtypes."""
    if any(name.endswith("_step") for name in specs):
        return "uint8"
    if any(np.dtype(spec.dtype) == np.float16 for spec in specs.values()):
        return "float16"
    return "none"


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            tuple(
                None if side < 0 else side for side in wire.shape_of(info.tensor_shape)
            ),
            wire.dtype_of(info.dtype),
        )
        for name, info in sorted(infos.items())
    }

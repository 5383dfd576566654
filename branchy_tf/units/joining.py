"""Joins several fronts to one later unit, as one Keras model to train."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import keras

from branchy_tf import checks, exits
from branchy_tf.errors import BranchyError
from branchy_tf.units.cutting import FEATURES, Unit, feature_name


def join(
    fronts: Mapping[str, Unit], tail: Unit, freeze_tail: bool = False
) -> keras.Model:
    """One model with an input for each front, all of which share the tail.

    The fronts may be unlike each other, as long as their last tensors have the shapes
    that the tail takes. The model shares the layers of the units, so training it trains
    them; export them with `joined`.

    Args:
        fronts: first units by name, from `cut`.
        tail: the unit that takes their features.
        freeze_tail: whether to keep the tail's weights, for new fronts of a tail that is
            already in use. It stays so until `tail.model.trainable = True`.

    Returns:
        A model with the inputs `{front: ...}` and the outputs
        `{"<front>_exit_1": logits, ...}`, counted on each front's own way to the end.

    Raises:
        BranchyError: a front does not fit the tail; the message names both.

    Example:

    ```python
    airport, tail = units.cut(branchy_resnet(depth=20), ["exit_1"])
    road, _ = units.cut(branchy_resnet(depth=20), ["exit_1"])
    model = units.join({"airport": airport, "road": road}, tail)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss={name: loss for name in model.output})
    ```
    """
    *firsts, last = joined(fronts, tail)
    last.model.trainable = not freeze_tail
    inputs, outputs = {}, {}
    for front in firsts:
        inputs[front.name], logits = _through(front.name, [front, last])
        for i, tensor in enumerate(logits):
            outputs[f"{front.name}_{exits.exit_name(i + 1)}"] = tensor
    return keras.Model(inputs, outputs, name=f"joined_{last.name}")


def joined(fronts: Mapping[str, Unit], tail: Unit) -> list[Unit]:
    """The fronts under their names and the tail, ready for `export`.

    Raises:
        BranchyError: as for `join`.
    """
    if not isinstance(fronts, Mapping) or not fronts:
        raise BranchyError(
            "`fronts` must be a dict of units by name, such as {'airport': front}. "
            f"Received {checks.shown(fronts)}."
        )
    if tail.name in fronts:
        raise BranchyError(
            f"A front and the tail are both named {tail.name!r}; give the front another "
            "name."
        )
    if tail.takes != FEATURES:
        raise BranchyError(
            f"The tail {tail.name!r} takes images, which need no front. Cut it with "
            "sends='features'."
        )
    found = []
    for name, front in fronts.items():
        renamed = dataclasses.replace(front, name=name, next=tail.name, sends=FEATURES)
        check_fit(renamed, tail)
        found.append(renamed)
    return [*found, tail]


def as_network(units: Sequence[Unit]) -> keras.Model:
    """The multi-exit network that units make one after the other.

    It serves to calibrate and evaluate the way of one front through a shared tail. It
    shares the layers of the units.

    Args:
        units: the first takes images, the others features.

    Returns:
        A plain `keras.Model` with the outputs `{"exit_1": logits, ..., "exit_N": ...}`.

    Raises:
        BranchyError: two units do not fit.
    """
    for front, following in itertools.pairwise(units):
        check_fit(front, following)
    inputs, logits = _through(units[0].inputs, units)
    outputs = {
        name: keras.layers.Identity(name=name, autocast=False)(tensor)
        for name, tensor in ((exits.exit_name(i + 1), x) for i, x in enumerate(logits))
    }
    return keras.Model(inputs, outputs, name="_".join(unit.name for unit in units))


def check_fit(front: Unit, following: Unit) -> None:
    """Checks that a unit takes what the one before it carries.

    Raises:
        BranchyError: they differ in tensors or classes; the message names both.
    """
    if front.classes != following.classes:
        raise BranchyError(
            f"Unit {front.name!r} has {front.classes} classes, but {following.name!r} "
            f"has {following.classes}. Build both for the same classes."
        )
    sent = [(tuple(t.shape), t.dtype) for t in front.carried]
    taken = [(tuple(t.shape), t.dtype) for t in following.model.inputs]
    if sent != taken:
        raise BranchyError(
            f"Unit {front.name!r} sends {_listed(sent)}, but {following.name!r} takes "
            f"{_listed(taken)}. Cut both from one network, or build the front with the "
            "tensors that the later unit takes."
        )


def _through(name: str | Sequence[str], units: Sequence[Unit]) -> tuple:
    """Symbolic inputs of the first unit, and the logits of all exits on the way."""
    first = units[0].model.inputs
    if isinstance(name, str):
        if len(first) > 1:
            raise BranchyError(
                f"The front {name!r} has {len(first)} inputs; expected one. Join fronts "
                "with a single input each."
            )
        # The unit's model has the name itself.
        name = [f"{name}_input"]
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=key)
        for key, tensor in zip(name, first, strict=True)
    ]
    logits, current = [], inputs
    for unit in units:
        outputs = unit.model(current)
        logits += [outputs[exit] for exit in unit.exits]
        current = [outputs[feature_name(i)] for i in range(len(unit.carried))]
    return inputs[0] if len(inputs) == 1 else inputs, logits


def _listed(tensors: list[tuple[tuple, str]]) -> str:
    return ", ".join(
        f"{dtype} [{', '.join('B' if i == 0 else str(n) for i, n in enumerate(shape))}]"
        for shape, dtype in tensors
    )

"""Joins several fronts to one later unit, as one Keras model to train."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from branchy_tf import checks, exits, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.units.cutting import FEATURES, Unit, feature_name


def join(
    fronts: Mapping[str, Unit], tail: Unit, freeze_tail: bool = False
) -> keras.Model:
    """One model with an input for each front, all of which share the tail.

    The fronts may be unlike each other, as long as their last tensors have the shapes
    that the tail takes. The model shares the layers of the units, so training it trains
    them; export them with `joined`.

    The tail computes the rows of all fronts as one batch, so its batch norm learns one
    mean and variance, those that it serves with. Every input has the same number of rows.

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
    inputs, logits, sent = {}, {}, []
    for front in firsts:
        inputs[front.name], logits[front.name], features = _through(front.name, [front])
        sent.append(features)
    later = last.model([_stacked(tensors) for tensors in zip(*sent, strict=True)])
    for name in last.exits:
        for front, part in zip(firsts, _parted(later[name], len(firsts)), strict=True):
            logits[front.name].append(part)
    outputs = {}
    for front in firsts:
        for i, tensor in enumerate(logits[front.name]):
            # Keras names losses and metrics after the layer.
            name = f"{front.name}_{exits.exit_name(i + 1)}"
            outputs[name] = keras.layers.Identity(name=name, autocast=False)(tensor)
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
    inputs, logits, _ = _through(units[0].inputs, units)
    outputs = {
        name: keras.layers.Identity(name=name, autocast=False)(tensor)
        for name, tensor in ((exits.exit_name(i + 1), x) for i, x in enumerate(logits))
    }
    return keras.Model(inputs, outputs, name="_".join(unit.name for unit in units))


def copied_network(units: Sequence[Unit]) -> keras.Model:
    """The multi-exit network that units make one after the other, to keep in a file.

    Unlike that of `as_network`, its graph is flat and its layers are its own. Layers keep
    their names in the first unit, and begin with the unit's name in later ones, so that
    files with a common tail name its layers alike.

    Args:
        units: the first takes images, the others features.

    Returns:
        A plain `keras.Model` with the outputs `{"exit_1": logits, ..., "exit_N": ...}`;
        `cut` at the last exit of a unit gives the same units again.

    Raises:
        BranchyError: two units do not fit.
    """
    for front, following in itertools.pairwise(units):
        check_fit(front, following)
    first = units[0]
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
        for name, tensor in zip(first.inputs, first.model.inputs, strict=True)
    ]
    number = sum(len(unit.exits) for unit in units)
    taken = {*first.inputs, *(exits.exit_name(i + 1) for i in range(number))}
    copies: dict[int, Any] = {}
    outputs: dict[str, keras.KerasTensor] = {}
    live = inputs
    for unit in units:
        prefix = "" if unit is first else f"{unit.name}_"
        own: dict[int, str] = {}
        for name in unit.exits:
            maker = graphs.producer(unit.model.output[name]).operation
            own[id(maker)] = exits.exit_name(len(outputs) + len(own) + 1)
        value = {id(old): new for old, new in zip(unit.model.inputs, live, strict=True)}
        for node in graphs.nodes_in_order(unit.model):
            old = node.operation
            if id(old) not in copies:
                name = own.get(id(old)) or _free_name(old.name, prefix, taken)
                copies[id(old)] = _copied(old, name)
            graphs.replay([node], value, {id(node): copies[id(old)]})
            if isinstance(old, keras.Layer) and old.weights:
                graphs.copy_weights(old, copies[id(old)])
        for name in unit.exits:
            key = exits.exit_name(len(outputs) + 1)
            outputs[key] = value[id(unit.model.output[name])]
        live = [
            value[id(unit.model.output[feature_name(i)])]
            for i in range(len(unit.carried))
        ]
    packed = inputs[0] if len(inputs) == 1 else inputs
    return keras.Model(packed, outputs, name="_".join(unit.name for unit in units))


def _free_name(name: str, prefix: str, taken: set[str]) -> str:
    """A name for a copy that no other layer has, which it adds to `taken`."""
    wanted = name if name.startswith(prefix) else f"{prefix}{name}"
    free, number = wanted, 1
    while free in taken:
        number += 1
        free = f"{wanted}_{number}"
    taken.add(free)
    return free


def _copied(operation: Any, name: str) -> Any:
    """A layer or operation of the same configuration; weights are not copied."""
    return type(operation).from_config(operation.get_config() | {"name": name})


def _stacked(tensors: Sequence[Any]) -> Any:
    """The rows of several tensors as one batch."""
    return tensors[0] if len(tensors) == 1 else keras.ops.concatenate(tensors, axis=0)


def _parted(tensor: Any, number: int) -> list[Any]:
    """The inverse of `_stacked` for tensors with the same number of rows."""
    return [tensor] if number == 1 else keras.ops.split(tensor, number, axis=0)


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
    """Symbolic inputs of the first unit, logits of all exits, and what the last sends."""
    first = units[0].model.inputs
    models = [unit.model for unit in units]
    if isinstance(name, str):
        if len(first) > 1:
            raise BranchyError(
                f"The front {name!r} has {len(first)} inputs; expected one. Join fronts "
                "with a single input each."
            )
        # Keras wants an input to be named like its key, as the unit's model is now.
        front = units[0].model
        graph = keras.Model(front.inputs, front.output, name=f"{name}_unit")
        models = [graph, *models[1:]]
        name = [name]
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=key)
        for key, tensor in zip(name, first, strict=True)
    ]
    logits, current = [], inputs
    for unit, model in zip(units, models, strict=True):
        outputs = model(current)
        logits += [outputs[exit] for exit in unit.exits]
        current = [outputs[feature_name(i)] for i in range(len(unit.carried))]
    return inputs[0] if len(inputs) == 1 else inputs, logits, current


def _listed(tensors: list[tuple[tuple, str]]) -> str:
    return ", ".join(
        f"{dtype} [{', '.join('B' if i == 0 else str(n) for i, n in enumerate(shape))}]"
        for shape, dtype in tensors
    )

"""Cuts a multi-exit model into units: groups of stages that run together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import keras

from branchy_tf import checks, costs, exits, graphs, stages
from branchy_tf.errors import BranchyError
from branchy_tf.stages import Stage
from branchy_tf.units.bottlenecks import add_bottlenecks

# What a unit sends on for a row that it is not sure of.
FEATURES, IMAGE = "features", "image"
SENDS = (FEATURES, IMAGE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclasses.dataclass(frozen=True)
class Unit:
    """One part of a network: one or more stages, and where unsure rows go.

    Attributes:
        name: of the unit, and of its servable.
        stages: the stages that it runs, in order.
        next: the name of the unit that gets the rows that go on; None: the last unit,
            which answers every row.
        sends: what it sends on: `features`, the tensors at the cut, or `image`, the
            unit's own inputs again.
        takes: what it takes: `image`, the inputs of the network, or `features`.
        inputs: the names of its inputs.
        model: the same as one `keras.Model`, which shares the layers of the network.
            Outputs: `{"exit_1": logits, ..., "features_1": tensor, ...}`.
    """

    name: str
    stages: tuple[Stage, ...]
    next: str | None = None
    sends: str = FEATURES
    takes: str = IMAGE
    inputs: tuple[str, ...] = ("images",)
    model: keras.Model = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `BranchyError` for a name that no folder can have."""
        check_name(self.name)
        object.__setattr__(self, "model", _as_model(self))

    @property
    def exits(self) -> list[str]:
        """The names of its exits in the whole network, e.g. `["exit_2", "exit_3"]`."""
        return [stage.name for stage in self.stages]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.model.output[self.exits[0]].shape[-1]

    @property
    def carried(self) -> list[keras.KerasTensor]:
        """The tensors at its end that it sends on; empty if it sends the image."""
        if self.next is None or self.sends == IMAGE:
            return []
        if self.encoder is not None:
            return list(self.encoder.outputs)
        return list(self.stages[-1].model.outputs[1:])

    @property
    def encoder(self) -> keras.Model | None:
        """Narrows what its last stage carries for rows that go on, or None."""
        return self.stages[-1].encoder

    @property
    def macs(self) -> list[int]:
        """The multiply-adds of each stage for one row; the encoder's are the last's.

        Raises:
            BranchyError: what `costs.macs` raises.
        """
        found = [costs.macs(stage.model) for stage in self.stages]
        if self.encoder is not None:
            found[-1] += costs.macs(self.encoder)
        return found

    @property
    def fingerprint(self) -> str:
        """A hash of its weights, 16 hexadecimal digits."""
        return graphs.fingerprint(self.model)


def cut(
    model: keras.Model,
    at: Sequence[str],
    names: Sequence[str] | None = None,
    sends: str | Sequence[str] = FEATURES,
    bottleneck: int | Sequence[int | None] | None = None,
) -> list[Unit]:
    """Cuts a multi-exit model into units.

    A bottleneck that the model has at a cut, from `add_bottlenecks`, is cut in the
    middle: its encoder belongs to the unit before the cut, which runs it for the rows
    that go on, and its decoder to the next.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        at: the exits after which to cut, in order; none gives a single unit.
        names: of the units; default: unit_1, unit_2, ...
        sends: what units send on for the rows that they are not sure of: `features`, the
            tensors at the cut, or `image`, the inputs of the network again, from which
            the next unit computes anew. One for all cuts, or one for each.
        bottleneck: the channels of new, untrained bottlenecks where features are sent:
            one for all cuts, or one or None for each. Train the units before use, with
            `as_network` or `join`. To train the whole model first, see
            `add_bottlenecks`.

    Returns:
        One unit more than cuts. Their answers, one after the other, are those of the
        whole model.

    Raises:
        BranchyError: what `stages.split` raises, an unknown exit, one that is not in
            order, the final one, or another number of names than units.

    Example:

    ```python
    device, edge, cloud = units.cut(
        model, at=["exit_1", "exit_2"], names=["device", "edge", "cloud"]
    )
    ```
    """
    tensors = exits.exit_tensors(model)
    exits.check_logits(tensors)
    known = list(tensors)
    ends = _ends(at, known)
    names = [f"unit_{i + 1}" for i in range(len(ends))] if names is None else list(names)
    if len(names) != len(ends):
        raise BranchyError(
            f"`names` has {len(names)} names for {len(ends)} units; expected one for "
            f"each. Received {checks.shown(names)}."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BranchyError(f"Two units are named {twice!r}; expected different names.")
    ways = [sends] * (len(ends) - 1) if isinstance(sends, str) else list(sends)
    if len(ways) != len(ends) - 1:
        raise BranchyError(
            f"`sends` has {len(ways)} entries for {len(ends) - 1} cuts; expected one for "
            f"each, or one for all. Received {checks.shown(sends)}."
        )
    for way in ways:
        checks.one_of("sends", way, SENDS)
    coded = [
        known[end - 1] for end, way in zip(ends, ways, strict=False) if way == FEATURES
    ]
    if bottleneck is not None:
        model = add_bottlenecks(model, _bottlenecks(bottleneck, at, coded))

    network_inputs = tuple(graphs.input_names(model))
    found: list[Unit] = []
    parts: list[Stage] = []
    begin = 0
    for i, end in enumerate(ends):
        takes = FEATURES if i and ways[i - 1] == FEATURES else IMAGE
        if takes == IMAGE:
            # Computes from the inputs again, without the heads of exits before it.
            parts = stages.split(model, known[begin:], coded)
        group, parts = parts[: end - begin], parts[end - begin :]
        following = names[i + 1] if i + 1 < len(names) else None
        way = ways[i] if following is not None else FEATURES
        inputs = (
            network_inputs
            if takes == IMAGE
            else tuple(feature_name(k) for k in range(len(group[0].model.inputs)))
        )
        found.append(Unit(names[i], tuple(group), following, way, takes, inputs))
        begin = end
    return found


def _bottlenecks(
    given: int | Sequence[int | None], at: Sequence[str], coded: Sequence[str]
) -> dict[str, int]:
    """`{exit: channels}` of the bottlenecks that `cut` was asked for."""
    if not isinstance(given, Sequence):
        return dict.fromkeys(coded, given)
    at = [at] if isinstance(at, str) else at
    if len(given) != len(at):
        raise BranchyError(
            f"`bottleneck` has {len(given)} entries for {len(at)} cuts; expected one for "
            f"each, or one for all. Received {checks.shown(given)}."
        )
    found = {
        name: channels
        for name, channels in zip(at, given, strict=True)
        if channels is not None
    }
    for name in found:
        if name not in coded:
            raise BranchyError(
                f"`bottleneck` has channels for the cut at {name}, where the image is "
                "sent, which has none. Pass None there, or send features."
            )
    return found


def check_name(name: object) -> str:
    """Returns the name of a unit.

    Raises:
        BranchyError: it cannot be the name of a folder and a servable.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise BranchyError(
            "The name of a unit is letters, digits, '.', '_' and '-', and begins with a "
            f"letter or digit. Received {checks.shown(name)}."
        )
    return name


def _ends(at: Sequence[str], known: list[str]) -> list[int]:
    """How many exits come before the end of each unit."""
    if isinstance(at, str):
        at = [at]
    for name in at:
        checks.one_of("exit to cut at", name, known)
    if known[-1] in at:
        raise BranchyError(
            f"Nothing comes after {known[-1]}, the final exit, so there is nothing to "
            f"cut. Cut at {', '.join(known[:-1]) or 'no exit'}."
        )
    ends = [known.index(name) + 1 for name in at]
    if ends != sorted(set(ends)):
        raise BranchyError(
            f"`at` must name different exits in order. Received {checks.shown(list(at))}."
        )
    return [*ends, len(known)]


def feature_name(index: int) -> str:
    """The name of a tensor at a cut, by its 0-based index."""
    return f"features_{index + 1}"


def _as_model(unit: Unit) -> keras.Model:
    """The stages of a unit as one functional model on fresh inputs."""
    first = unit.stages[0].model
    inputs = [
        keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=name,
        )
        for name, tensor in zip(unit.inputs, first.inputs, strict=True)
    ]
    outputs, live = {}, inputs
    for stage in unit.stages:
        value = {id(old): new for old, new in zip(stage.model.inputs, live, strict=True)}
        graphs.replay(graphs.nodes_in_order(stage.model), value)
        outputs[stage.name], *live = [value[id(t)] for t in stage.model.outputs]
    if unit.encoder is not None:
        value = {id(old): new for old, new in zip(unit.encoder.inputs, live, strict=True)}
        graphs.replay(graphs.nodes_in_order(unit.encoder), value)
        live = [value[id(t)] for t in unit.encoder.outputs]
    for i in range(len(unit.carried)):
        outputs[feature_name(i)] = live[i]
    return keras.Model(inputs, outputs, name=unit.name)

"""Cuts a multi-exit model into stages, based on its graph.

Stage k computes what exit k needs beyond the earlier stages. Its outputs are the exit's
logits and the tensors that later stages read. Running all stages in turn computes every
node of the model exactly once; stopping after stage k skips the rest.

The nodes are replayed on fresh inputs, in the model's own order. (A sub-model
`keras.Model(intermediate tensors, ...)` works for chains, but Keras cannot build it for
several inputs, trees of exits or shared layers.)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from branchy_tf import exits, graphs
from branchy_tf.errors import BranchyError


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a multi-exit model, up to and including one exit.

    Attributes:
        name: the exit at its end, e.g. "exit_1".
        model: a `keras.Model` that shares the layers of the whole model. Stage 1
            takes the model's inputs in their order; stage k + 1 takes exactly what
            stage k carries, in that order. Outputs: `[logits, *carried]`.
        encoder: of the bottleneck after the exit, if `split` was asked to set it apart:
            from what the stage carries to a list of what the next stage takes.
    """

    name: str
    model: keras.Model
    encoder: keras.Model | None = None

    def __call__(self, tensors: list) -> tuple[Any, list]:
        """Runs the stage for inference: `(logits, carried)`."""
        inputs = keras.tree.pack_sequence_as(self.model.input, list(tensors))
        # Keras unwraps a list of one output.
        logits, *carried = keras.tree.flatten(self.model(inputs, training=False))
        return logits, carried


@dataclasses.dataclass(frozen=True)
class Crossing:
    """What crosses the cut after an exit, in the graph of the whole model.

    Attributes:
        carried: the tensors that later stages read.
        before: the nodes of the stages up to the exit, in order.
        after: the nodes of later stages, in order.
    """

    carried: list[keras.KerasTensor]
    before: list[Any]
    after: list[Any]


def crossing(model: keras.Model, exit: str) -> Crossing:
    """What crosses the cut after an exit.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        exit: the name of the exit.

    Raises:
        BranchyError: what `split` raises.
    """
    tensors = exits.exit_tensors(model)
    nodes = graphs.nodes_in_order(model)
    ends = {name: [logits] for name, logits in tensors.items()}
    stage_of = _assign(ends, nodes, model.inputs)
    k = list(tensors).index(exit)
    before = [node for node in nodes if 0 <= stage_of[id(node)] <= k]
    carried = _carried(
        k,
        [model.inputs, *(node.outputs for node in before)],
        _last_readers(ends, nodes, stage_of),
    )
    _check_unmasked(carried, exit)
    return Crossing(carried, before, [n for n in nodes if stage_of[id(n)] > k])


def encoder_name(exit: str, index: int) -> str:
    """The name of the layer that narrows the 0-based tensor at the cut after an exit.

    `split` finds the encoder of a bottleneck by it, so no model needs further metadata.
    """
    return f"{exit}_encoder_{index + 1}"


def split(
    model: keras.Model, only: Sequence[str] | None = None, encoded: Sequence[str] = ()
) -> list[Stage]:
    """Cuts a functional multi-exit model at its exits.

    The model may have skip connections across a cut, several inputs, layers that
    stages share, and exits on the branches of other exits.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        only: the exits to end stages at; what only other exits need is left out.
            Default: all.
        encoded: the exits after which the encoder of a bottleneck is set apart from the
            next stage, if there is one; see `Stage.encoder`.

    Returns:
        N stages in exit order. Their composition equals the model bit for bit.

    Raises:
        BranchyError: what `exits.exit_tensors` raises, or a tensor at a cut carries a
            Keras mask.

    Example:

    ```python
    first, last = split(branchy_lenet())
    logits_1, carried = first([images])
    logits_2, _ = last(carried)
    ```
    """
    tensors = exits.exit_tensors(model)
    if only is not None:
        tensors = {name: tensors[name] for name in tensors if name in only}
    nodes = graphs.nodes_in_order(model)
    ends: dict[str, list] = {}
    for name, logits in tensors.items():
        ends[name] = [logits]
        narrow = _encoder_outputs(name, nodes) if name in encoded else []
        if narrow:
            ends[f"{name}_encoder"] = narrow
    stage_of = _assign(ends, nodes, model.inputs)
    last_reader = _last_readers(ends, nodes, stage_of)

    stages: list[Stage] = []
    live = list(model.inputs)
    for k, name in enumerate(ends):
        own = [node for node in nodes if stage_of[id(node)] == k]
        carried = _carried(k, [live, *(node.outputs for node in own)], last_reader)
        if name in tensors:
            _check_unmasked(carried, name)
            outputs = [tensors[name], *carried]
            stages.append(Stage(name, _replay(model.name, name, own, live, outputs)))
        else:
            encoder = _replay(model.name, name, own, live, carried)
            stages[-1] = dataclasses.replace(stages[-1], encoder=encoder)
        live = carried
    return stages


def _encoder_outputs(exit: str, nodes: list) -> list:
    """The outputs of the encoder after an exit; none without a bottleneck there."""
    pattern = re.compile(re.escape(exit) + r"_encoder_[1-9][0-9]*\Z")
    return [t for n in nodes if pattern.match(n.operation.name) for t in n.outputs]


def _assign(ends: Mapping[str, list], nodes: list, inputs: list) -> dict[int, int]:
    """{id(node): index of the first end that needs it}."""
    producer = {id(t): node for node in nodes for t in node.outputs}
    known = {id(t) for t in inputs}
    stage_of: dict[int, int] = {}
    for k, tensors in enumerate(ends.values()):
        waiting = list(tensors)
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in known:
                continue
            known.add(id(tensor))
            node = producer[id(tensor)]
            if id(node) not in stage_of:
                stage_of[id(node)] = k
                waiting.extend(node.input_tensors)
    # Keras may keep a node that no output needs. It belongs to no stage.
    return {id(node): stage_of.get(id(node), -1) for node in nodes}


def _last_readers(
    ends: Mapping[str, list], nodes: list, stage_of: dict
) -> dict[int, int]:
    """{id(tensor): index of the last end that reads it}."""
    last = {id(t): k for k, tensors in enumerate(ends.values()) for t in tensors}
    for node in nodes:
        for tensor in node.input_tensors:
            last[id(tensor)] = max(last.get(id(tensor), -1), stage_of[id(node)])
    return last


def _carried(k: int, made: Sequence[Sequence], last_reader: Mapping[int, int]) -> list:
    """The tensors among `made` that ends after the 0-based `k` read."""
    tensors = [tensor for part in made for tensor in part]
    return _unique([t for t in tensors if last_reader.get(id(t), -1) > k])


def _unique(tensors: list) -> list:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _check_unmasked(carried: list, name: str) -> None:
    # A mask is an attribute of a tensor. The cut would lose it, and the stages
    # would silently differ from the model.
    for tensor in carried:
        if getattr(tensor, "_keras_mask", None) is not None:
            raise BranchyError(
                f"Tensor {tensor.name!r}, which crosses the cut after {name}, carries a "
                "Keras mask, and masks cannot pass from stage to stage. Pass the mask to "
                "the layers that need it as a separate input, or move the exit."
            )


def _replay(
    model_name: str, name: str, nodes: list, live: list, outputs: list
) -> keras.Model:
    """A model that repeats `nodes` on fresh inputs shaped like `live`."""
    inputs = [
        keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=f"{name}_in_{i}",
        )
        for i, tensor in enumerate(live)
    ]
    value = {id(tensor): fresh for tensor, fresh in zip(live, inputs, strict=True)}
    graphs.replay(nodes, value)

    fresh_inputs = {id(tensor) for tensor in inputs}
    results = []
    for i, tensor in enumerate(outputs):
        fresh = value[id(tensor)]
        if id(fresh) in fresh_inputs:
            # Keras needs a node between an input and an output. With autocast, it
            # would cast the tensor under mixed_float16.
            fresh = keras.layers.Identity(name=f"{name}_carry_{i}", autocast=False)(fresh)
        results.append(fresh)
    return keras.Model(inputs, results, name=f"{_scope(model_name)}_{name}")


def _scope(name: str) -> str:
    """`name` as a TensorFlow scope: ASCII letters, digits, '_', '.' and '-'."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return plain if plain[0].isalnum() else f"model{plain}"

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
from collections.abc import Sequence
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
    """

    name: str
    model: keras.Model

    def __call__(self, tensors: list) -> tuple[Any, list]:
        """Runs the stage for inference: `(logits, carried)`."""
        inputs = keras.tree.pack_sequence_as(self.model.input, list(tensors))
        # Keras unwraps a list of one output.
        logits, *carried = keras.tree.flatten(self.model(inputs, training=False))
        return logits, carried


def split(model: keras.Model, only: Sequence[str] | None = None) -> list[Stage]:
    """Cuts a functional multi-exit model at its exits.

    The model may have skip connections across a cut, several inputs, layers that
    stages share, and exits on the branches of other exits.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        only: the exits to end stages at; what only other exits need is left out.
            Default: all.

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
    stage_of = _assign(tensors, nodes, model.inputs)
    last_reader = _last_readers(tensors, nodes, stage_of)

    stages = []
    live = list(model.inputs)
    for k, (name, logits) in enumerate(tensors.items()):
        own = [node for node in nodes if stage_of[id(node)] == k]
        made = live + [tensor for node in own for tensor in node.outputs]
        carried = _unique([t for t in made if last_reader.get(id(t), -1) > k])
        _check_unmasked(carried, name)
        stages.append(Stage(name, _replay(model.name, name, own, live, logits, carried)))
        live = carried
    return stages


def _assign(tensors: dict, nodes: list, inputs: list) -> dict[int, int]:
    """{id(node): index of the first stage that needs it}."""
    producer = {id(t): node for node in nodes for t in node.outputs}
    known = {id(t) for t in inputs}
    stage_of: dict[int, int] = {}
    for k, logits in enumerate(tensors.values()):
        waiting = [logits]
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


def _last_readers(tensors: dict, nodes: list, stage_of: dict) -> dict[int, int]:
    """{id(tensor): index of the last stage that reads it}."""
    last = {id(logits): k for k, logits in enumerate(tensors.values())}
    for node in nodes:
        for tensor in node.input_tensors:
            last[id(tensor)] = max(last.get(id(tensor), -1), stage_of[id(node)])
    return last


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
    model_name: str, name: str, nodes: list, live: list, logits: Any, carried: list
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
    for i, tensor in enumerate([logits, *carried]):
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

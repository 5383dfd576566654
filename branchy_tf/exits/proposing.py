"""Proposes places for early exits in a network without any."""

from __future__ import annotations

import numbers

import keras

from branchy_tf import graphs
from branchy_tf.errors import BranchyError
from branchy_tf.exits.adding import single_output
from branchy_tf.exits.flattening import flatten
from branchy_tf.multiply_adds import macs_by_node


def propose_exits(model: keras.Model, n: int) -> list[str]:
    """Proposes n layers whose exits divide the multiply-adds evenly.

    A place qualifies if a single tensor carries everything forward, such as the end of
    a residual block but not its middle. The places closest to 1/(n+1), 2/(n+1), ... of
    the multiply-adds are chosen. Of consecutive layers with the same cost
    (convolution, batch norm, ReLU), the last one is taken.

    Args:
        model: a functional or Sequential Keras model with one output.
        n: the number of early exits.

    Returns:
        n layer names in order from the input, for `add_exits`.

    Raises:
        BranchyError: the model has fewer than n such places, or a layer whose
            multiply-adds cannot be counted.

    Example:

    ```python
    places = propose_exits(model, 3)
    model = add_exits(model, dict.fromkeys(places, conv_head(filters=[64])))
    ```
    """
    places, total = _places_and_total(model)
    whole = isinstance(n, numbers.Integral) and not isinstance(n, bool)
    if not whole or not 1 <= n <= len(places):
        raise BranchyError(
            f"`n` must be between 1 and {len(places)}, the number of places for an exit "
            f"in {model.name!r}. Received {n!r}."
        )
    names, costs = list(places), list(places.values())
    chosen: list[int] = []
    for k in range(1, n + 1):
        # After the places already chosen, and with room for those still to come.
        first = chosen[-1] + 1 if chosen else 0
        free = range(first, len(names) - (n - k))
        chosen.append(min(free, key=lambda i: abs(costs[i] - total * k / (n + 1))))
    return [names[i] for i in chosen]


def exit_places(model: keras.Model) -> list[str]:
    """Every layer that `propose_exits` chooses from, in order from the input.

    Raises:
        BranchyError: the model has none.
    """
    places, _ = _places_and_total(model)
    return list(places)


def _places_and_total(model: keras.Model) -> tuple[dict[str, int], int]:
    """The places with the multiply-adds up to each, and those of the whole model."""
    model = flatten(single_output(model)).model
    nodes = graphs.nodes_in_order(model)
    counted = macs_by_node(model)
    macs = [counted[id(node)] for node in nodes]
    places = _places(model, nodes, macs)
    if not places:
        raise BranchyError(
            f"Model {model.name!r} has no place for an exit: no multiply-adds can be "
            "counted between the layers that model.summary() lists. A sub-model that "
            "cannot be inlined counts as one layer; build it on the outer tensor."
        )
    return places, sum(macs)


def _places(model: keras.Model, nodes: list, macs: list[int]) -> dict[str, int]:
    """{layer: multiply-adds up to it} where one tensor carries everything forward.

    Args:
        model: the model to search.
        nodes: its nodes, in order.
        macs: the multiply-adds of each node.
    """
    last_reader = {id(t): i for i, node in enumerate(nodes) for t in node.input_tensors}
    calls = [node.operation.name for node in nodes]
    live = {id(tensor) for tensor in model.inputs}
    places: dict[int, str] = {}
    spent = 0
    for i, node in enumerate(nodes[:-1]):
        spent += macs[i]
        live = {t for t in live if last_reader.get(t, -1) > i}
        live |= {id(t) for t in node.outputs if id(t) in last_reader}
        if (
            live == {id(node.outputs[0])}
            and spent > 0
            and calls.count(node.operation.name) == 1
            and keras.backend.is_float_dtype(node.outputs[0].dtype)
            # An exit here can skip more than the last layer.
            and sum(own > 0 for own in macs[i + 1 :]) > 1
        ):
            places[spent] = node.operation.name
    return {name: cost for cost, name in places.items()}

"""Values that a TensorFlow graph fixes before it runs, such as the length of a loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Computes a value, or returns None where the graph does not fix it.
Source = Callable[[], np.ndarray | None]


class KnownValues:
    """The values that one graph fixes.

    Args:
        given: `{name of an input of the graph: where its value comes from}`.
    """

    def __init__(self, given: Mapping[str, Source] | None = None) -> None:
        self._given = dict(given or {})

    def value(self, tensor: Any) -> np.ndarray | None:
        """The value of a tensor, or None if the graph does not fix it."""
        static = tf.get_static_value(tensor)
        if static is not None:
            return static
        fed: dict[str, np.ndarray] = {}
        for operation in upstream([tensor]):
            for output in operation.outputs:
                if output.name in self._given:
                    value = self._given[output.name]()
                    if value is not None:
                        fed[output.name] = value
            fixed = not operation.op_def.is_stateful and operation.type != "Placeholder"
            if not fixed and operation.outputs[0].name not in fed:
                return None
        with _runner(tensor.graph, list(fed), [tensor]) as run:
            return run(list(fed.values()))[0]


def iterations(
    condition: Any, body: Any, start: Callable[[int], np.ndarray | None]
) -> int | None:
    """The number of iterations of a loop, or None if the graph does not fix it.

    Computes only those loop variables that decide when the loop ends.

    Args:
        condition: the graph of the condition.
        body: the graph of the body.
        start: the first value of a loop variable, by its position.
    """
    deciding = _inputs_of(condition, condition.outputs)
    while True:
        more = deciding | _inputs_of(body, [body.outputs[i] for i in deciding])
        if more == deciding:
            break
        deciding = more
    order = sorted(deciding)
    values = [start(i) for i in order]
    if any(value is None for value in values):
        return None
    read = [condition.inputs[i].name for i in order], [body.inputs[i].name for i in order]
    with (
        _runner(condition, read[0], condition.outputs) as goes_on,
        _runner(body, read[1], [body.outputs[i] for i in order]) as step,
    ):
        count = 0
        while goes_on(values)[0]:
            values = step(values)
            count += 1
    return count


def upstream(tensors: Iterable[Any], before: Container[str] = frozenset()) -> list[Any]:
    """The operations that `tensors` are computed from.

    Args:
        tensors: of one graph.
        before: names of operations at which to stop.
    """
    found: dict[str, Any] = {}
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found and operation.name not in before:
            found[operation.name] = operation
            waiting.extend(tensor.op for tensor in operation.inputs)
    return list(found.values())


def _inputs_of(graph: Any, tensors: Iterable[Any]) -> set[int]:
    """The positions of the graph's inputs that `tensors` are computed from."""
    names = {operation.name for operation in upstream(tensors)}
    return {i for i, tensor in enumerate(graph.inputs) if tensor.op.name in names}


@contextlib.contextmanager
def _runner(
    graph: Any, inputs: Sequence[str], outputs: Sequence[Any]
) -> Iterator[Callable[[Sequence[Any]], list[Any]]]:
    """A function from the values of some tensors of `graph` to those of `outputs`."""
    names = [tensor.op.name for tensor in outputs]
    whole = graph.as_graph_def()
    for node in whole.node:
        # Without the dependencies that only set an order, such as on reading variables.
        read = [name for name in node.input if not name.startswith("^")]
        node.input[:] = read
    part = tf.compat.v1.graph_util.extract_sub_graph(whole, names)
    copy = tf.Graph()
    with copy.as_default():
        tf.import_graph_def(part, name="")
    # An input that none of the outputs reads is not in the copy.
    present = {node.name for node in part.node}
    fetched = [tensor.name for tensor in outputs]
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    with tf.compat.v1.Session(graph=copy, config=config) as session:

        def run(values: Sequence[Any]) -> list[Any]:
            given = {
                name: value
                for name, value in zip(inputs, values, strict=True)
                if name.partition(":")[0] in present
            }
            return session.run(fetched, given)

        yield run

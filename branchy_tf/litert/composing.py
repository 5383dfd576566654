"""Joins converted parts into one .tflite file: stages, answers and branches.

Each stage is converted by itself, so that it can be quantised while the decisions stay
in float32, and so that the file for one row and the files of the stages hold the same
operations. TensorFlow's converter cannot do this: it quantises softmax and scores too,
and sees no values in branches that its examples do not take.

A part is a converted function from x_0, x_1, ... to y_0, y_1, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from branchy_tf.errors import BranchyError

_IDENTIFIER = b"TFL3"
# The fields of an operator's options that name another subgraph.
_REFERENCES = (
    "thenSubgraphIndex",
    "elseSubgraphIndex",
    "condSubgraphIndex",
    "bodySubgraphIndex",
    "initSubgraphIndex",
    "comparatorSubgraphIndex",
    "updateComputationSubgraphIndex",
)
_INT32 = schema.TensorType.INT32


class Graph:
    """One subgraph of a file that is being composed. Tensors are numbers.

    Args:
        file: the file that it belongs to.
        name: its name in the file.
    """

    def __init__(self, file: File, name: str) -> None:
        self._file = file
        self.content = schema.SubGraphT(
            tensors=[], inputs=[], outputs=[], operators=[], name=name
        )

    def add_input(self, like: Any, name: str) -> int:
        """A new input with the shape and dtype of a tensor of a part."""
        index = self._like(like, name)
        self.content.inputs.append(index)
        return index

    def tensor(self, index: int) -> Any:
        """A tensor's properties, for `add_input` of another subgraph."""
        return self.content.tensors[index]

    def exit_index(self, value: int) -> int:
        """A constant int32 [1]."""
        data = np.frombuffer(np.array([value], np.int32).tobytes(), np.uint8)
        return self._add(
            schema.TensorT(
                shape=np.array([1], np.int32),
                type=_INT32,
                buffer=self._file.add_buffer(schema.BufferT(data=data)),
                name=f"exit_index_{value}",
            )
        )

    def inline(self, part: bytes, inputs: Sequence[int]) -> list[int]:
        """Adds a part's operations, with `inputs` as its inputs; returns its outputs."""
        model = _parse(part)
        first, *others = model.subgraphs
        given, results = _interface(model)
        buffers = [0, *map(self._file.add_buffer, model.buffers[1:])]
        codes = [self._file.add_code(code) for code in model.operatorCodes]
        # Loops and branches inside a layer are subgraphs of their own.
        places = {i + 1: self._file.reserve() for i in range(len(others))}
        known = dict(zip(given, inputs, strict=True))
        numbers = {}
        for i, tensor in enumerate(first.tensors):
            if i in known:
                numbers[i] = known[i]
                continue
            tensor.buffer = buffers[tensor.buffer]
            # The names of fused layers are a tenth of a small file.
            tensor.name = None
            numbers[i] = self._add(tensor)
        for operator in first.operators:
            _renumber(operator, numbers, codes, places)
            self.content.operators.append(operator)
        for i, other in enumerate(others):
            for tensor in other.tensors:
                tensor.buffer = buffers[tensor.buffer]
            same = {n: n for n in range(len(other.tensors))}
            for operator in other.operators:
                _renumber(operator, same, codes, places)
            self._file.place(places[i + 1], other)
        return [numbers[i] for i in results]

    def branch(
        self, condition: int, inputs: Sequence[int], then: int, otherwise: int, like: Any
    ) -> list[int]:
        """Runs one of two subgraphs with the same inputs; returns the outputs.

        Args:
            condition: a tensor of one boolean.
            inputs: the tensors that are passed on.
            then: the index of the subgraph to run if it is true.
            otherwise: the index of the other one.
            like: the properties of each output.
        """
        outputs = [self._like(tensor, None) for tensor in like]
        code = schema.BuiltinOperator.IF
        self.content.operators.append(
            schema.OperatorT(
                opcodeIndex=self._file.add_code(
                    schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code)
                ),
                inputs=np.array([condition, *inputs], np.int32),
                outputs=np.array(outputs, np.int32),
                builtinOptionsType=schema.BuiltinOptions.IfOptions,
                builtinOptions=schema.IfOptionsT(then, otherwise),
            )
        )
        return outputs

    def name_outputs(self, outputs: Sequence[int], names: Sequence[str]) -> None:
        """Sets the outputs of the subgraph."""
        self.content.outputs = list(outputs)
        for index, name in zip(outputs, names, strict=True):
            self.content.tensors[index].name = name

    def _like(self, tensor: Any, name: str | None) -> int:
        return self._add(
            schema.TensorT(
                shape=tensor.shape,
                shapeSignature=tensor.shapeSignature,
                type=tensor.type,
                quantization=tensor.quantization,
                hasRank=tensor.hasRank,
                name=name,
            )
        )

    def _add(self, tensor: Any) -> int:
        self.content.tensors.append(tensor)
        return len(self.content.tensors) - 1


class File:
    """A .tflite file that is being composed; its first graph is the entry."""

    def __init__(self) -> None:
        self._model = schema.ModelT(
            version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()]
        )
        self._codes: dict[tuple, int] = {}

    def graph(self, name: str) -> tuple[Graph, int]:
        """A new subgraph and its index."""
        graph, index = Graph(self, name), self.reserve()
        self.place(index, graph.content)
        return graph, index

    def reserve(self) -> int:
        """The index of a subgraph that follows."""
        self._model.subgraphs.append(None)
        return len(self._model.subgraphs) - 1

    def place(self, index: int, subgraph: Any) -> None:
        """Fills a reserved index."""
        self._model.subgraphs[index] = subgraph

    def add_buffer(self, buffer: Any) -> int:
        """The index of a buffer, which is added."""
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1

    def add_code(self, code: Any) -> int:
        """The index of an operator code, which is added if it is new."""
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        key = (kind, code.customCode, code.version)
        if key not in self._codes:
            self._codes[key] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[key]

    def content(self, signature: str) -> bytes:
        """The finished file, with its entry as a signature of this name."""
        entry = self._model.subgraphs[0]

        def named(indices: Sequence[int]) -> list[Any]:
            return [schema.TensorMapT(entry.tensors[i].name, int(i)) for i in indices]

        self._model.signatureDefs = [
            schema.SignatureDefT(named(entry.inputs), named(entry.outputs), signature, 0)
        ]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())


def part_file(part: bytes) -> bytes:
    """A part as a file by itself, its inputs and outputs in order.

    The converter does not keep the order of outputs.
    """
    file = File()
    graph, _ = file.graph("part")
    given = [graph.add_input(x, f"x_{i}") for i, x in enumerate(part_inputs(part))]
    outputs = graph.inline(part, given)
    graph.name_outputs(outputs, [f"y_{i}" for i in range(len(outputs))])
    return file.content("part")


def stage_file(
    stage: bytes, scores: bytes, inputs: Sequence[str], signature: str
) -> bytes:
    """One stage and its scores, for any number of rows.

    Args:
        stage: the part from tensors to [logits, *carried].
        scores: the part from logits to [probabilities, score].
        inputs: the names of the stage's inputs.
        signature: the name of the signature.

    Returns:
        A file with the outputs logits, probabilities, score, carried_0, carried_1, ...
    """
    file = File()
    graph, _ = file.graph(signature)
    given = [
        graph.add_input(like, name)
        for like, name in zip(part_inputs(stage), inputs, strict=True)
    ]
    logits, *carried = graph.inline(stage, given)
    answer = graph.inline(scores, [logits])
    names = ["logits", "probabilities", "score"]
    names += [f"carried_{i}" for i in range(len(carried))]
    graph.name_outputs([logits, *answer, *carried], names)
    return file.content(signature)


def early_exit_file(
    stages: Sequence[bytes],
    answers: Sequence[bytes],
    leaving: bytes,
    thresholds: bytes | None,
    inputs: Sequence[str],
    read: Sequence[int],
) -> bytes:
    """The whole early exit of one row: a chain of branches.

    Args:
        stages: N parts for one row, from tensors to [logits, *carried].
        answers: N parts from logits to [probabilities, score].
        leaving: the part from [score, threshold] to [leaves].
        thresholds: the part from [thresholds, *inputs] to N-1 thresholds; None for a
            single exit.
        inputs: the names of the model's inputs.
        read: which inputs `thresholds` reads.

    Returns:
        A file with the outputs probabilities [1, classes], exit [1] and score [1].
    """
    file = File()

    def rest(k: int, graph: Graph, tensors: list[int], limits: list[int]) -> list[int]:
        """Adds stage k and all that follows; returns the three outputs."""
        logits, *carried = graph.inline(stages[k], tensors)
        probabilities, score = graph.inline(answers[k], [logits])
        if not limits:
            return [probabilities, graph.exit_index(k), score]
        limit, *later = limits
        (leaves,) = graph.inline(leaving, [score, limit])
        passed = [probabilities, score, *later, *carried]
        leave, leave_index = file.graph(f"leave_at_exit_{k + 1}")
        stay, stay_index = file.graph(f"stage_{k + 2}")
        for other in (leave, stay):
            for i, index in enumerate(passed):
                other.add_input(graph.tensor(index), f"passed_{i}")
        here = [leave.content.inputs[0], leave.exit_index(k), leave.content.inputs[1]]
        leave.content.outputs = here
        onward = stay.content.inputs[2:]
        stay.content.outputs = rest(
            k + 1, stay, onward[len(later) :], onward[: len(later)]
        )
        like = [leave.tensor(index) for index in here]
        return graph.branch(leaves, passed, leave_index, stay_index, like)

    graph, _ = file.graph("early_exit")
    given = [
        graph.add_input(like, name)
        for like, name in zip(part_inputs(stages[0]), inputs, strict=True)
    ]
    limits: list[int] = []
    if thresholds is not None:
        asked = graph.add_input(part_inputs(thresholds)[0], "thresholds")
        limits = graph.inline(thresholds, [asked, *(given[i] for i in read)])
    graph.name_outputs(rest(0, graph, given, limits), ["probabilities", "exit", "score"])
    return file.content("early_exit")


def part_inputs(part: bytes) -> list[Any]:
    """The properties of a part's inputs, in order."""
    model = _parse(part)
    given, _ = _interface(model)
    return [model.subgraphs[0].tensors[i] for i in given]


def operators(content: bytes) -> list[str]:
    """The names of all operators in a file; custom ones by their own name."""
    names = {
        number: name
        for name, number in vars(schema.BuiltinOperator).items()
        if isinstance(number, int)
    }
    found = []
    for code in _parse(content).operatorCodes:
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind == schema.BuiltinOperator.CUSTOM:
            found.append(bytes(code.customCode or b"custom").decode())
        else:
            found.append(names[kind])
    return found


def _parse(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(content, 0)


def _interface(model: Any) -> tuple[list[int], list[int]]:
    """The inputs x_0, x_1, ... and the outputs y_0, y_1, ... of a part."""
    (signature,) = model.signatureDefs

    def in_order(entries: Sequence[Any], letter: str) -> list[int]:
        by_name = {_text(entry.name): int(entry.tensorIndex) for entry in entries or ()}
        return [by_name[f"{letter}_{i}"] for i in range(len(by_name))]

    return in_order(signature.inputs, "x"), in_order(signature.outputs, "y")


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _renumber(
    operator: Any,
    numbers: dict[int, int],
    codes: Sequence[int],
    places: dict[int, int],
) -> None:
    """Makes an operator refer to the tensors, codes and subgraphs of another file."""

    def look_up(i: int) -> int:
        # An optional input that is left out is -1.
        return i if i == -1 else numbers[i]

    operator.opcodeIndex = codes[operator.opcodeIndex]
    for field in ("inputs", "outputs", "intermediates"):
        found = getattr(operator, field)
        if found is not None:
            setattr(operator, field, np.array([look_up(int(i)) for i in found], np.int32))
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for field in _REFERENCES:
            index = getattr(options, field, None)
            if index is not None and index >= 0:
                if index not in places:
                    raise BranchyError(
                        "A converted layer refers to the entry of its own file, which "
                        "cannot be joined with others. Export as a SavedModel."
                    )
                setattr(options, field, places[index])

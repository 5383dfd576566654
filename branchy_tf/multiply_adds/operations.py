"""Counts the multiply-adds of the operations of a TensorFlow graph.

Functions, branches and loops are followed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from branchy_tf.multiply_adds.known import KnownValues, iterations, upstream

# What multiplies matrices in ways that the shapes do not tell, and what is computed
# outside the graph.
_UNCOUNTABLE = {
    "Cholesky", "CudnnRNN", "CudnnRNNV2", "EagerPyFunc", "Eig", "FFT", "FFT2D", "FFT3D",
    "FFTND", "IFFT", "IFFT2D", "IFFT3D", "IFFTND", "IRFFT", "IRFFT2D", "IRFFT3D",
    "IRFFTND", "Lu", "MapDefun", "MatrixExponential", "MatrixInverse",
    "MatrixLogarithm", "MatrixSolve", "MatrixSolveLs", "MatrixSquareRoot",
    "MatrixTriangularSolve", "PyFunc", "PyFuncStateless", "Qr", "RFFT", "RFFT2D",
    "RFFT3D", "RFFTND", "RemoteCall", "SelfAdjointEigV2", "SparseMatMul",
    "SparseMatrixMatMul", "SparseMatrixSparseMatMul", "SparseTensorDenseMatMul", "Svd",
    "SymbolicGradient", "TridiagonalMatMul", "TridiagonalSolve", "XlaConvV2", "XlaDotV2",
    "XlaLaunch",
}  # fmt: skip
# Operations that only rearrange the axes between a dilated convolution and its pixels.
_RESHAPING = {"ExpandDims", "Identity", "Reshape", "Squeeze"}


class UncountableError(Exception):
    """The multiply-adds of an operation do not follow from the graph."""


class UnknownSizeError(Exception):
    """They depend on an axis of unknown size."""


def count(operations: Iterable[Any], known: KnownValues) -> int:
    """The multiply-adds of operations of one graph.

    Args:
        operations: of a `tf.Graph`, in any order.
        known: the values that the graph fixes.

    Raises:
        UncountableError, UnknownSizeError: they are not known.
    """
    return sum(_count(operation, known) for operation in operations)


def _count(operation: Any, known: KnownValues) -> int:
    kind = operation.type
    if kind in _UNCOUNTABLE:
        raise UncountableError(f"it runs the operation {kind}")
    if kind in _PRODUCTS:
        return _PRODUCTS[kind](operation)
    if kind in _CALLS:
        return _CALLS[kind](operation, known)
    return 0


def _call(operation: Any, known: KnownValues) -> int:
    return _inside(_function(operation, "f"), operation.inputs, known)


def _branch(operation: Any, known: KnownValues) -> int:
    chosen, *arguments = operation.inputs
    if operation.type.endswith("Case"):
        names = [branch.name for branch in operation.get_attr("branches")]
        branches = [_graph(operation, name) for name in names]
    else:
        which = ("else_branch", "then_branch")
        branches = [_function(operation, name) for name in which]
    fixed = known.value(chosen)
    if fixed is not None:
        branches = [branches[int(fixed)]]
    counts = {_inside(branch, arguments, known) for branch in branches}
    if len(counts) > 1:
        raise UncountableError("it runs one of several branches, whose costs differ")
    return counts.pop()


def _loop(operation: Any, known: KnownValues) -> int:
    body, condition = (_function(operation, which) for which in ("body", "cond"))
    # What stays the same in every iteration.
    given = {
        read.name: functools.partial(known.value, outside)
        for read, written, outside in zip(
            body.inputs, body.outputs, operation.inputs, strict=True
        )
        if _source(written) is read
    }
    each = count(upstream(body.outputs), KnownValues(given))
    if not each:
        return 0
    number = iterations(condition, body, lambda i: known.value(operation.inputs[i]))
    if number is None:
        raise UncountableError("it runs a loop whose length depends on the data")
    return each * number


def _inside(graph: Any, arguments: Iterable[Any], known: KnownValues) -> int:
    """The multiply-adds of a function called with `arguments`."""
    given = {
        inside.name: functools.partial(known.value, outside)
        for inside, outside in zip(graph.inputs, arguments, strict=True)
    }
    return count(upstream(graph.outputs), KnownValues(given))


def _function(operation: Any, attribute: str) -> Any:
    return _graph(operation, operation.get_attr(attribute).name)


def _graph(operation: Any, name: str) -> Any:
    """The graph of a function, for which TensorFlow has no public access."""
    return operation.graph._get_function(name).graph


def _source(tensor: Any) -> Any:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _sizes(tensor: Any) -> list[int]:
    shape = tensor.shape
    if not shape.is_fully_defined():
        raise UnknownSizeError
    return shape.as_list()


def _elements(tensor: Any) -> int:
    return math.prod(_sizes(tensor))


def _matmul(operation: Any) -> int:
    transposed = "transpose_a" if operation.type == "MatMul" else "adj_x"
    left = _sizes(operation.inputs[0])
    return (
        _elements(operation.outputs[0])
        * left[-2 if operation.get_attr(transposed) else -1]
    )


def _einsum(operation: Any) -> int:
    equation = operation.get_attr("equation").decode()
    terms = equation.partition("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        shape = _sizes(tensor)
        before, dots, after = term.partition("...")
        extra = shape[len(before) : len(shape) - len(after)] if dots else []
        # Broadcasting aligns the axes of an ellipsis at the right.
        names = [*before, *(f".{i}" for i in reversed(range(len(extra)))), *after]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values())


def _convolution(operation: Any) -> int:
    """Each number written is a sum over the kernel's pixels and input channels."""
    kernel = _sizes(operation.inputs[1])
    written = _elements(operation.outputs[0])
    return int(written * math.prod(kernel[:-1]) * _inside_picture(operation))


def _depthwise(operation: Any) -> int:
    kernel = _sizes(operation.inputs[1])
    written = _elements(operation.outputs[0])
    return int(written * math.prod(kernel[:-2]) * _inside_picture(operation))


def _transposed(operation: Any) -> int:
    """Each number read is multiplied with the kernel's pixels and output channels."""
    _, kernel, read = operation.inputs
    return _elements(read) * math.prod(_sizes(kernel)[:-1])


def _inside_picture(operation: Any) -> Fraction:
    """The share of a convolution's pixels that remain after it.

    TensorFlow runs a dilated convolution on a batch of smaller pictures, which it pads
    to one size; a direct implementation skips the padding.
    """
    tensor = operation.inputs[0]
    while tensor.op.type in _RESHAPING:
        tensor = tensor.op.inputs[0]
    if tensor.op.type != "SpaceToBatchND":
        return Fraction(1)
    (tensor,) = operation.outputs
    while True:
        (reader,) = tensor.consumers()
        if reader.type == "BatchToSpaceND":
            return Fraction(_elements(reader.outputs[0]), _elements(reader.inputs[0]))
        (tensor,) = reader.outputs


def _recurrent(operation: Any) -> int:
    """A layer of cuDNN, in each step of each row: its weights without its biases.

    References:
        cuDNN developer guide, cudnnRNNMode_t: LSTM and GRU have two biases a gate.
    """
    read, state, _, weights, *_ = operation.inputs
    steps, rows, _ = _sizes(read)
    layers, _, units = _sizes(state)
    gates = {b"lstm": 4, b"gru": 3}.get(operation.get_attr("rnn_mode"), 1)
    return steps * rows * (_elements(weights) - 2 * gates * layers * units)


_PRODUCTS: dict[str, Callable[[Any], int]] = {
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Conv2D": _convolution,
    "Conv2DBackpropInput": _transposed,
    "Conv3D": _convolution,
    "Conv3DBackpropInputV2": _transposed,
    "CudnnRNNV3": _recurrent,
    "DepthwiseConv2dNative": _depthwise,
    "Einsum": _einsum,
    "MatMul": _matmul,
}
_CALLS: dict[str, Callable[[Any, KnownValues], int]] = {
    "Case": _branch,
    "If": _branch,
    "PartitionedCall": _call,
    "StatefulPartitionedCall": _call,
    "StatelessCase": _branch,
    "StatelessIf": _branch,
    "StatelessWhile": _loop,
    "While": _loop,
}

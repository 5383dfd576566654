"""Reads Predict requests, refusing what TF Serving refuses; writes answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf.errors import BranchyError
from branchy_tf.serving import wire
from branchy_tf.serving.embedded.refusals import invalid

# One value may stand for a whole tensor. TF Serving fills any shape; here a message of
# a hundred bytes must not cost the memory of two gigabytes.
MOST_FILLED = 2**26


def read_inputs(request: Any, signature: Any) -> dict[str, np.ndarray]:
    """The arrays of a PredictRequest, checked against a SignatureDef.

    Names and dtypes are checked, as in TF Serving; shapes are left to the graph,
    as in TF Serving.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    sent, known = set(request.inputs), set(signature.inputs)
    missing = known - sent - set(signature.defaults)
    if sent - known or missing:
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)}. Sent "
            f"extra: {{{','.join(sorted(sent - known))}}}. Missing but required: "
            f"{{{','.join(sorted(missing))}}}."
        )
    arrays = {}
    for name in sorted(sent):
        proto, info = request.inputs[name], signature.inputs[name]
        if proto.dtype != info.dtype:
            raise invalid(
                f"Expects {name} to be {tf.as_dtype(info.dtype).name} but "
                f"{_dtype_name(proto.dtype)} is provided"
            )
        arrays[name] = _parse(proto, name)
    return arrays


def _parse(proto: Any, name: str) -> np.ndarray:
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"tensor parsing error: {name}: the shape is not fully defined")
    try:
        dtype = wire.dtype_of(proto.dtype)
    except BranchyError:
        dtype = None  # such as strings, which lie in another field
    size = tf.as_dtype(proto.dtype).size if dtype is None else dtype.itemsize
    wanted = math.prod(sizes) * size
    # A proto can name a shape far larger than the values it carries.
    written = bool(proto.tensor_content) or proto.ByteSize() >= math.prod(sizes)
    if len(sizes) > 254 or wanted > (wire.MOST_BYTES if written else MOST_FILLED):
        raise invalid(f"tensor parsing error: {name}: shape {sizes} is too large")
    if proto.tensor_content and len(proto.tensor_content) != wanted:
        raise invalid(
            f"tensor parsing error: {name}: {len(proto.tensor_content)} bytes for a "
            f"tensor of {wanted}"
        )
    try:
        if proto.tensor_content and dtype is not None:
            # How clients write arrays: nothing is copied.
            return np.frombuffer(proto.tensor_content, dtype).reshape(sizes)
        return tf.make_ndarray(proto)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from None


def read_outputs(request: Any, signature: Any) -> list[str]:
    """The outputs to answer with: the filter's, or all.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    wanted = list(request.output_filter)
    for i, name in enumerate(wanted):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to "
                f"be in the set {{{','.join(sorted(signature.outputs))}}}."
            )
        if name in wanted[:i]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return wanted or sorted(signature.outputs)


def write_output(proto: Any, value: np.ndarray) -> None:
    """Writes an output into an empty TensorProto."""
    if value.dtype.kind in "OSU":
        proto.CopyFrom(tf.make_tensor_proto(value))
    else:
        wire.fill(proto, value)


def _dtype_name(number: int) -> str:
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"DataType {number}"

"""Parses Predict requests as TF Serving does; writes responses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf.serving import wire
from branchy_tf.serving.embedded.statuses import invalid

# The largest tensor, in bytes, whose message has fewer values than its shape: the last
# value is repeated, or zero. TF Serving fills any shape, so 70 bytes can cost 16 GB.
# This limit is the largest message that gRPC accepts by default.
MOST_FILLED = 4 * 2**20
# Bytes of a string in memory.
_ELEMENT = 24


def read_inputs(request: Any, signature: Any) -> dict[str, np.ndarray]:
    """The arrays of a PredictRequest, checked against a SignatureDef.

    As in TF Serving, names and dtypes are checked here and shapes in the graph.

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
    """The tensor as TF Serving reads it, but large only if its values were sent."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    count = math.prod(sizes)
    dtype = tf.as_dtype(proto.dtype)
    # Every value that was sent takes at least one byte.
    filled = proto.ByteSize() < count
    most = MOST_FILLED if filled else wire.MOST_BYTES
    if count * (dtype.size or _ELEMENT) > most:
        sent = f" for a message of {proto.ByteSize():,} bytes" if filled else ""
        raise invalid(f"tensor parsing error: {name}: shape {sizes} is too large{sent}")
    if _is_plain(proto, dtype, sizes):
        # The usual encoding of clients; needs no copy.
        return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(sizes)
    try:
        # As in TF Serving: numbers wrap, and surplus values are dropped.
        return tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    except (tf.errors.OpError, NotImplementedError) as error:
        reason = str(error).partition("} ")[2] or str(error)
        raise invalid(f"tensor parsing error: {name}: {reason[:300]}") from None


def _is_plain(proto: Any, dtype: tf.DType, sizes: list[int]) -> bool:
    """Whether the content is the array's memory."""
    return (
        min(sizes, default=1) > 0
        and len(sizes) <= 32  # the limit of NumPy 1
        and (dtype.is_integer or dtype.is_floating)
        and len(proto.tensor_content) == math.prod(sizes) * dtype.size
    )


def read_outputs(request: Any, signature: Any) -> list[str]:
    """The requested outputs: the filter's, or all.

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

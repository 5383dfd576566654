"""Codecs: the form in which features travel between units, inside the graph.

| codec | bytes per number | error |
| --- | --- | --- |
| `uint8` | 1, and 8 for each channel of each row | 1/510 of the channel's range |
| `float16` | 2 | 2^-11 relative, at most 65504 |
| `none` | the dtype's own | none |

Each row is encoded on its own, so its features do not depend on the rows beside it.
Integers and booleans travel as they are. NaN and infinity arrive as NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from branchy_tf import checks
from branchy_tf.errors import BranchyError

CODECS = ("uint8", "float16", "none")
_STEPS = 255
_MOST_FLOAT16 = 65504.0


class Codec:
    """Encodes and decodes the tensors at one cut.

    Args:
        name: one of `CODECS`.
        tensors: the tensors at the cut, with shape and dtype; batch first.
        names: their names; parts of a tensor are named after it.

    Attributes:
        specs: the specs of the encoded tensors, in order.

    Raises:
        BranchyError: an unknown codec, or a tensor of unknown size.
    """

    def __init__(self, name: str, tensors: Sequence[Any], names: Sequence[str]) -> None:
        checks.one_of("codec", name, CODECS)
        self._codecs = [
            _codec(name, key, tuple(tensor.shape), tf.as_dtype(tensor.dtype))
            for key, tensor in zip(names, tensors, strict=True)
        ]
        self.specs = [spec for codec in self._codecs for spec in codec.specs]

    def encode(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors at the cut, encoded as `specs`."""
        return [
            part
            for codec, tensor in zip(self._codecs, tensors, strict=True)
            for part in codec.encode(tensor)
        ]

    def decode(self, parts: Sequence[Any]) -> list[Any]:
        """The tensors at the cut from their encoded parts."""
        found, rest = [], list(parts)
        for codec in self._codecs:
            count = len(codec.specs)
            found.append(codec.decode(*rest[:count]))
            rest = rest[count:]
        return found


def _codec(codec: str, name: str, shape: tuple, dtype: tf.DType) -> _Plain:
    if len(shape) < 1 or any(side is None for side in shape[1:]):
        raise BranchyError(
            f"The tensor {name} at the cut has the shape {shape}; expected fixed sizes "
            "after the batch. Build the network for a fixed input size."
        )
    if not dtype.is_floating:
        return _Plain(name, shape, dtype)
    if codec == "uint8" and len(shape) > 1:
        return _Uint8(name, shape, dtype)
    if codec == "float16":
        return _Float16(name, shape, dtype)
    return _Plain(name, shape, dtype)


class _Plain:
    """Sends a tensor as it is; NumPy has no bfloat16, so that travels as float32."""

    specs: list[tf.TensorSpec]

    def __init__(self, name: str, shape: tuple, dtype: tf.DType) -> None:
        self.dtype = dtype
        self.shape = shape
        sent = tf.float32 if dtype == tf.bfloat16 else dtype
        self.specs = [tf.TensorSpec([None, *shape[1:]], sent, name)]

    def encode(self, tensor: Any) -> list[Any]:
        return [tf.cast(tensor, self.specs[0].dtype)]

    def decode(self, *parts: Any) -> Any:
        return tf.cast(parts[0], self.dtype)


class _Float16(_Plain):
    def __init__(self, name: str, shape: tuple, dtype: tf.DType) -> None:
        super().__init__(name, shape, dtype)
        self.specs = [tf.TensorSpec([None, *shape[1:]], tf.float16, name)]

    def encode(self, tensor: Any) -> list[Any]:
        wide = tf.cast(tensor, tf.float32)
        limited = tf.clip_by_value(wide, -_MOST_FLOAT16, _MOST_FLOAT16)
        # Infinity must not become an ordinary number.
        limited = tf.where(tf.math.is_finite(wide), limited, float("nan"))
        return [tf.cast(limited, tf.float16)]


class _Uint8(_Plain):
    """255 steps from the smallest to the largest number of each channel of each row.

    A channel is an entry of the last axis. Tensors without other axes have one range for
    the whole row.
    """

    def __init__(self, name: str, shape: tuple, dtype: tf.DType) -> None:
        super().__init__(name, shape, dtype)
        ranges = [None, shape[-1] if len(shape) > 2 else 1]
        self._axes = list(range(1, len(shape) - 1)) or [1]
        self.specs = [
            tf.TensorSpec([None, *shape[1:]], tf.uint8, name),
            tf.TensorSpec(ranges, tf.float32, f"{name}_low"),
            tf.TensorSpec(ranges, tf.float32, f"{name}_step"),
        ]

    def encode(self, tensor: Any) -> list[Any]:
        values = tf.cast(tensor, tf.float32)
        low = tf.reduce_min(values, axis=self._axes, keepdims=True)
        high = tf.reduce_max(values, axis=self._axes, keepdims=True)
        step = (high - low) / _STEPS
        finite = tf.reduce_all(tf.math.is_finite(values), axis=self._axes, keepdims=True)
        steps = tf.math.divide_no_nan(values - low, step)
        limited = tf.clip_by_value(tf.round(steps), 0.0, float(_STEPS))
        steps = tf.where(finite, limited, 0.0)
        low = tf.where(finite, low, float("nan"))
        flat = [-1, self.specs[1].shape[1]]
        return [
            tf.cast(steps, tf.uint8),
            tf.reshape(low, flat),
            tf.reshape(tf.where(finite, step, 0.0), flat),
        ]

    def decode(self, *parts: Any) -> Any:
        part, low, step = parts
        # [B, C] beside [B, H, W, C].
        shape = [-1, *[1] * len(self._axes), self.specs[1].shape[1]]
        if len(self.shape) == 2:
            shape = [-1, 1]
        values = tf.cast(part, tf.float32) * tf.reshape(step, shape)
        return tf.cast(values + tf.reshape(low, shape), self.dtype)

"""TF Serving's messages, for programs that do not import TensorFlow.

The stubs of tensorflow-serving-api import TensorFlow, which takes a client seconds to
start. protos/*.proto declare the messages that a client and the config files need;
protos/serving.binpb holds them compiled:

    python -m grpc_tools.protoc --proto_path=branchy_tf/serving/protos \
      --descriptor_set_out=branchy_tf/serving/protos/serving.binpb \
      tensorflow.proto serving.proto

They live in their own descriptor pool, so one process can also import
tensorflow-serving-api. Unknown fields pass through, as protobuf does.
"""

from __future__ import annotations

import importlib.resources
import math
from typing import Any

import numpy as np
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

from branchy_tf.errors import BranchyError

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"

AVAILABLE = 30  # ModelVersionStatus.State
MOST_BYTES = 2**31 - 1  # the largest protobuf message


def _load_pool() -> descriptor_pool.DescriptorPool:
    compiled = importlib.resources.files(__package__) / "protos/serving.binpb"
    declared = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for library in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(library.DESCRIPTOR.serialized_pb)
    for file in declared.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _load_pool()


def message_class(name: str) -> Any:
    """The class of a message, e.g. `message_class("tensorflow.TensorProto")`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


TensorProto = message_class("tensorflow.TensorProto")
SignatureDef = message_class("tensorflow.SignatureDef")
SignatureDefMap = message_class("tensorflow.serving.SignatureDefMap")
PredictRequest = message_class("tensorflow.serving.PredictRequest")
PredictResponse = message_class("tensorflow.serving.PredictResponse")
GetModelMetadataRequest = message_class("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = message_class("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = message_class("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = message_class("tensorflow.serving.GetModelStatusResponse")

# {DataType: (NumPy dtype, the field with its values when tensor_content is empty)}.
_DTYPES = {
    1: ("float32", "float_val"),
    2: ("float64", "double_val"),
    3: ("int32", "int_val"),
    4: ("uint8", "int_val"),
    5: ("int16", "int_val"),
    6: ("int8", "int_val"),
    9: ("int64", "int64_val"),
    10: ("bool", "bool_val"),
    17: ("uint16", "int_val"),
    19: ("float16", "half_val"),
    22: ("uint32", "uint32_val"),
    23: ("uint64", "uint64_val"),
}
_NUMBERS = {np.dtype(name): number for number, (name, _) in _DTYPES.items()}


def dtype_of(number: int) -> np.dtype:
    """The NumPy dtype of a DataType.

    Raises:
        BranchyError: NumPy has no such dtype.
    """
    if number not in _DTYPES:
        raise BranchyError(
            f"A served tensor has DataType {number}, which NumPy lacks. Export with an "
            "--input_dtype such as uint8 or float32."
        )
    return np.dtype(_DTYPES[number][0])


def number_of(dtype: Any) -> int:
    """The DataType of a NumPy dtype."""
    return _NUMBERS[np.dtype(dtype)]


def shape_of(proto: Any) -> tuple[int, ...]:
    """The sizes in a TensorShapeProto; -1 means any size."""
    return tuple(dim.size for dim in proto.dim)


def fill(proto: Any, array: np.ndarray) -> None:
    """Writes a numeric array into an empty TensorProto."""
    proto.dtype = number_of(array.dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = np.ascontiguousarray(array).tobytes()


def to_array(proto: Any) -> np.ndarray:
    """The array in a TensorProto, in any of its encodings.

    Raises:
        ValueError: an unknown dtype, or values that do not match the shape.
    """
    dtype, field = dtype_of(proto.dtype), _DTYPES.get(proto.dtype, ("", ""))[1]
    shape = shape_of(proto.tensor_shape)
    # A few bytes can declare a shape larger than memory, and -1 would fit any.
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"no message holds a tensor of shape {shape}")
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape).copy()
    # Halves travel as their bits.
    kind = np.uint16 if field == "half_val" else dtype
    values = np.array(getattr(proto, field), kind).view(dtype)
    if not values.size:
        return np.zeros(shape, dtype)
    # TensorFlow omits trailing values that repeat.
    missing = max(math.prod(shape) - values.size, 0)
    return np.pad(values, (0, missing), mode="edge").reshape(shape)

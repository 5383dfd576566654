"""TF Serving's messages without TensorFlow.

The stubs of tensorflow-serving-api import TensorFlow, seconds of a client's
start. A client needs a dozen messages; their field numbers and types are
declared here, in a descriptor pool of its own, so that both can live in one
process. Unknown fields pass through, as protobuf does.

References:
    tensorflow/core/framework/{tensor,tensor_shape}.proto,
    tensorflow/core/protobuf/meta_graph.proto and
    tensorflow_serving/apis/{model,predict,get_model_metadata,
    get_model_status}.proto.
"""

from __future__ import annotations

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
MOST_BYTES = 2**31 - 1  # what one message can hold

# {message: {field: (number, type)}}. A type is a scalar, an enum (whose numbers
# travel as int32), a message, "repeated T" or "map T", from strings to T.
_MESSAGES: dict[str, dict[str, dict[str, tuple[int, str]]]] = {
    "tensorflow": {
        "Dim": {"size": (1, "int64"), "name": (2, "string")},
        "TensorShapeProto": {
            "dim": (2, "repeated tensorflow.Dim"),
            "unknown_rank": (3, "bool"),
        },
        "TensorProto": {
            "dtype": (1, "enum"),
            "tensor_shape": (2, "tensorflow.TensorShapeProto"),
            "version_number": (3, "int32"),
            "tensor_content": (4, "bytes"),
            "float_val": (5, "repeated float"),
            "double_val": (6, "repeated double"),
            "int_val": (7, "repeated int32"),
            "string_val": (8, "repeated bytes"),
            "int64_val": (10, "repeated int64"),
            "bool_val": (11, "repeated bool"),
            "half_val": (13, "repeated int32"),
            "uint32_val": (16, "repeated uint32"),
            "uint64_val": (17, "repeated uint64"),
        },
        "TensorInfo": {
            "name": (1, "string"),
            "dtype": (2, "enum"),
            "tensor_shape": (3, "tensorflow.TensorShapeProto"),
        },
        "SignatureDef": {
            "inputs": (1, "map tensorflow.TensorInfo"),
            "outputs": (2, "map tensorflow.TensorInfo"),
            "method_name": (3, "string"),
            "defaults": (4, "map tensorflow.TensorProto"),
        },
    },
    "tensorflow.serving": {
        "ModelSpec": {
            "name": (1, "string"),
            "version": (2, "google.protobuf.Int64Value"),
            "signature_name": (3, "string"),
            "version_label": (4, "string"),
        },
        "PredictRequest": {
            "model_spec": (1, "tensorflow.serving.ModelSpec"),
            "inputs": (2, "map tensorflow.TensorProto"),
            "output_filter": (3, "repeated string"),
        },
        "PredictResponse": {
            "outputs": (1, "map tensorflow.TensorProto"),
            "model_spec": (2, "tensorflow.serving.ModelSpec"),
        },
        "SignatureDefMap": {"signature_def": (1, "map tensorflow.SignatureDef")},
        "GetModelMetadataRequest": {
            "model_spec": (1, "tensorflow.serving.ModelSpec"),
            "metadata_field": (2, "repeated string"),
        },
        "GetModelMetadataResponse": {
            "model_spec": (1, "tensorflow.serving.ModelSpec"),
            "metadata": (2, "map google.protobuf.Any"),
        },
        "GetModelStatusRequest": {"model_spec": (1, "tensorflow.serving.ModelSpec")},
        "StatusProto": {"error_code": (1, "enum"), "error_message": (2, "string")},
        "ModelVersionStatus": {
            "version": (1, "int64"),
            "state": (2, "enum"),
            "status": (3, "tensorflow.serving.StatusProto"),
        },
        "GetModelStatusResponse": {
            "model_version_status": (1, "repeated tensorflow.serving.ModelVersionStatus"),
        },
    },
}  # fmt: skip


def build_pool(
    declared: dict[str, dict[str, dict[str, tuple[int, str]]]],
) -> descriptor_pool.DescriptorPool:
    """A pool of the messages declared: `{package: {message: {field: ...}}}`."""
    pool = descriptor_pool.DescriptorPool()
    imported = []
    for library in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(library.DESCRIPTOR.serialized_pb)
        imported.append(library.DESCRIPTOR.name)
    for package, messages in declared.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"{package}.proto", package=package, syntax="proto3", dependency=imported
        )
        for name, fields in messages.items():
            message = file.message_type.add(name=name)
            for field, (number, kind) in fields.items():
                _add_field(message, field, number, kind, f"{package}.{name}")
        pool.AddSerializedFile(file.SerializeToString())
        imported.append(file.name)
    return pool


def _add_field(message: Any, name: str, number: int, kind: str, owner: str) -> None:
    field = message.field.add(name=name, number=number, label=1)
    container, _, kind = kind.rpartition(" ")
    if container:
        field.label = 3
    if container == "map":
        # A map is a repeated message of key and value, named after the field.
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string", "")
        _add_field(entry, "value", 2, kind, "")
        kind = f"{owner}.{entry.name}"
    if "." in kind:
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{kind}"
    else:
        scalar = "INT32" if kind == "enum" else kind.upper()
        field.type = getattr(field, f"TYPE_{scalar}")


_POOL = build_pool(_MESSAGES)


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

# DataType by number: numpy's dtype, and the field that holds its values where
# tensor_content does not.
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
    """Numpy's dtype for a DataType.

    Raises:
        BranchyError: numpy has no such dtype.
    """
    if number not in _DTYPES:
        raise BranchyError(
            f"A served tensor has DataType {number}, which numpy lacks. Export with an "
            "--input_dtype such as uint8 or float32."
        )
    return np.dtype(_DTYPES[number][0])


def shape_of(proto: Any) -> tuple[int, ...]:
    """The sizes in a TensorShapeProto; -1 where any size will do."""
    return tuple(dim.size for dim in proto.dim)


def fill(proto: Any, array: np.ndarray) -> None:
    """Writes a numeric array into an empty TensorProto."""
    proto.dtype = _NUMBERS[array.dtype]
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = np.ascontiguousarray(array).tobytes()


def to_array(proto: Any) -> np.ndarray:
    """The array in a TensorProto, whichever way its values are written.

    Raises:
        ValueError: a dtype not known here, or values that do not fill the shape.
    """
    dtype, field = dtype_of(proto.dtype), _DTYPES.get(proto.dtype, ("", ""))[1]
    shape = shape_of(proto.tensor_shape)
    # A few bytes can name a shape that no memory holds, and -1 would fit any.
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"no message holds a tensor of shape {shape}")
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape).copy()
    # Halves travel as their bits.
    kind = np.uint16 if field == "half_val" else dtype
    values = np.array(getattr(proto, field), kind).view(dtype)
    if not values.size:
        return np.zeros(shape, dtype)
    # Trailing equal values may be left out.
    missing = max(math.prod(shape) - values.size, 0)
    return np.pad(values, (0, missing), mode="edge").reshape(shape)

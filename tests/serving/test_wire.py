from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: F401

from branchy_tf.errors import BranchyError
from branchy_tf.serving import wire

PROTOS = pathlib.Path(wire.__file__).parent / "protos"
COMPILED = descriptor_pb2.FileDescriptorSet.FromString(
    (PROTOS / "serving.binpb").read_bytes()
)
DECLARED = [
    f"{file.package}.{message.name}"
    for file in COMPILED.file
    for message in file.message_type
]
# Config messages that tensorflow-serving-api leaves out; test_configs checks them.
UNSHIPPED = {
    f"tensorflow.serving.{name}"
    for name in (
        "BatchingParameters", "MonitoringConfig", "PrometheusConfig", "SSLConfig"
    )
}  # fmt: skip
ARRAYS = {
    "float32": np.array([[0.1, -2.5, 3.0], [np.inf, np.nan, 0.0]], np.float32),
    "float64": np.array([0.1, -1e300]),
    "float16": np.array([[0.1, -2.5], [np.inf, 65504]], np.float16),
    "int32": np.array([[[-(2**31)], [2**31 - 1]]], np.int32),
    "uint8": np.arange(256, dtype=np.uint8).reshape(16, 4, 4, 1),
    "int16": np.array([-(2**15), 2**15 - 1], np.int16),
    "int8": np.array([-128, 127], np.int8),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "bool": np.array([[True, False], [False, True]]),
    "uint16": np.array([0, 2**16 - 1], np.uint16),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 2**64 - 1], np.uint64),
}


def kind(field):
    message = descriptor_pb2.DescriptorProto()
    field.containing_type.CopyToProto(message)
    (proto,) = (found for found in message.field if found.name == field.name)
    # An enum travels as an int32 does.
    enum = proto.type == proto.TYPE_ENUM
    found = [proto.number, proto.TYPE_INT32 if enum else proto.type, proto.label]
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return [*found, "map", *map(kind, field.message_type.fields)]
        found.append(field.message_type.full_name)
    return found


def ours(message):
    """The same message, read by our class."""
    return wire.message_class(message.DESCRIPTOR.full_name).FromString(
        message.SerializeToString()
    )


@pytest.mark.parametrize("name", sorted({*DECLARED} - UNSHIPPED))
def test_fields_are_those_of_tensorflow_serving_api(name):
    theirs = descriptor_pool.Default().FindMessageTypeByName(name)
    for field in wire.message_class(name).DESCRIPTOR.fields:
        assert kind(field) == kind(theirs.fields_by_name[field.name]), field.name


def test_compiled_messages_match_their_declarations(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles .proto files")
    made = tmp_path / "serving.binpb"
    names = [file.name for file in COMPILED.file]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}",
         f"--descriptor_set_out={made}", *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in PROTOS.glob("*.proto")} == set(names)
    assert descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()) == COMPILED


ONE_PROCESS = ["branchy_tf.serving.configs", "tensorflow_serving.apis.predict_pb2"]


@pytest.mark.parametrize("order", [ONE_PROCESS, ONE_PROCESS[::-1]])
def test_shares_a_process_with_tensorflow_serving_api(order):
    code = f"""
import importlib
for name in {order}:
    importlib.import_module(name)
from branchy_tf.serving import wire
from tensorflow_serving.apis import predict_pb2
request = wire.PredictRequest()
request.model_spec.name = "lenet"
print(predict_pb2.PredictRequest.FromString(request.SerializeToString()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'name: "lenet"' in done.stdout


def test_methods_are_those_of_tensorflow_serving_api():
    class Channel:
        def unary_unary(self, path, *_, **__):
            return path

    predictions = prediction_service_pb2_grpc.PredictionServiceStub(Channel())
    assert predictions.Predict == wire.PREDICT
    assert predictions.GetModelMetadata == wire.GET_MODEL_METADATA
    models = model_service_pb2_grpc.ModelServiceStub(Channel())
    assert models.GetModelStatus == wire.GET_MODEL_STATUS
    states = get_model_status_pb2.ModelVersionStatus
    assert wire.AVAILABLE == states.AVAILABLE


def test_our_request_is_read_by_their_class_and_theirs_by_ours():
    images = ARRAYS["uint8"]
    request = wire.PredictRequest(output_filter=["exit", "score"])
    request.model_spec.name = "lenet"
    request.model_spec.version.value = 0
    request.model_spec.signature_name = "early_exit"
    wire.fill(request.inputs["images"], images)
    wire.fill(request.inputs["thresholds"], ARRAYS["float32"])

    theirs = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert theirs.model_spec.name == "lenet"
    # Zero is a version; none is another thing.
    assert theirs.model_spec.HasField("version")
    assert theirs.model_spec.signature_name == "early_exit"
    assert list(theirs.output_filter) == ["exit", "score"]
    assert set(theirs.inputs) == {"images", "thresholds"}
    np.testing.assert_array_equal(tf.make_ndarray(theirs.inputs["images"]), images)
    assert ours(theirs) == request


def test_their_response_is_read_by_our_class():
    theirs = predict_pb2.PredictResponse()
    theirs.model_spec.name = "lenet"
    theirs.model_spec.version.value = 2**40
    theirs.outputs["exit"].CopyFrom(tf.make_tensor_proto(ARRAYS["int32"]))
    response = ours(theirs)
    assert response.model_spec.version.value == 2**40
    np.testing.assert_array_equal(
        wire.to_array(response.outputs["exit"]), ARRAYS["int32"]
    )
    back = predict_pb2.PredictResponse.FromString(response.SerializeToString())
    assert back == theirs


def test_their_metadata_is_read_by_our_classes():
    packed = get_model_metadata_pb2.SignatureDefMap()
    signature = packed.signature_def["early_exit"]
    signature.method_name = "tensorflow/serving/predict"
    signature.inputs["images"].dtype = tf.uint8.as_datatype_enum
    shape = tf.TensorShape([None, 28, 28, 1])
    signature.inputs["images"].tensor_shape.CopyFrom(shape.as_proto())
    signature.defaults["thresholds"].CopyFrom(tf.make_tensor_proto([[0.5]]))
    theirs = get_model_metadata_pb2.GetModelMetadataResponse()
    theirs.metadata["signature_def"].Pack(packed)

    value = ours(theirs).metadata["signature_def"].value
    (found,) = wire.SignatureDefMap.FromString(value).signature_def.values()
    assert wire.shape_of(found.inputs["images"].tensor_shape) == (-1, 28, 28, 1)
    assert wire.dtype_of(found.inputs["images"].dtype) == np.uint8
    assert wire.to_array(found.defaults["thresholds"]) == 0.5


def test_their_status_is_read_by_our_class():
    theirs = get_model_status_pb2.GetModelStatusResponse()
    status = theirs.model_version_status.add(version=3, state="END")
    status.status.error_code, status.status.error_message = "UNKNOWN", "no such file"
    (found,) = ours(theirs).model_version_status
    assert (found.version, found.state) == (3, 50)
    assert (found.status.error_code, found.status.error_message) == (2, "no such file")


def test_every_dtype_has_an_example_here():
    assert set(ARRAYS) == {name for name, _ in wire._DTYPES.values()}


@pytest.mark.parametrize("name", ARRAYS)
def test_filled_tensors_are_what_tensorflow_reads(name):
    proto = wire.TensorProto()
    wire.fill(proto, ARRAYS[name])
    theirs = tf.make_tensor_proto(0)
    theirs.ParseFromString(proto.SerializeToString())
    read = tf.make_ndarray(theirs)
    assert read.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(read, ARRAYS[name])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("how", ["content", "all values", "first value", "none"])
def test_tensors_are_read_as_tensorflow_reads_them(name, how):
    array = ARRAYS[name]
    theirs = tf.make_tensor_proto(array.dtype.type(0), shape=array.shape)
    field = wire._DTYPES[theirs.dtype][1]
    theirs.ClearField(field)
    if how == "content":
        theirs.tensor_content = array.tobytes()
    else:
        values = array.view(np.uint16) if field == "half_val" else array
        count = {"all values": array.size, "first value": 1, "none": 0}[how]
        getattr(theirs, field).extend(values.ravel()[:count].tolist())
    read = wire.to_array(ours(theirs))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, tf.make_ndarray(theirs))
    if how in ("content", "all values"):
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("shape", [(), (0, 28, 28, 1)])
def test_scalars_and_empty_batches_round_trip(shape):
    array = np.ones(shape, np.float32)
    proto = wire.TensorProto()
    wire.fill(proto, array)
    assert wire.to_array(proto).shape == shape


def test_parsed_arrays_are_writable():
    proto = wire.TensorProto()
    wire.fill(proto, np.zeros(3, np.float32))
    wire.to_array(proto)[:] = 1


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"tensor_content": b"123"}, "multiple of element size"),
        ({"tensor_content": b"1234" * 3}, r"size 3 into shape \(2,\)"),
        ({"float_val": [1, 2, 3]}, r"size 3 into shape \(2,\)"),
        ({"dtype": 7, "string_val": [b"a", b"b"]}, "DataType 7, which NumPy lacks"),
        ({"dtype": 9999}, "DataType 9999, which NumPy lacks"),
        (
            {"tensor_shape": {"dim": [{"size": -1}]}, "tensor_content": b"1234" * 2},
            r"no message holds a tensor of shape \(-1,\)",
        ),
        (
            {"tensor_shape": {"dim": [{"size": 2**40}]}},
            r"no message holds a tensor of shape \(1099511627776,\)",
        ),
    ],
)
def test_rejects_tensors_that_do_not_match_their_shape(broken, expected):
    shape = {"dim": [{"size": 2}]}
    proto = wire.TensorProto(**({"dtype": 1, "tensor_shape": shape} | broken))
    with pytest.raises(ValueError, match=expected):
        wire.to_array(proto)


def test_names_dtypes_that_numpy_lacks():
    with pytest.raises(BranchyError, match="DataType 14"):
        wire.dtype_of(tf.bfloat16.as_datatype_enum)


def test_client_starts_without_tensorflow():
    code = """
import sys, time
start = time.perf_counter()
from branchy_tf.serving import EarlyExitClient
EarlyExitClient("localhost:1", model="m").close()
print(time.perf_counter() - start)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seconds, modules = done.stdout.splitlines()
    heavy = {"tensorflow", "tensorflow_serving", "keras", "scipy", "matplotlib"}
    heavy |= {"prometheus_client"}
    assert not heavy & set(modules.split())
    # TensorFlow alone takes longer.
    assert float(seconds) < 3

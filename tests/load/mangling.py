"""Generates malformed requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import servers
import tensorflow as tf
from google.protobuf import message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from branchy_tf.serving import wire

Random = np.random.Generator
_SERVICE = "/tensorflow.serving.PredictionService/"
_EXAMPLES = {
    _SERVICE + "Classify": classification_pb2.ClassificationRequest,
    _SERVICE + "Regress": regression_pb2.RegressionRequest,
}
_CLASSES = {
    **_EXAMPLES,
    wire.PREDICT: predict_pb2.PredictRequest,
    wire.GET_MODEL_METADATA: get_model_metadata_pb2.GetModelMetadataRequest,
    wire.GET_MODEL_STATUS: get_model_status_pb2.GetModelStatusRequest,
}
_SIGNATURES = ("early_exit", "serving_default", "all_exits")
# Small, or far larger than any memory: a server must notice before it allocates, and one
# that does not must not take this machine down.
_SIZES = (-(2**63), -28, -1, 0, 1, 2, 7, 2**33, 2**62)
# Rows that one value stands for: what a server may answer, and 3 GB and more if it does.
_FILLED = (2, 30, 600, 80_000, 400_000, 1_369_568, 2**36)
# Known and unknown DataTypes.
_WHOLE = (-(2**31), -1, 0, 1, 3, 4, 7, 14, 20, 21, 104, 2**31 - 1)
_NUMBERS = (np.nan, -np.inf, np.inf, -1.0, -0.0, 0.0, 1e-45, 0.3, 3e38)


@dataclasses.dataclass(frozen=True)
class Mangled:
    """One request.

    Attributes:
        kind: in what way it is odd.
        content: its bytes.
        method: where it goes.
    """

    kind: str
    content: bytes
    method: str = wire.PREDICT

    def parsed(self) -> Any:
        """The message, or None if the bytes do not parse."""
        try:
            return _CLASSES[self.method].FromString(self.content)
        except (KeyError, message.DecodeError):
            return None


def make(images: np.ndarray, number: int) -> Mangled:
    """Request `number`, reproducibly; the kinds take turns."""
    random = np.random.default_rng(number)
    kind = list(_KINDS)[number % len(_KINDS)]
    made = _KINDS[kind](_valid(images, random), random)
    if isinstance(made, Mangled):
        return dataclasses.replace(made, kind=kind)
    content = made if isinstance(made, bytes) else made.SerializeToString()
    return Mangled(kind, content)


def _valid(images: np.ndarray, random: Random) -> Any:
    """A valid request: 1 to 4 images, with or without thresholds."""
    rows = int(random.integers(1, 5))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = servers.MODEL
    request.model_spec.signature_name = str(random.choice(_SIGNATURES))
    batch = images[random.integers(0, len(images), rows)]
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(batch))
    # The default has one row; a batching server requires one per image.
    given = rows > 1 or random.random() < 0.7
    if request.model_spec.signature_name == "early_exit" and given:
        limits = random.gamma(1, 0.5, (rows, 1)).astype(np.float32)
        request.inputs["thresholds"].CopyFrom(tf.make_tensor_proto(limits))
    return request


def _bytes(_: Any, random: Random) -> bytes:
    return random.bytes(int(random.integers(0, 2000)))


def _flipped(request: Any, random: Random) -> bytes:
    content = np.frombuffer(request.SerializeToString(), np.uint8).copy()
    places = random.integers(0, len(content), int(random.integers(1, 9)))
    # Damage to the fields tests more than damage to pixels.
    if random.random() < 0.7:
        places %= 120
    content[places] ^= 1 << random.integers(0, 8, len(places)).astype(np.uint8)
    return content.tobytes()


def _cut(request: Any, random: Random) -> bytes:
    content = request.SerializeToString()
    return content[: int(random.integers(0, len(content)))]


def _joined(request: Any, random: Random) -> bytes:
    other = predict_pb2.PredictRequest()
    _fill_at_random(other, random)
    return request.SerializeToString() + other.SerializeToString()


def _fields(_: Any, random: Random) -> Any:
    request = predict_pb2.PredictRequest()
    _fill_at_random(request, random)
    return request


def _one_field(request: Any, random: Random) -> Any:
    tensor = request.inputs[str(random.choice(list(request.inputs)))]
    fields = [f for f in tensor.DESCRIPTOR.fields if f.message_type is None]
    _fill_field(tensor, fields[int(random.integers(len(fields)))], random)
    return request


def _fill_at_random(request: Any, random: Random) -> None:
    """Random values in every field, sometimes names of the model."""
    if random.random() < 0.8:
        request.model_spec.name = servers.MODEL
    names = ["images", "thresholds", "", "x" * 300, "images\0"]
    for name in random.choice(names, int(random.integers(0, 4))):
        tensor = request.inputs[str(name)]
        for field in tensor.DESCRIPTOR.fields:
            if field.message_type is None and random.random() < 0.4:
                _fill_field(tensor, field, random)
        for size in random.choice(_SIZES, int(random.integers(0, 6))):
            tensor.tensor_shape.dim.add(size=int(size))
        if random.random() < 0.3:
            tensor.tensor_shape.unknown_rank = True
    for field in request.model_spec.DESCRIPTOR.fields:
        if field.message_type is None and random.random() < 0.2:
            _fill_field(request.model_spec, field, random)
    if random.random() < 0.2:
        request.model_spec.version.value = int(random.choice(_SIZES))
    if random.random() < 0.2:
        request.output_filter.append(_text(random))


def _fill_field(owner: Any, field: Any, random: Random) -> None:
    if field.type == field.TYPE_BYTES:
        one = random.bytes(int(random.integers(0, 900)))
    elif field.type == field.TYPE_STRING:
        one = _text(random)
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        one = float(random.choice(_NUMBERS))
    elif field.type == field.TYPE_BOOL:
        one = bool(random.integers(2))
    elif field.type in (field.TYPE_UINT32, field.TYPE_UINT64):
        one = int(random.choice([0, 1, 255, 2**32 - 1]))
    else:
        one = int(
            random.choice([-(2**31), -1, 0, 1, 3, 4, 7, 14, 20, 21, 104, 2**31 - 1])
        )
    try:
        getattr(owner, field.name).extend([one] * int(random.integers(1, 900)))
    except AttributeError:
        setattr(owner, field.name, one)


def _text(random: Random) -> str:
    return "".join(map(chr, random.integers(1, 0xD7FF, int(random.integers(0, 40)))))


def _dtype(request: Any, random: Random) -> Any:
    name = str(random.choice(list(request.inputs)))
    kinds = ["float16", "float32", "float64", "int8", "int32", "int64", "bool", "str"]
    array = tf.make_ndarray(request.inputs[name]).astype(str(random.choice(kinds)))
    request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def _shape(request: Any, random: Random) -> Any:
    tensor = request.inputs[str(random.choice(list(request.inputs)))]
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    for _ in range(int(random.integers(1, 4))):
        size, place = int(random.choice(_SIZES)), int(random.integers(0, len(sizes) + 1))
        if random.random() < 0.3 or place == len(sizes):
            sizes.insert(place, size)
        elif random.random() < 0.2 and len(sizes) > 1:
            sizes.pop(place)
        else:
            sizes[place] = size
    del tensor.tensor_shape.dim[:]
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    if random.random() < 0.3:
        # A single value fills the shape.
        tensor.ClearField("tensor_content")
        (tensor.int_val if tensor.dtype == 4 else tensor.float_val).append(7)
    return request


def _resized(request: Any, random: Random) -> Any:
    """Valid arrays of a wrong size."""
    array = tf.make_ndarray(request.inputs["images"])
    way = int(random.integers(5))
    changed = [
        array[:, ::2],
        array[..., 0],
        array[None],
        array[:0],
        np.repeat(array, 3, -1),
    ]
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(changed[way]))
    return request


def _length(request: Any, random: Random) -> Any:
    tensor = request.inputs[str(random.choice(list(request.inputs)))]
    content = tensor.tensor_content or bytes(4)
    keep = int(random.integers(0, 2 * len(content)))
    tensor.tensor_content = (content * 2)[:keep]
    return request


def _inputs(request: Any, random: Random) -> Any:
    way = int(random.integers(3))
    if way == 0:
        del request.inputs["images"]
    elif way == 1:
        request.inputs[_text(random)].CopyFrom(request.inputs["images"])
    else:
        request.inputs["thresholds"].CopyFrom(request.inputs["images"])
    return request


def _spec(request: Any, random: Random) -> Any:
    way = int(random.integers(5))
    if way == 0:
        request.model_spec.name = _text(random)
    elif way == 1:
        request.model_spec.version.value = int(random.choice([*_SIZES[:6], 2**62]))
    elif way == 2:
        request.model_spec.version_label = _text(random)
    elif way == 3:
        request.ClearField("model_spec")
    else:
        names = ["__saved_model_init_op", "EARLY_EXIT", _text(random)]
        request.model_spec.signature_name = str(random.choice(names))
    return request


def _thresholds(request: Any, random: Random) -> Any:
    """Odd numbers: answered; nothing exits early at NaN or below 0."""
    rows = request.inputs["images"].tensor_shape.dim[0].size
    limits = random.choice(np.float32(_NUMBERS), (rows, 1))
    request.model_spec.signature_name = "early_exit"
    request.inputs["thresholds"].CopyFrom(tf.make_tensor_proto(limits))
    return request


def _threshold_shapes(request: Any, random: Random) -> Any:
    rows = request.inputs["images"].tensor_shape.dim[0].size
    shapes: list = [(), (1,), (rows,), (rows, 2), (rows + 1, 1), (rows, 0), (0, 1)]
    limits = np.full(shapes[int(random.integers(len(shapes)))], 0.3, np.float32)
    request.model_spec.signature_name = "early_exit"
    request.inputs["thresholds"].CopyFrom(tf.make_tensor_proto(limits))
    return request


def _filter(request: Any, random: Random) -> Any:
    names = ["probabilities", "exit", "score", "scores", "logits", ""]
    request.output_filter.extend(
        random.choice(names, int(random.integers(1, 4))).tolist()
    )
    return request


def _elsewhere(request: Any, random: Random) -> Mangled:
    """Calls of other methods, existing or not."""
    ways = [wire.GET_MODEL_METADATA, wire.GET_MODEL_STATUS, *_EXAMPLES]
    method = str(random.choice([*ways, _SERVICE + "Nothing", "/nowhere/Predict"]))
    content = random.bytes(int(random.integers(0, 200)))
    if random.random() < 0.7:
        spec = request.model_spec.SerializeToString()
        content = bytes([10, len(spec)]) + _flipped(request.model_spec, random)
    return Mangled("", content, method)


def _filled(request: Any, random: Random) -> Any:
    """A shape of many rows with one or a few values."""
    tensor = request.inputs[str(random.choice(list(request.inputs)))]
    tensor.tensor_shape.dim[0].size = int(random.choice(_FILLED))
    tensor.ClearField("tensor_content")
    tensor.ClearField("float_val")
    values = [1] * int(random.integers(0, 3))
    (tensor.int_val if tensor.dtype == 4 else tensor.float_val).extend(values)
    return request


def _handles(request: Any, random: Random) -> Any:
    """Types other than numbers, with or without values."""
    tensor = request.inputs[str(random.choice(list(request.inputs)))]
    tensor.dtype = int(random.choice([tf.resource, tf.variant]).as_datatype_enum)
    if random.random() < 0.7:
        tensor.ClearField("tensor_content")
    if random.random() < 0.5:
        tensor.resource_handle_val.add(device="/cpu:0", name=_text(random))
        tensor.variant_val.add(type_name=_text(random), metadata=random.bytes(9))
    return request


def _odd_values(request: Any, random: Random) -> Any:
    """Values that wrap, too many or too few; answered as the engine reads them."""
    name = str(random.choice(list(request.inputs)))
    tensor = request.inputs[name]
    values = tf.make_ndarray(tensor).ravel()
    tensor.ClearField("tensor_content")
    tensor.ClearField("float_val")
    if name == "images":
        turns = random.integers(-3, 4, len(values))
        written = (values.astype(np.int64) + 256 * turns).tolist()
    else:
        written = values.tolist()
    way = int(random.integers(3))
    if way == 0:
        written += written[: int(random.integers(1, 900))]
    elif way == 1:
        written = written[: int(random.integers(0, len(written)))]
    (tensor.int_val if name == "images" else tensor.float_val).extend(written)
    tensor.tensor_shape.unknown_rank = bool(random.integers(2))
    return request


def _no_rows(request: Any, random: Random) -> Any:
    """No rows, but content."""
    if request.model_spec.signature_name == "early_exit":
        # The default has one row, which a batching server would not merge.
        limits = np.zeros((1, 1), np.float32)
        request.inputs["thresholds"].CopyFrom(tf.make_tensor_proto(limits))
    for tensor in request.inputs.values():
        tensor.tensor_shape.dim[0].size = 0
        tensor.tensor_content = random.bytes(int(random.integers(1, 900)))
    return request


def _examples(request: Any, random: Random) -> Mangled:
    """Well-formed calls of methods without a matching signature."""
    method = str(random.choice(list(_EXAMPLES)))
    made = _EXAMPLES[method](model_spec=request.model_spec)
    example = made.input.example_list.examples.add()
    example.features.feature["images"].float_list.value.append(random.random())
    return Mangled("", made.SerializeToString(), method)


_KINDS: dict[str, Callable[[Any, Random], Any]] = {
    "as it should be": lambda request, _: request,
    "random bytes": _bytes,
    "random fields": _fields,
    "a random field": _one_field,
    "flipped bits": _flipped,
    "cut": _cut,
    "two joined": _joined,
    "dtype": _dtype,
    "shape": _shape,
    "size": _resized,
    "content length": _length,
    "inputs": _inputs,
    "model_spec": _spec,
    "odd thresholds": _thresholds,
    "thresholds' shape": _threshold_shapes,
    "output filter": _filter,
    "other methods": _elsewhere,
    "filled": _filled,
    "handles": _handles,
    "odd values": _odd_values,
    "no rows": _no_rows,
    "examples": _examples,
}

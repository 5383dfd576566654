"""Builds requests and parses responses; sends nothing.

The address may belong to another kind of server, so a response that does not hold
exactly what was asked for is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from branchy_tf import checks
from branchy_tf.checks import TensorSpec
from branchy_tf.errors import BranchyError, ServerError
from branchy_tf.results import AllExits, Predictions
from branchy_tf.serving import addresses, wire

EARLY_EXIT, ALL_EXITS, CALIBRATED = "early_exit", "all_exits", "serving_default"
# The output of a cascade that marks rows which a unit failed to answer.
DEGRADED = "degraded"
# The metadata of a cascade that name the unit of each exit.
UNITS = "units"


@dataclasses.dataclass(frozen=True)
class Target:
    """A model on a server.

    Attributes:
        server: host:port.
        model: its name.
        version: default: the version with the label, or the newest.
        label: of a version.
    """

    server: str
    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        """Raises `BranchyError` for invalid arguments."""
        addresses.check_server(self.server)
        checks.text("model", self.model)
        if self.label is not None:
            checks.text("label", self.label)
        if self.version is not None:
            version = checks.whole_number("version", self.version, 0, 2**63 - 1)
            object.__setattr__(self, "version", version)
        if self.version is not None and self.label is not None:
            raise BranchyError(
                f"Received version {self.version} and label {self.label!r}; expected "
                "only one: a label names a version."
            )

    def specify(self, spec: Any, version: int | None = None) -> None:
        """Fills a ModelSpec; `version` overrides the target's version."""
        spec.name = self.model
        if version is None:
            version = self.version
        if version is not None:
            spec.version.value = version
        elif self.label is not None:
            spec.version_label = self.label

    def __str__(self) -> str:
        """The model and its version or label."""
        which = f" version {self.version}" if self.version is not None else ""
        which += f" label {self.label!r}" if self.label is not None else ""
        return f"model {self.model!r}{which}"

    def unexpected(self, why: str) -> ServerError:
        """The error for an unexpected response."""
        return ServerError(
            "INTERNAL",
            f"{self.server} answered with {why}. Is {self.model} an early-exit export?",
        )

    def parse(self, message: Any, data: bytes) -> Any:
        """Parses a message.

        Raises:
            ServerError: the bytes are no such message.
        """
        try:
            return message.FromString(data)
        except DecodeError:
            raise self.unexpected(f"no {message.DESCRIPTOR.name}") from None


@dataclasses.dataclass(frozen=True)
class Signature:
    """The early-exit signature of a served version.

    Attributes:
        version: its number.
        inputs: by name, without the thresholds.
        num_exits: N.
        classes: their number; None if unknown.
        names: of all signatures, sorted.
        thresholds: the N-1 default thresholds; None if the server does not say them.
        units: of a cascade, the unit of each of the N exits; None otherwise.
    """

    version: int
    inputs: Mapping[str, TensorSpec]
    num_exits: int
    classes: int | None
    names: tuple[str, ...]
    # Versions that differ in these alone take the same requests.
    thresholds: tuple[float, ...] | None = dataclasses.field(default=None, compare=False)
    units: tuple[str, ...] | None = dataclasses.field(default=None, compare=False)


def metadata_request(target: Target, version: int | None) -> bytes:
    """A request for the signatures of a version."""
    request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
    target.specify(request.model_spec, version)
    return request.SerializeToString()


def read_signature(target: Target, data: bytes) -> Signature:
    """Parses the response to `metadata_request`.

    Raises:
        BranchyError: the model is not an early-exit export.
        ServerError: an unexpected response.
    """
    response = target.parse(wire.GetModelMetadataResponse, data)
    packed = response.metadata["signature_def"].value
    served = target.parse(wire.SignatureDefMap, packed).signature_def
    names = tuple(sorted(served))
    definition = served.get(EARLY_EXIT, wire.SignatureDef())
    specs = {
        name: TensorSpec(wire.shape_of(info.tensor_shape), wire.dtype_of(info.dtype))
        for name, info in sorted(definition.inputs.items())
    }
    limits = wire.shape_of(definition.inputs["thresholds"].tensor_shape)
    if specs.pop("thresholds", None) is None or len(limits) != 2 or limits[1] < 0:
        raise BranchyError(
            f"Model {target.model!r} on {target.server} has no {EARLY_EXIT} signature "
            f"with thresholds; it has {', '.join(names) or 'none'}. Ask for a model that "
            "branchy_tf.export wrote."
        )
    shape = wire.shape_of(definition.outputs["probabilities"].tensor_shape)
    num_exits = limits[1] + 1
    return Signature(
        version=response.model_spec.version.value,
        inputs=specs,
        num_exits=num_exits,
        classes=shape[-1] if len(shape) == 2 and shape[-1] > 0 else None,
        names=names,
        thresholds=_default_thresholds(definition, num_exits),
        units=_units(response, num_exits),
    )


def _default_thresholds(definition: Any, num_exits: int) -> tuple[float, ...] | None:
    try:
        limits = wire.to_array(definition.defaults["thresholds"])
    except (ValueError, BranchyError):
        return None
    return tuple(limits[0].tolist()) if limits.shape == (1, num_exits - 1) else None


def _units(response: Any, num_exits: int) -> tuple[str, ...] | None:
    try:
        listed = struct_pb2.ListValue.FromString(response.metadata[UNITS].value)
    except DecodeError:
        return None
    names = tuple(value.string_value for value in listed.values)
    return names if len(names) == num_exits else None


def status_request(target: Target) -> bytes:
    """A request for the loaded versions. TF Serving ignores a label here."""
    request = wire.GetModelStatusRequest()
    target.specify(request.model_spec)
    return request.SerializeToString()


def read_status(target: Target, data: bytes) -> int:
    """The newest available version.

    Raises:
        ServerError: none is available; the message says why.
    """
    response = target.parse(wire.GetModelStatusResponse, data)
    ready = [
        status.version
        for status in response.model_version_status
        if status.state == wire.AVAILABLE
    ]
    if ready:
        return max(ready)
    reasons = [
        f"version {status.version}: {' '.join(status.status.error_message.split())}"
        for status in response.model_version_status
        if status.status.error_message
    ]
    raise ServerError(
        "UNAVAILABLE",
        f"{target.server} has no version of {target.model} ready"
        + (f" ({'; '.join(reasons)})." if reasons else ", it is still loading."),
    )


def predict_request(
    target: Target, signature: str, version: int | None, arrays: Mapping[str, np.ndarray]
) -> bytes:
    """A Predict request."""
    request = wire.PredictRequest()
    target.specify(request.model_spec, version)
    request.model_spec.signature_name = signature
    for name, array in arrays.items():
        wire.fill(request.inputs[name], array)
    return request.SerializeToString()


def read_predictions(
    target: Target, response: Any, rows: int, signature: Signature
) -> Predictions:
    """Parses a PredictResponse for `rows` rows.

    Raises:
        ServerError: an unexpected response.
    """
    expected: dict[str, tuple[Any, tuple[int | None, ...]]] = {
        "probabilities": (np.float32, (rows, signature.classes)),
        "exit": (np.int32, (rows,)),
        "score": (np.float32, (rows,)),
    }
    if DEGRADED in response.outputs:
        expected[DEGRADED] = (np.bool_, (rows,))
    probabilities, exits, scores, *marks = _outputs(target, response, expected)
    if exits.size and not 0 <= exits.min() <= exits.max() < signature.num_exits:
        raise target.unexpected(
            f"exits {exits.min()} to {exits.max()}; the model has {signature.num_exits}"
        )
    version = response.model_spec.version.value
    degraded = marks[0] if marks else None
    return Predictions(probabilities, exits, scores, version, degraded)


def read_all_exits(
    target: Target, response: Any, rows: int, signature: Signature
) -> AllExits:
    """Parses a PredictResponse of `all_exits` for `rows` rows.

    Raises:
        ServerError: an unexpected response.
    """
    exits = signature.num_exits
    probabilities, scores = _outputs(
        target,
        response,
        {
            "probabilities": (np.float32, (rows, exits, signature.classes)),
            "scores": (np.float32, (rows, exits)),
        },
    )
    return AllExits(probabilities, scores, response.model_spec.version.value)


def _outputs(
    target: Target,
    response: Any,
    expected: Mapping[str, tuple[Any, tuple[int | None, ...]]],
) -> list[np.ndarray]:
    """The arrays of a response in the order of `expected`: {name: (dtype, shape)}."""
    arrays = []
    for name, (dtype, shape) in expected.items():
        if name not in response.outputs:
            raise target.unexpected(f"no {name}")
        proto = response.outputs[name]
        got = wire.shape_of(proto.tensor_shape)
        wanted = TensorSpec(shape, dtype)
        fits = len(got) == len(shape) and all(
            have == want or (want is None and have > 0)
            for have, want in zip(got, shape, strict=True)
        )
        try:
            array = wire.to_array(proto) if fits else None
        except ValueError:
            array = None
        if array is None or array.dtype != dtype:
            raise target.unexpected(
                f"{name} of shape {got} and DataType {proto.dtype}; expected {wanted}, "
                f"B = {shape[0]}"
            )
        if np.issubdtype(dtype, np.floating) and not np.isfinite(array).all():
            raise target.unexpected(f"{name} that are NaN or infinite")
        arrays.append(array)
    return arrays

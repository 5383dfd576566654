"""Judges a server's responses to malformed requests."""

from __future__ import annotations

from typing import Any

import lab
import numpy as np
import servers
import tensorflow as tf
from mangling import Mangled
from tensorflow_serving.apis import predict_pb2

from branchy_tf.errors import BranchyError
from branchy_tf.results import Predictions
from branchy_tf.serving import wire
from branchy_tf.serving.answers import ExpectedAnswers
from branchy_tf.thresholds import exits_early

# Statuses that a caller can act on; INTERNAL too if the bytes do not parse.
_CLEAR = {
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}
_MUST_BE_ANSWERED = {"as it should be", "odd thresholds", "odd values", "no rows"}
_ANSWERED = {wire.PREDICT, wire.GET_MODEL_METADATA, wire.GET_MODEL_STATUS}


def wrong_refusal(mangled: Mangled, status: str, details: str) -> str | None:
    """The problem with a refusal, or None."""
    if mangled.kind in _MUST_BE_ANSWERED:
        return f"refused what is right: {status} ({details})"
    if not details:
        return f"{status} without a word"
    unreadable = mangled.parsed() is None
    if status in _CLEAR or (status == "INTERNAL" and unreadable):
        return None
    return f"{status} ({details})"


def wrong_answer(mangled: Mangled, content: bytes, pair: lab.Pair) -> str | None:
    """The problem with an answer by version 1, or None."""
    request = mangled.parsed()
    if request is None:
        return "answered bytes that are no request"
    if request.model_spec.name != servers.MODEL or request.model_spec.version_label:
        return f"answered for {request.model_spec}"
    if mangled.method not in _ANSWERED:
        return f"answered {mangled.method}"
    if mangled.method != wire.PREDICT:
        return None
    response = predict_pb2.PredictResponse.FromString(content)
    try:
        return _wrong_outputs(request, response, pair)
    except (BranchyError, KeyError, TypeError, ValueError, tf.errors.OpError) as error:
        return f"answered what cannot be asked: {error!r}"


def _wrong_outputs(request: Any, response: Any, pair: lab.Pair) -> str | None:
    """Compares with the predictor; raises for requests that cannot be answered."""
    spec = request.model_spec
    if spec.HasField("version") and spec.version.value != 1:
        return f"answered for version {spec.version.value}"
    signature = spec.signature_name or "serving_default"
    sent = {name: _tensor(proto) for name, proto in request.inputs.items()}
    if request.inputs["images"].dtype != tf.uint8.as_datatype_enum:
        return "answered images of another dtype"
    images = sent.pop("images")
    probabilities, scores = pair.predictor(1).all_exits(images)
    limits = np.float32([[0.5]])
    if signature == "early_exit" and "thresholds" in sent:
        limits = sent.pop("thresholds")
        if limits.dtype != np.float32 or limits.shape not in ((1, 1), (len(images), 1)):
            return f"answered thresholds {limits.dtype} {limits.shape}"
    if sent:
        return f"answered with inputs that there are not: {list(sent)}"
    found = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    rows = np.arange(len(images))
    every = {"probabilities": probabilities, "scores": scores}
    if signature != "all_exits":
        # Outputs that were not requested count as correct.
        exits = found.get("exit")
        if exits is None:
            exits = np.where(exits_early(scores[:, 0], limits[:, 0]), 0, 1)
        every = {
            "probabilities": probabilities[rows, exits],
            "exit": exits,
            "score": scores[rows, exits],
        }
    if set(found) != (set(request.output_filter) or set(every)):
        return f"answered with {sorted(found)}"
    if signature == "all_exits":
        same = all(np.allclose(found[n], every[n], atol=1e-4) for n in found)
        return None if same else "the wrong answer of all exits"
    every |= found
    answer = Predictions(every["probabilities"], every["exit"], every["score"])
    right = ExpectedAnswers(probabilities, scores).right(answer, rows, limits)
    return None if right.all() else f"the wrong answer with thresholds {limits.tolist()}"


def _tensor(proto: Any) -> np.ndarray:
    """The tensor as the C++ engine reads it, which wraps and drops numbers."""
    dtype = tf.as_dtype(proto.dtype)
    return tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()

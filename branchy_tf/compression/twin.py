"""Rebuilds a described model on tf_keras; for the worker process alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras

from branchy_tf.errors import BranchyError, first_line

# The largest difference of a logit, for logits up to 1; in proportion beyond.
TOLERANCE = 1e-5

# {class of Keras 3: {argument: its name in tf_keras}}.
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}


def build(graph: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> tf_keras.Model:
    """The described model on tf_keras layers, with its weights.

    Raises:
        BranchyError: tf_keras has no such layer, or another one under that name.
    """
    layers = [_layer(entry) for entry in graph["layers"]]
    inputs = [tf_keras.Input(**given) for given in graph["inputs"]]
    tensors = dict(enumerate(inputs))
    for call in graph["calls"]:
        entry = graph["layers"][call["layer"]]
        try:
            outputs = layers[call["layer"]](
                *(_filled(value, tensors) for value in call["args"]),
                **{k: _filled(value, tensors) for k, value in call["kwargs"].items()},
            )
        except Exception as error:  # layers raise any type
            raise _refused(entry, error) from error
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        tensors.update(zip(call["outputs"], outputs, strict=True))
    for number, (layer, entry) in enumerate(zip(layers, graph["layers"], strict=True)):
        own = [key for key in weights if key.startswith(f"{number}.")]
        try:
            layer.set_weights([weights[f"{number}.{i}"] for i in range(len(own))])
        except ValueError as error:
            raise _refused(entry, error) from error
    outputs = {name: tensors[number] for name, number in graph["outputs"].items()}
    return tf_keras.Model(inputs, outputs, name=graph["name"])


def difference(
    model: tf_keras.Model, inputs: Any, expected: np.ndarray, names: list[str]
) -> float:
    """The largest difference to the expected logits, relative to logits above 1.

    Args:
        model: the twin.
        inputs: [n, ...]; a dict by name for several.
        expected: the logits of the original, [n, N, classes].
        names: the names of the N exits.

    Raises:
        BranchyError: it exceeds `TOLERANCE`.
    """
    outputs = model(inputs, training=False)
    logits = np.stack([outputs[name].numpy() for name in names], axis=1)
    scale = max(1.0, float(np.abs(expected).max()))
    found = float(np.abs(logits - expected).max()) / scale
    # Written so that NaN is refused too.
    if not found <= TOLERANCE:
        raise BranchyError(
            f"The network rebuilt on tf_keras differs from the model by {found:.2g} on "
            f"the same rows; expected at most {TOLERANCE:g}. A layer computes something "
            "else in Keras 2, for example hard_sigmoid; replace it."
        )
    return found


def _layer(entry: Mapping[str, Any]) -> tf_keras.layers.Layer:
    if entry["class"] == "Identity":
        # tfmot knows no Identity.
        return tf_keras.layers.Activation("linear", name=entry["name"])
    kind = getattr(tf_keras.layers, entry["class"], None)
    if kind is None:
        raise _refused(entry, AttributeError("tf_keras has no such layer"))
    renamed = _RENAMED.get(entry["class"], {})
    config = {renamed.get(key, key): value for key, value in entry["config"].items()}
    known = {"name", "dtype", "trainable"}
    for base in kind.__mro__:
        known |= inspect.signature(base.__init__).parameters.keys()
    # What Keras 3 added counts only if it changes the logits, which are compared.
    config = {key: value for key, value in config.items() if key in known}
    try:
        return kind.from_config(config)
    except Exception as error:  # layers raise any type
        raise _refused(entry, error) from error


def _filled(value: Any, tensors: Mapping[int, Any]) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]]
    if isinstance(value, list):
        return [_filled(item, tensors) for item in value]
    return value


def _refused(entry: Mapping[str, Any], error: Exception) -> BranchyError:
    return BranchyError(
        f"Layer {entry['name']!r}, a {entry['class']}, cannot be rebuilt on tf_keras: "
        f"{type(error).__name__}, {first_line(error)}"
    )

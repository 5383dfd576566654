"""Reads the places of exits from a `.keras` file.

Keras loads weights by layer name. Exits have the same names wherever they are, so a
head could get the weights of a head at another place.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from branchy_tf.errors import BranchyError
from branchy_tf.files import keras_files


def check_places(model: keras.Model, path: pathlib.Path) -> None:
    """Raises `BranchyError` if the exits of a `.keras` file are at other layers.

    Args:
        model: the multi-exit model that will receive the weights.
        path: the file. A file without a functional model is not checked.
    """
    try:
        config = keras_files.read_config(path)["config"]
        if not isinstance(config.get("output_layers"), Mapping):
            return
        theirs = _places(config)
    except Exception:
        # A damaged file may raise anything here. Keras reports it when loading.
        return
    ours = _places(model.get_config())
    if ours != theirs:
        raise BranchyError(
            f"The exits in {path} are at other layers than those of {model.name}: "
            f"{_shown(theirs)} in the file, {_shown(ours)} in the model. Build the model "
            "with the same `exits`."
        )


def _shown(places: Mapping[str, str]) -> str:
    return ", ".join(f"{name} at {layer}" for name, layer in places.items()) or "none"


def _places(config: Mapping[str, Any]) -> dict[str, str]:
    """{early exit: the last layer of the trunk that it reads}, in exit order."""
    read = {
        layer["name"]: set(_layers_read(layer["inbound_nodes"]))
        for layer in config["layers"]
    }
    # exit_10 comes after exit_9.
    outputs = config["output_layers"]
    *early, final = sorted(outputs, key=lambda name: (len(name), name))
    trunk = _ancestors(read, outputs[final][0])
    order = [layer["name"] for layer in config["layers"]]
    return {
        name: max(
            _ancestors(read, outputs[name][0]) & trunk,
            key=order.index,
            default="no layer",
        )
        for name in early
    }


def _ancestors(read: Mapping[str, set[str]], name: str) -> set[str]:
    """All layers that layer `name` depends on."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = read.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def _layers_read(part: Any) -> Iterator[str]:
    """The layers whose tensors occur in the serialised arguments of a call."""
    if isinstance(part, Mapping):
        if part.get("class_name") == "__keras_tensor__":
            yield part["config"]["keras_history"][0]
        else:
            for value in part.values():
                yield from _layers_read(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _layers_read(value)

"""Builds the model that flags name, whatever it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras

from branchy_tf import checks, files, zoo
from branchy_tf.errors import BranchyError
from branchy_tf.files import functions, keras_files
from branchy_tf.models.calling import call_builder
from branchy_tf.models.exits import with_exits
from branchy_tf.zoo import registry

_KINDS = "the name of a zoo model, the path of a .keras file, or module:function"
# Files that Keras or TensorFlow once wrote, and whose message says what to do.
_FILES = (".keras", ".h5", ".hdf5", ".pb")


def build(
    model: str,
    arguments: Mapping[str, Any] = MappingProxyType({}),
    offered: Mapping[str, Any] = MappingProxyType({}),
    weights: str | None = None,
    exits: str | None = None,
) -> keras.Model:
    """Builds or loads a model with early exits.

    A model from a file or a function keeps the weights that it comes with; only the
    heads that `exits` adds are new.

    Args:
        model: the name of a zoo model, the path of a `.keras` file, or
            module:function, a callable that returns a Keras model.
        arguments: keyword arguments of the zoo's builder or of the function.
        offered: arguments that come from the data set, such as `classes`. `arguments`
            go first. A function receives only those it has parameters for, a file none.
        weights: the weights of a zoo model, a tag or a file; for a function, its
            argument `weights`.
        exits: the early exits to add to a model that has none, see
            `branchy_tf.exits.parse_exits`.

    Returns:
        A multi-exit model.

    Raises:
        BranchyError: there is no such model, it cannot be built or loaded, or the exits
            do not fit it.

    Example:

    ```python
    build("my_models:net", {"width": 32}, {"classes": 10}, exits="auto:2")
    build("trained.keras", exits="block_3=conv(64)")
    ```
    """
    if not isinstance(model, str):
        raise BranchyError(f"`model` must be {_KINDS}. Received {checks.shown(model)}.")
    if functions.names_function(model):
        given = dict(arguments)
        if weights is not None:
            given["weights"] = weights
        return with_exits(call_builder(model, given, offered), exits)
    if is_file(model):
        _check_alone(model, arguments, weights)
        return with_exits(_load(model), exits)
    if model not in zoo.list_models():
        try:
            registry.get_builder(model)
        except BranchyError as error:
            raise BranchyError(f"{error} --model takes {_KINDS}.") from None
    if "weights" in arguments:
        raise BranchyError("--model_args has weights; pass --weights instead.")
    built = zoo.build(model, **dict(offered) | dict(arguments), weights=weights)
    return with_exits(built, exits)


def is_file(model: str) -> bool:
    """Whether a model is given as the path of a file, which need not exist."""
    return model.endswith(_FILES) or "/" in model


def _load(model: str) -> keras.Model:
    path = files.path(model)
    if not path.exists():
        raise BranchyError(f"There is no model file {path}.")
    policy = keras.config.dtype_policy().name
    if policy != "float32":
        raise BranchyError(
            f"{path} has a precision of its own, so {policy} cannot be used with it. "
            "Leave --precision out, or build the model in a function: "
            "--model=module:function."
        )
    return keras_files.load_keras_file(path)


def _check_alone(model: str, arguments: Mapping[str, Any], weights: str | None) -> None:
    if arguments:
        raise BranchyError(
            f"--model_args has {', '.join(arguments)}, but {model} is a file, which "
            "holds a finished model. Leave --model_args out, or pass "
            "--model=module:function."
        )
    if weights is not None:
        raise BranchyError(
            f"--weights={weights} cannot be used with {model}, which holds its own "
            "weights. Leave --weights out."
        )

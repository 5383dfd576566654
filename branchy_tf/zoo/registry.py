"""The models by name, and what every builder checks and loads."""

from __future__ import annotations

import difflib
import inspect
import numbers
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from branchy_tf import files, graphs
from branchy_tf.errors import BranchyError
from branchy_tf.exits import Head
from branchy_tf.thresholds import Calibration
from branchy_tf.zoo import packaged, saved_exits

Builder = Callable[..., keras.Model]

_BUILDERS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
    """Enters a builder under its function name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """Names of the builders, sorted."""
    return sorted(_BUILDERS)


def list_weights(model: str | None = None) -> list[str]:
    """Tags of the packaged weights of one model, or "model/tag" of all."""
    if model is not None:
        get_builder(model)
        return sorted(packaged.every(model))
    return [f"{name}/{tag}" for name in list_models() for tag in list_weights(name)]


def calibration(model: str, tag: str) -> Calibration:
    """The calibrated thresholds that come with packaged weights.

    Args:
        model: one of `list_models()`.
        tag: one of `list_weights(model)`.

    Returns:
        A `Calibration`: its `.policy`, and what that does on the validation split.

    Raises:
        BranchyError: no such weights, or a damaged file.

    Example:

    ```python
    model = branchy_lenet(weights="mnist")
    EarlyExitPredictor(model, calibration("branchy_lenet", "mnist"))
    ```
    """
    get_builder(model)
    tags = packaged.every(model)
    if tag not in tags:
        raise BranchyError(
            f"Unknown weights {tag!r} for {model}. Known: "
            f"{', '.join(sorted(tags)) or 'none ships'}."
        )
    tags[tag].check()
    path = tags[tag].thresholds
    return Calibration.read(path, files.read_json(path)["exits"])


def get_builder(name: str) -> Builder:
    """The builder called `name`.

    Raises:
        BranchyError: there is none; the message has the nearest names.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise BranchyError(
            f"Unknown model {name!r}.{hint} Known: {', '.join(list_models())}."
        )
    return _BUILDERS[name]


def build(model: str, /, **arguments: Any) -> keras.Model:
    """Builds a model by name.

    Args:
        model: one of `list_models()`.
        **arguments: of that builder.

    Raises:
        BranchyError: unknown name or argument.

    Example:

    ```python
    build("branchy_lenet", classes=47)
    ```
    """
    builder = get_builder(model)
    known = list(inspect.signature(builder).parameters)
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise BranchyError(
            f"{model} has no argument {unknown[0]!r}. It takes: {', '.join(known)}."
        )
    return builder(**arguments)


def check_input_shape(input_shape: Any, minimum: int) -> None:
    """Raises unless it is (height, width, channels), each side >= minimum."""
    shape = input_shape if isinstance(input_shape, (tuple, list)) else ()
    whole = len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or min(shape[:2]) < minimum:
        raise BranchyError(
            f"`input_shape` must be (height, width, channels), channels last, with "
            f"height and width of at least {minimum}. Received {input_shape}."
        )
    graphs.check_image_data_format()


def check_classes(classes: Any) -> None:
    """Raises unless it is a whole number of at least 2."""
    if not isinstance(classes, numbers.Integral) or classes < 2:
        raise BranchyError(
            f"`classes` must be a whole number of at least 2. Received {classes!r}."
        )


def choose_exits(
    given: Any, places: Sequence[str], heads: Callable[[str], Mapping[str, Head]]
) -> Mapping[str, Head]:
    """The heads that a builder's argument `exits` asks for.

    Args:
        given: a name, `{layer name: head}`, or None for the first name known.
        places: the names known.
        heads: the heads of a name.

    Raises:
        BranchyError: neither of the two.
    """
    if isinstance(given, Mapping):
        return given
    given = places[0] if given is None else given
    if given not in places:
        raise BranchyError(
            f"`exits` must be one of {', '.join(places)}, or {{layer name: head}}. "
            f"Received {given!r}."
        )
    return heads(given)


def settle(model: str, weights: str | None, **asked: Any) -> dict[str, Any]:
    """The arguments of a builder, as far as a tag does not fix them.

    Args:
        model: name of the builder.
        weights: None, a tag or a path.
        **asked: what the builder was called with; None where it was not asked.

    Returns:
        `asked`, with the tag's own values in place.

    Raises:
        BranchyError: something else is asked than the tag's weights are for.
    """
    if not isinstance(weights, (str, os.PathLike, type(None))):
        raise BranchyError(
            f"`weights` must be None, a tag or a path. Received {weights!r}."
        )
    tag = packaged.every(model).get(weights or "")
    if tag is None:
        return asked
    for name, fixed in tag.arguments.items():
        given = asked[name]
        given = tuple(given) if isinstance(given, list) else given
        if given not in (None, fixed):
            raise BranchyError(
                f"The weights {weights!r} of {model} are for {name}={fixed}; received "
                f"{given}. Leave it out, or train your own from weights=None."
            )
    return asked | tag.arguments


def load_weights(model: keras.Model, family: str, weights: str | None) -> keras.Model:
    """Loads `weights` (None, a tag of `family`, or a path) into `model`.

    Raises:
        BranchyError: no such tag or file, a damaged file, or weights of another
            architecture. (A `.weights.h5` does not tell where its exits were.)
    """
    if weights is None:
        return model
    tags = packaged.every(family)
    if weights in tags:
        tags[weights].check()
        path = tags[weights].weights
    else:
        path = pathlib.Path(weights)
    if not path.name.endswith((".keras", ".weights.h5")):
        raise BranchyError(
            f"Unknown weights {weights!r} for {family}. Expected "
            + (
                f"one of the tags {', '.join(sorted(tags))}"
                if tags
                else "no tag (none ships)"
            )
            + ", or the path of a .keras or .weights.h5 file."
        )
    if not path.is_file():
        raise BranchyError(f"There is no weights file {path}.")
    if path.suffix == ".keras":
        saved_exits.check_places(model, path)
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        # Keras goes on with the values of a variable and a list of layers.
        reason = " ".join(str(error).split()).partition(" Target variable:")[0]
        reason = reason.partition(" List of objects")[0]
        raise BranchyError(
            f"The weights in {path} do not fit {family} with input shape "
            f"{model.input_shape[1:]}: {reason}"
        ) from None
    return model

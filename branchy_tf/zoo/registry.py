"""The models by name, and what every builder checks and loads."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from branchy_tf import checks, files, graphs
from branchy_tf.errors import BranchyError, one_line
from branchy_tf.exits import Head
from branchy_tf.files import keras_files
from branchy_tf.thresholds import Calibration
from branchy_tf.zoo import packaged, saved_exits

Builder = Callable[..., keras.Model]

_BUILDERS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
    """Enters a builder under its function name.

    With a tag it builds in float32, whatever Keras is set to, if variables would be of
    another dtype: rounded weights would not give the tag's answers, nor fit its
    thresholds. Mixed precision keeps float32 variables, and is left as it is.
    """

    @functools.wraps(builder)
    def built(*args: Any, **kwargs: Any) -> keras.Model:
        given = inspect.signature(builder).bind(*args, **kwargs).arguments.get("weights")
        if isinstance(given, str) and given in packaged.every(builder.__name__):
            with _float32_variables():
                return builder(*args, **kwargs)
        return builder(*args, **kwargs)

    _BUILDERS[builder.__name__] = built
    return built


@contextlib.contextmanager
def _float32_variables() -> Iterator[None]:
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float32")
    if policy.variable_dtype != "float32":
        keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


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
    if not isinstance(tag, str) or tag not in tags:
        raise BranchyError(
            f"Unknown weights {checks.shown(tag)} for {model}. Known: "
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
    if not isinstance(name, str) or name not in _BUILDERS:
        near = difflib.get_close_matches(str(name), _BUILDERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise BranchyError(
            f"Unknown model {checks.shown(name)}.{hint} Known: "
            f"{', '.join(list_models())}."
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


def check_input_shape(input_shape: Any, minimum: int) -> tuple[int, int, int]:
    """(height, width, channels) as ints; raises unless each side is >= minimum."""
    try:
        if not isinstance(input_shape, (tuple, list)):
            raise ValueError
        height, width, channels = (
            checks.whole_number("input_shape", n, at_least=least)
            for n, least in zip(input_shape, (minimum, minimum, 1), strict=True)
        )
    except ValueError:
        raise BranchyError(
            f"`input_shape` must be (height, width, channels), channels last, with "
            f"height and width of at least {minimum}. Received "
            f"{checks.shown(input_shape)}."
        ) from None
    graphs.check_image_data_format()
    return height, width, channels


def check_classes(classes: Any) -> int:
    """The number as an int; raises unless it is whole and at least 2."""
    return checks.whole_number("classes", classes, at_least=2)


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
    if not isinstance(given, str) or given not in places:
        raise BranchyError(
            f"`exits` must be one of {', '.join(places)}, or {{layer name: head}}. "
            f"Received {checks.shown(given)}."
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
            f"`weights` must be None, a tag or a path. Received {checks.shown(weights)}."
        )
    tag = packaged.every(model).get(weights or "")
    if tag is None:
        return asked
    for name, fixed in tag.arguments.items():
        given = asked[name]
        given = tuple(given) if isinstance(given, list) else given
        # Arrays compare element by element.
        if given is not None and not np.array_equal(np.array(given), np.array(fixed)):
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
        path = files.path(weights)
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
    except Exception as error:
        raise BranchyError(
            f"The weights in {path} do not fit {family} with input shape "
            f"{model.input_shape[1:]}: {_reason(path, error)}"
        ) from error
    return model


def _reason(path: pathlib.Path, error: Exception) -> str:
    old = keras_files.written_by_keras_2(path) if path.suffix == ".keras" else None
    if old is not None:
        return old
    # Keras goes on with the values of a variable and a list of layers.
    reason = " ".join(str(error).split()).partition(" Target variable:")[0]
    reason = reason.partition(" List of objects")[0]
    return one_line(reason) or type(error).__name__

"""The registered models, and what all builders share: checks, exits and weights."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np

from branchy_tf import checks, files, graphs
from branchy_tf.errors import BranchyError, one_line
from branchy_tf.exits import Head, add_exits
from branchy_tf.files import keras_files
from branchy_tf.thresholds import Calibration
from branchy_tf.zoo import packaged, saved_exits

Builder = Callable[..., keras.Model]

_BUILDERS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
    """Registers a builder under its function name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names of the builders, sorted."""
    return sorted(_BUILDERS)


def list_weights(model: str | None = None) -> list[str]:
    """The tags of one model's packaged weights; without a model, every "model/tag".

    Raises:
        BranchyError: unknown model.
    """
    if model is not None:
        get_builder(model)
        return sorted(packaged.every(model))
    return [f"{name}/{tag}" for name in list_models() for tag in list_weights(name)]


def calibration(model: str, tag: str) -> Calibration:
    """The calibrated thresholds that ship with packaged weights.

    Args:
        model: one of `list_models()`.
        tag: one of `list_weights(model)`.

    Returns:
        A `Calibration`: its `.policy`, and what that achieves on the validation split.

    Raises:
        BranchyError: unknown weights, or a damaged file.

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
            f"{', '.join(sorted(tags)) or 'none'}."
        )
    tags[tag].check()
    path = tags[tag].thresholds
    return Calibration.read(path, files.read_json(path)["exits"])


def get_builder(name: str) -> Builder:
    """The builder called `name`.

    Raises:
        BranchyError: unknown name; the message suggests the closest one.
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        close = difflib.get_close_matches(str(name), _BUILDERS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise BranchyError(
            f"Unknown model {checks.shown(name)}.{hint} Known: "
            f"{', '.join(list_models())}."
        )
    return _BUILDERS[name]


def build(model: str, /, **arguments: object) -> keras.Model:
    """Builds a model by name.

    Args:
        model: one of `list_models()`.
        **arguments: the arguments of that builder.

    Raises:
        BranchyError: unknown name or argument, or what the builder raises.

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


def assemble(
    family: str,
    trunk: Callable[..., keras.Model],
    exit_sets: Callable[..., Mapping[str, Mapping[str, Head]]],
    minimum_side: int,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    weights: files.Path | None,
    exits: str | Mapping[str, Head] | None,
    name: str,
    **variant: object,
) -> keras.Model:
    """Builds a model from its trunk and exits: the body that all builders share.

    With a tag, the variables are float32 whatever Keras is set to: rounded weights
    would change the tag's answers and would not fit its thresholds.

    Args:
        family: the name of the builder, which its packaged weights carry.
        trunk: `trunk(input_shape, classes, name, **variant)`, the network without
            early exits.
        exit_sets: `exit_sets(**variant)`, `{name: {layer name: head}}`. The first
            set is the default.
        minimum_side: the smallest height and width, in pixels.
        input_shape, classes, weights, exits, name: the builder's arguments.
        **variant: its other arguments, such as `depth`. With a tag, None stands for the
            tag's value.

    Returns:
        The multi-exit model, with its weights loaded.

    Raises:
        BranchyError: an argument is invalid, or the weights do not fit.
    """
    if not isinstance(weights, (str, os.PathLike, type(None))):
        raise BranchyError(
            f"`weights` must be None, a tag or a path. Received {checks.shown(weights)}."
        )
    tag = packaged.every(family).get(weights) if isinstance(weights, str) else None
    if tag is not None:
        given = {"input_shape": input_shape, "classes": classes, "exits": exits}
        _check_fixed(tag, given | variant)
        exits = tag.arguments.get("exits", exits)
        variant = {key: tag.arguments.get(key, value) for key, value in variant.items()}
    shape = _check_input_shape(input_shape, minimum_side)
    classes = checks.whole_number("classes", classes, at_least=2)
    graphs.check_name(name)
    heads = _choose_exits(exits, exit_sets(**variant))
    with contextlib.nullcontext() if tag is None else _float32_variables():
        model = add_exits(trunk(shape, classes, name, **variant), heads, name)
        if weights is not None:
            _load_weights(model, family, tag, weights)
    return model


@contextlib.contextmanager
def _float32_variables() -> Iterator[None]:
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float32")
    # Mixed precision keeps its variables in float32, so it stays.
    if policy.variable_dtype != "float32":
        keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _check_fixed(tag: packaged.Packaged, given: Mapping[str, object]) -> None:
    """Raises `BranchyError` for arguments that contradict the tag's."""
    for name, fixed in tag.arguments.items():
        value = given[name]
        value = tuple(value) if isinstance(value, list) else value
        # Arrays compare element by element.
        if value is not None and not np.array_equal(np.array(value), np.array(fixed)):
            raise BranchyError(
                f"The weights {tag.tag!r} of {tag.model} are for {name}={fixed}; "
                f"received {value}. Leave it out, or train your own from weights=None."
            )


def _check_input_shape(given: object, minimum: int) -> tuple[int, int, int]:
    """(height, width, channels) as ints; raises unless each side is >= minimum."""
    try:
        if not isinstance(given, (tuple, list)):
            raise ValueError
        height, width, channels = (
            checks.whole_number("input_shape", n, at_least=least)
            for n, least in zip(given, (minimum, minimum, 1), strict=True)
        )
    except ValueError:
        raise BranchyError(
            f"`input_shape` must be (height, width, channels), channels last, with "
            f"height and width of at least {minimum}. Received {checks.shown(given)}."
        ) from None
    graphs.check_image_data_format()
    return height, width, channels


def _choose_exits(
    given: str | Mapping[str, Head] | None, known: Mapping[str, Mapping[str, Head]]
) -> Mapping[str, Head]:
    """The heads that a builder's argument `exits` asks for."""
    if isinstance(given, Mapping):
        return given
    given = next(iter(known)) if given is None else given
    if not isinstance(given, str) or given not in known:
        raise BranchyError(
            f"`exits` must be one of {', '.join(known)}, or {{layer name: head}}. "
            f"Received {checks.shown(given)}."
        )
    return known[given]


def _load_weights(
    model: keras.Model, family: str, tag: packaged.Packaged | None, weights: files.Path
) -> None:
    """Loads the weights of `tag`, else of the file `weights`, into `model`.

    A `.weights.h5` file does not say where its exits were, so only a `.keras` file is
    checked for that.
    """
    if tag is not None:
        tag.check()
    given = weights if tag is None else tag.weights
    if not str(given).endswith((".keras", ".weights.h5")):
        tags = sorted(packaged.every(family))
        known = f"one of the tags {', '.join(tags)}, or " if tags else ""
        raise BranchyError(
            f"Unknown weights {weights!r} for {family}. Expected {known}the path of a "
            ".keras or .weights.h5 file."
        )
    path = files.path(given)
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


def _reason(path: pathlib.Path, error: Exception) -> str:
    old = keras_files.written_by_keras_2(path) if path.suffix == ".keras" else None
    if old is not None:
        return old
    # Keras appends the values of a variable and a list of layers.
    reason = " ".join(str(error).split()).partition(" Target variable:")[0]
    reason = reason.partition(" List of objects")[0]
    return one_line(reason) or type(error).__name__

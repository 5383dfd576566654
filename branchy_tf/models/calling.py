"""Calls a user's function that builds a model, and says what went wrong in it."""

from __future__ import annotations

import difflib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import keras

from branchy_tf import checks, graphs
from branchy_tf.errors import BranchyError, first_line
from branchy_tf.files import functions

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def call_builder(
    text: str, arguments: Mapping[str, Any], offered: Mapping[str, Any]
) -> keras.Model:
    """The model that a function returns.

    Args:
        text: module:function, for example "my_package.models:build".
        arguments: its keyword arguments.
        offered: further arguments, passed only if the function has parameters of these
            names.

    Raises:
        BranchyError: the function cannot be imported, takes other arguments, raises an
            error, or returns no Keras model.

    Example:

    ```python
    call_builder("keras.applications:MobileNetV2", {"weights": None}, {"classes": 10})
    ```
    """
    function = functions.load_function(text)
    passed = _passed(text, function, arguments, offered)
    try:
        model = function(**passed)
    except BranchyError:
        raise
    except (Exception, SystemExit) as error:
        # The function is the user's: anything may come.
        raise BranchyError(
            f"{text} raised {type(error).__name__}{_where(text, error)}: "
            f"{first_line(error)}."
        ) from error
    if not isinstance(model, keras.Model) and not graphs.is_keras_2(model):
        raise BranchyError(
            f"{text} returned {checks.shown(model)}, of type {type(model).__name__}; "
            "expected a keras.Model."
        )
    return model


def _passed(
    text: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    offered: Mapping[str, Any],
) -> dict[str, Any]:
    """The keyword arguments for `function`, checked against its signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(arguments)
    named = [p.name for p in parameters if p.kind in _NAMED]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    unknown = [name for name in arguments if name not in named and not takes_any]
    if unknown:
        close = difflib.get_close_matches(unknown[0], named, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise BranchyError(
            f"{text} has no argument {unknown[0]!r}.{hint} It takes: "
            f"{', '.join(named) or 'none'}."
        )
    passed = {name: value for name, value in offered.items() if name in named}
    passed |= arguments
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.name not in passed
        and parameter.kind in (*_NAMED, inspect.Parameter.POSITIONAL_ONLY)
    ]
    if missing:
        raise BranchyError(
            f"{text} needs the argument {missing[0]!r}. Pass it with "
            f"--model_args={missing[0]}=VALUE, or give it a default."
        )
    return passed


def _where(text: str, error: BaseException) -> str:
    """The innermost line of the user's module in the error's traceback."""
    module = sys.modules.get(text.partition(":")[0])
    path = getattr(module, "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f" in {path}, line {lines[-1]}" if lines else ""

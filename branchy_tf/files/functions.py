"""Python code that a flag names: a module, or one of its functions as module:function."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from branchy_tf.errors import BranchyError, first_line


def names_function(text: str) -> bool:
    """Whether a text has the form module:function, with dots allowed in both parts."""
    module, colon, function = text.partition(":")
    return bool(colon) and all(
        part.isidentifier() for name in (module, function) for part in name.split(".")
    )


def load_module(name: str) -> ModuleType:
    """Imports a module, also from the working directory.

    Args:
        name: its dotted name, without .py.

    Raises:
        BranchyError: the module is not found, or raises an error when imported.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise BranchyError(
            f"{name!r} is no name of a Python module. Write it as in an import "
            "statement, for example my_package.models."
        )
    # `python -m` looks in the working directory, the console script does not.
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise BranchyError(
                f"There is no Python module {error.name}. Run the command in the folder "
                "of the module, or put that folder on PYTHONPATH."
            ) from None
        raise BranchyError(f"Importing {name} failed: {first_line(error)}.") from error
    except (Exception, SystemExit) as error:
        # The module is the user's: anything may come.
        raise BranchyError(
            f"Importing {name} failed with {type(error).__name__}: {first_line(error)}."
        ) from error


def load_function(text: str) -> Callable[..., Any]:
    """The function that module:function names.

    Args:
        text: for example "my_package.models:build".

    Raises:
        BranchyError: the module cannot be imported or has no such function.

    Example:

    ```python
    load_function("math:hypot")(3, 4)  # 5.0
    ```
    """
    if not names_function(text):
        raise BranchyError(f"{text!r} does not have the form module:function.")
    name, _, path = text.partition(":")
    found: Any = load_module(name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise BranchyError(f"Module {name} has no function {path}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise BranchyError(
            f"{text} is of type {type(found).__name__}, not a function. Name one that "
            "returns it."
        )
    return found

"""Early-exit networks for Keras and TensorFlow Serving.

A network with several exits answers easy inputs at an early one and hard
inputs at the last; one threshold for each exit decides. This package takes
such a network from a builder to a container that serves it:

    zoo / exits -> training -> thresholds -> saved_model -> serving
                                          -> litert -> devices

Submodules and the names below are imported on first use, so that the
serving client and the predictor of a LiteRT export start without TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from branchy_tf.exits import baseline as baseline
    from branchy_tf.pipeline import calibrate as calibrate
    from branchy_tf.pipeline import export as export
    from branchy_tf.pipeline import load as load
    from branchy_tf.policy import ExitPolicy as ExitPolicy
    from branchy_tf.predictor import EarlyExitPredictor as EarlyExitPredictor

# The only place of the version: pyproject.toml reads it here.
__version__ = "0.2.0"

if sys.argv[:1] == ["-m"]:
    # Python is looking for a command, as in `python -m branchy_tf.train`.
    from branchy_tf.command_line import startup

    startup.begin()

_SUBMODULES = (
    "compression",
    "costs",
    "data",
    "errors",
    "exits",
    "litert",
    "pipeline",
    "policy",
    "predictor",
    "results",
    "saved_model",
    "serving",
    "stages",
    "thresholds",
    "training",
    "units",
    "versions",
    "zoo",
)
_NAMES = {
    "baseline": "exits",
    "EarlyExitPredictor": "predictor",
    "ExitPolicy": "policy",
    "calibrate": "pipeline",
    "export": "pipeline",
    "load": "pipeline",
}

__all__ = [
    "EarlyExitPredictor",
    "ExitPolicy",
    "__version__",
    "baseline",
    "calibrate",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"branchy_tf.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"branchy_tf.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'branchy_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_SUBMODULES, *_NAMES, "__version__"])


class _Package(types.ModuleType):
    """The package, whose functions keep their names.

    The functions `calibrate` and `export` share their names with the modules of two
    commands. Python sets an imported module as an attribute of its package, where it
    would replace the function; that is ignored here. `python -m branchy_tf.calibrate`,
    `importlib` and `from branchy_tf.calibrate import main` find modules by their names,
    not by attributes, so they work in any order.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

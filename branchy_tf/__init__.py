"""Early-exit networks for Keras and TensorFlow Serving.

A network with several exits answers easy inputs at an early one and hard
inputs at the last; one threshold for each exit decides. This package takes
such a network from a builder to a container that serves it:

    zoo / exits -> training -> thresholds -> saved_model -> serving

Submodules and the names below are imported on first use, so that the
serving client starts without TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from branchy_tf.exits import baseline as baseline
    from branchy_tf.policy import ExitPolicy as ExitPolicy
    from branchy_tf.predictor import EarlyExitPredictor as EarlyExitPredictor

__version__ = "0.1.0"

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
    "policy",
    "predictor",
    "results",
    "saved_model",
    "serving",
    "stages",
    "thresholds",
    "training",
    "zoo",
)
_NAMES = {
    "baseline": "exits",
    "EarlyExitPredictor": "predictor",
    "ExitPolicy": "policy",
}

__all__ = ["EarlyExitPredictor", "ExitPolicy", "__version__", "baseline"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"branchy_tf.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"branchy_tf.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'branchy_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_SUBMODULES, *_NAMES, "__version__"])

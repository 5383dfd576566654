"""The engines behind the predictor that TensorFlow runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf import checks, files, versions
from branchy_tf.errors import BranchyError
from branchy_tf.saved_model.early_exit import EarlyExitModule, LogitsModule
from branchy_tf.saved_model.session import SessionModel


class ModuleEngine:
    """Runs the graph of a Keras model in this process.

    Args:
        module: the model's signatures; routing needs an `EarlyExitModule`.
    """

    def __init__(self, module: LogitsModule) -> None:
        self._module = module
        self.inputs = {
            spec.name: checks.TensorSpec(tuple(spec.shape), spec.dtype.as_numpy_dtype)
            for spec in module.specs
        }
        self.num_exits = len(module.exit_names)

    def logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `predictor.Engine`."""
        return _call(self._module.logits, arrays)["logits"]

    def early_exit(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `predictor.Engine`."""
        return self._run("early_exit", arrays)

    def all_exits(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `predictor.Engine`."""
        return self._run("all_exits", arrays)

    def _run(
        self, signature: str, arrays: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        assert isinstance(self._module, EarlyExitModule)
        return _call(self._module.functions[signature], arrays)


def _call(
    function: Callable[..., dict[str, Any]], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    values = function(**{name: tf.constant(array) for name, array in arrays.items()})
    return {name: value.numpy() for name, value in values.items()}


class SessionEngine:
    """Runs an exported SavedModel in a Session, as a server does.

    Args:
        path: the folder of the version.
        threads: the threads inside one operation; None means one per core. The first
            session of a process sets the number for all later ones.

    Attributes:
        description: the content of branchy.json.

    Raises:
        BranchyError: the folder holds no SavedModel, or it does not load.
    """

    def __init__(self, path: files.Path, threads: int | None = None) -> None:
        folder = files.path(path)
        self.description = versions.describe(folder)
        with files.reading(folder, "a SavedModel", "Export the model again."):
            self._session = SessionModel(folder, threads or 0)
            self._early_exit = self._prepared("early_exit")
            self._all_exits = self._prepared("all_exits")
        self.inputs = self.description.inputs
        self.num_exits = len(self.description.exits)

    def logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `predictor.Engine`; a SavedModel has no logits."""
        raise BranchyError(
            "A SavedModel has no signature for logits. Use all_exits, or a predictor of "
            "the Keras model."
        )

    def early_exit(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `predictor.Engine`."""
        return self._early_exit(arrays)

    def all_exits(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `predictor.Engine`."""
        return self._all_exits(arrays)

    def _prepared(
        self, signature: str
    ) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """A signature with all its inputs; only the engine's own call remains."""
        definition = self._session.signatures[signature]
        given, wanted = sorted(definition.inputs), sorted(definition.outputs)
        call = self._session.call(
            tuple(definition.inputs[name].name for name in given),
            tuple(definition.outputs[name].name for name in wanted),
        )
        return functools.partial(_run, call, given, wanted)


def _run(
    call: Callable[..., list[np.ndarray]],
    given: list[str],
    wanted: list[str],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    values = call(*[arrays[name] for name in given])
    return dict(zip(wanted, values, strict=True))

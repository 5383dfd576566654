"""A SavedModel in a `tf.compat.v1.Session`, the engine that TF Serving runs.

`tf.saved_model.load` does not show whether a server can load a model: it restores
variables and makes checks that a Session does not.
"""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.saved_model import loader_impl

from branchy_tf.errors import BranchyError, first_line


class SessionModel:
    """A loaded version; `run` may be called from several threads.

    Args:
        path: the folder of the version, with saved_model.pb.
        intra_op_threads: the threads inside one operation; 0 means one per core. The
            first session of a process sets the number for all later ones.
        inter_op_threads: the number of concurrent operations; 0 means one per core, -1
            runs them in the calling thread. Our graphs are chains, so a pool would only
            add the time to wake up another thread. See zoo/studies/routing.md.

    Attributes:
        signatures: `{name: SignatureDef}` of the served signatures.
        defaults: `{signature: {input: array}}` of the optional inputs.
        graph: the graph that the session runs.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        intra_op_threads: int = 0,
        inter_op_threads: int = -1,
    ) -> None:
        self.graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=intra_op_threads,
            inter_op_parallelism_threads=inter_op_threads,
            # Without it, all sessions share the first one's pool. With it, even -1
            # would create a pool of the default size.
            use_per_session_threads=inter_op_threads > 0,
        )
        self._session = tf.compat.v1.Session(graph=self.graph, config=config)
        try:
            with self.graph.as_default():
                # Like tf.compat.v1.saved_model.load, without its deprecation warning.
                loader = loader_impl.SavedModelLoader(str(path))
                loaded = loader.load(self._session, [tf.saved_model.SERVING])
        except BaseException:
            self._session.close()
            raise
        self.signatures = {
            name: signature
            for name, signature in loaded.signature_def.items()
            if signature.method_name
        }
        self.defaults = {
            name: {key: tf.make_ndarray(value) for key, value in found.defaults.items()}
            for name, found in self.signatures.items()
        }
        self._calls: dict[tuple, Any] = {}
        self._lock = threading.Lock()

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs one signature as a server does, without checks.

        Args:
            signature: the name of the signature.
            inputs: an array for each input; inputs with a default are optional.

        Returns:
            `{output: array}` of all outputs. The engine would keep a separate graph,
            with its own weights, for every other choice of outputs.

        Raises:
            tf.errors.OpError: the engine fails, e.g. with InvalidArgumentError.
            KeyError: the signature or an input is unknown.
        """
        definition = self.signatures[signature]
        fetched = sorted(definition.outputs)
        feeds = self.defaults[signature] | dict(inputs)
        names = sorted(feeds)
        call = self.call(
            tuple(definition.inputs[name].name for name in names),
            tuple(definition.outputs[name].name for name in fetched),
        )
        values = call(*(feeds[name] for name in names))
        return dict(zip(fetched, values, strict=True))

    def call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]):
        """A cached function from arrays to arrays, by names of tensors."""
        # session.run() checks shapes in Python and looks names up on every call. A
        # callable passes the arrays directly to the engine.
        with self._lock:
            key = (feeds, fetches)
            if key not in self._calls:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                self._calls[key] = self._session._make_callable_from_options(options)
            return self._calls[key]

    def operations(self, signature: str, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """The names of the operations that a call runs, in the optimised graph.

        Operations in branches that are not taken are not listed. The engine keeps a
        second graph, with its own weights, for these calls.
        """
        definition = self.signatures[signature]
        feeds = {
            definition.inputs[name].name: value
            for name, value in (self.defaults[signature] | dict(inputs)).items()
        }
        ran = config_pb2.RunMetadata()
        self._session.run(
            [info.name for info in definition.outputs.values()],
            feeds,
            options=config_pb2.RunOptions(trace_level=config_pb2.RunOptions.FULL_TRACE),
            run_metadata=ran,
        )
        return [
            node.node_name
            for device in ran.step_stats.dev_stats
            for node in device.node_stats
        ]

    def close(self) -> None:
        """Frees the model. No run may be in progress or follow."""
        self._calls.clear()
        self._session.close()


def opened(path: pathlib.Path, what: str) -> SessionModel:
    """Loads what was just exported, as a server will.

    Args:
        path: the folder of the version.
        what: its name in messages, e.g. "model".

    Raises:
        BranchyError: it does not load.
    """
    try:
        return SessionModel(path)
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        raise BranchyError(
            f"The exported {what} does not load: {first_line(error)}"
        ) from None

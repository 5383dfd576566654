"""A SavedModel in a `tf.compat.v1.Session`, the engine that TF Serving runs.

`tf.saved_model.load` is not enough to know that a server can load a model: it
restores variables that a Session does not, and checks what a Session does not.
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


class SessionModel:
    """A loaded version; `run` may be called from several threads.

    Args:
        path: folder of the version, with saved_model.pb.
        intra_op_threads: threads inside one operation; 0: one for each core. The first
            session of a process decides for all later ones.
        inter_op_threads: operations at a time; 0: one for each core; -1: one, in the
            thread that calls. Our graphs are chains: with a pool each call only waits
            for another thread to wake up. See zoo/studies/routing.md.

    Attributes:
        signatures: `{name: SignatureDef}`, those that are served.
        defaults: `{signature: {input: array}}`, of inputs that may be left out.
        graph: what the session runs.
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
            # Of all sessions, a pool is the first one's without it. And with it, one in
            # the thread that calls would get a pool, of the default size.
            use_per_session_threads=inter_op_threads > 0,
        )
        self._session = tf.compat.v1.Session(graph=self.graph, config=config)
        try:
            with self.graph.as_default():
                # What tf.compat.v1.saved_model.load calls, less its advice to use
                # tf.saved_model.load instead.
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
        """Runs one signature as the server does: nothing is checked on the way.

        Args:
            signature: its name.
            inputs: an array for each input; one with a default may be left out.

        Returns:
            `{output: array}`, of all outputs: for each choice of them the engine would
            keep a graph of its own, weights and all.

        Raises:
            tf.errors.OpError: what the engine answers, e.g. InvalidArgumentError.
            KeyError: no such signature or input.
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
        """A function from arrays to arrays, made once for these tensors' names."""
        # session.run() checks shapes in Python and finds its way by names each
        # time; a callable made once hands the arrays to the engine as they are.
        with self._lock:
            key = (feeds, fetches)
            if key not in self._calls:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                self._calls[key] = self._session._make_callable_from_options(options)
            return self._calls[key]

    def operations(self, signature: str, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """The operations that a call runs, by their names in the optimised graph.

        What lies in a branch that is not taken is not among them. The engine makes a
        second graph for such calls, weights and all.
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
        """Frees the model. No run may be under way or follow."""
        self._calls.clear()
        self._session.close()

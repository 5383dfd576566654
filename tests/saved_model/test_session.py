from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf

from branchy_tf.saved_model.session import SessionModel


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A model that records which threads run its operations."""

    def who(x):
        return np.int64(threading.get_ident()) + 0 * x

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "x")])
    def run(x):
        return {"thread": tf.numpy_function(who, [x], tf.int64)}

    module = tf.Module()
    module.run = run  # a SavedModel holds Python functions by a token of this process
    path = tmp_path_factory.mktemp("version")
    tf.saved_model.save(module, str(path), signatures={"run": run})
    return path


@pytest.mark.parametrize(("inter_op_threads", "own"), [(-1, True), (1, False)])
@pytest.mark.parametrize("intra_op_threads", [0, 1])
def test_operations_run_in_the_calling_thread_without_a_pool(
    version, inter_op_threads, own, intra_op_threads
):
    model = SessionModel(version, intra_op_threads, inter_op_threads)
    (found,) = model.run("run", {"x": np.zeros(1, np.int64)})["thread"]
    assert bool(found == threading.get_ident()) is own

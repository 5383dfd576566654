"""An independent count: TensorFlow's own profiler on the frozen graph of a model."""

from __future__ import annotations

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

# The operations that the profiler knows and that branchy_tf counts.
_COUNTED = {
    "BatchMatMul", "BatchMatMulV2", "Conv2D", "DepthwiseConv2dNative", "MatMul",
}  # fmt: skip


def macs(model: keras.Model) -> int:
    """The multiply-adds of a model for one example: half of its products' flops."""
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype) for t in model.inputs]

    @tf.function
    def run(*tensors):
        given = keras.tree.pack_sequence_as(model.input, list(tensors))
        return model(given, training=False)

    frozen = convert_variables_to_constants_v2(run.get_concrete_function(*specs))
    types = {node.name: node.op for node in frozen.graph.as_graph_def().node}
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    )
    options = options.with_empty_output().build()
    profile = tf.compat.v1.profiler.profile(frozen.graph, options=options, cmd="scope")
    flops, waiting = 0, [profile]
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if types.get(node.name) in _COUNTED:
            flops += node.float_ops
    return flops // 2

"""The optimised graph of an export, which TensorFlow runs."""

from __future__ import annotations

import collections
import pathlib

import keras
import numpy as np
import odd_models
import pytest
import tensorflow as tf

from branchy_tf import saved_model, zoo
from branchy_tf.saved_model.bfloat16 import in_bfloat16
from branchy_tf.saved_model.session import SessionModel

SIGNATURES = ["early_exit", "serving_default", "all_exits"]
# oneDNN's kernels can fuse a sum, Eigen's cannot.
ONEDNN = "_Mkl"


@pytest.fixture(scope="module")
def resnet() -> keras.Model:
    """Three exits and 14 convolutions, 3 of them before the sum of a block."""
    model = zoo.build("branchy_resnet", depth=8, exits="light", input_shape=(16, 16, 3))
    return odd_models.settled(model)


def written(model: keras.Model, folder: pathlib.Path, frozen: bool) -> pathlib.Path:
    module = saved_model.EarlyExitModule(model, [0.1, 0.1], frozen=frozen)
    module.save(folder)
    return folder


@pytest.fixture(scope="module")
def frozen(resnet, tmp_path_factory) -> pathlib.Path:
    return written(resnet, tmp_path_factory.mktemp("frozen"), frozen=True)


class Optimised:
    """The graph that ran for one request.

    Attributes:
        kinds: how many nodes there are of each operation.
        convolutions: `[(fused operations, kind of the filter), ...]`.
        formats: the dtypes of the convolutions.
    """

    def __init__(self, graph: tf.compat.v1.GraphDef) -> None:
        kind = {node.name: node.op for node in graph.node}
        self.kinds = collections.Counter(kind.values())
        convolutions = [node for node in graph.node if "Conv2D" in node.op]
        self.convolutions = [
            (
                "+".join(name.decode() for name in node.attr["fused_ops"].list.s),
                kind[node.input[1].split(":")[0]],
            )
            for node in convolutions
        ]
        self.formats = {tf.as_dtype(n.attr["T"].type).name for n in convolutions}

    def count(self, part: str) -> int:
        """The nodes with `part` in the name of their operation."""
        return sum(number for kind, number in self.kinds.items() if part in kind)


def optimised(version: pathlib.Path, signature: str) -> Optimised:
    session = SessionModel(version)
    definition = session.signatures[signature]
    # The graph contains all stages, even those that no row needs.
    feeds = {definition.inputs["images"].name: np.zeros((4, 16, 16, 3), "uint8")}
    if signature == "early_exit":
        feeds[definition.inputs["thresholds"].name] = np.zeros((1, 2), "float32")
    ran = tf.compat.v1.RunMetadata()
    session._session.run(
        [output.name for output in definition.outputs.values()],
        feeds,
        options=tf.compat.v1.RunOptions(output_partition_graphs=True),
        run_metadata=ran,
    )
    session.close()
    (graph,) = ran.partition_graphs
    return Optimised(graph)


def check_folded_and_fused(graph: Optimised) -> None:
    onednn = graph.count(ONEDNN) > 0
    expected = {"BiasAdd+Relu": 9, "BiasAdd": 2}
    expected |= {"BiasAdd+Add+Relu": 3} if onednn else {"BiasAdd": 2 + 3}
    assert collections.Counter(fused for fused, _ in graph.convolutions) == expected
    assert {kind for _, kind in graph.convolutions} == {"Const"}
    assert graph.count("VarHandleOp") == graph.count("ReadVariableOp") == 0
    # Keras writes batch norm as an rsqrt, products and a sum.
    assert graph.count("BatchNorm") == graph.kinds["Rsqrt"] == 0
    # The input's scaling, and the entropy of each exit.
    assert graph.kinds["Mul"] == 1 + 3
    assert graph.kinds["AddV2"] + graph.kinds["AddN"] == (1 if onednn else 1 + 3)
    assert graph.kinds["Relu"] == (0 if onednn else 3)
    assert graph.kinds["BiasAdd"] == 0


@pytest.mark.parametrize("signature", SIGNATURES)
def test_frozen_graph_is_folded_fused_and_constant(frozen, signature):
    graph = optimised(frozen, signature)
    assert graph.formats == {"float32"}
    check_folded_and_fused(graph)


def test_bfloat16_graph_is_folded_and_fused(resnet, tmp_path):
    short = in_bfloat16(resnet)
    graph = optimised(written(short, tmp_path, frozen=True), "early_exit")
    assert graph.formats == {"bfloat16"}
    check_folded_and_fused(graph)


def test_unfrozen_graph_is_not_fused(resnet, tmp_path):
    graph = optimised(written(resnet, tmp_path, frozen=False), "early_exit")
    assert set(graph.convolutions) == {("", "ReadVariableOp")}
    assert graph.kinds["Rsqrt"] == 14
    assert graph.kinds["Mul"] > 14
    assert graph.kinds["Relu"] == 12


def test_weights_are_stored_once(resnet, frozen):
    weights = sum(4 * int(np.prod(weight.shape)) for weight in resnet.weights)
    size = sum(path.stat().st_size for path in frozen.rglob("*") if path.is_file())
    # The rest is the graph of three signatures.
    assert weights < size < weights + 200_000

"""The network on tf_keras and its wrappers, in one process for all cases.

It takes as long as importing TensorFlow and tensorflow-model-optimization.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

import branchy_tf

pytest.importorskip("importlib.metadata", reason="the extra compression is not installed")
SCRIPT = pathlib.Path(__file__).parent / "in_worker.py"


@pytest.fixture(scope="module")
def found():
    root = pathlib.Path(branchy_tf.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name",
    ["lenet", "alexnet", "resnet", "vgg", "inside", "shared", "several", "text", "odd"],
)
def test_the_rebuilt_network_computes_the_same(found, name):
    assert 0 <= found[name]["difference"] <= 1e-5


def test_every_kernel_of_the_zoo_is_compressed(found):
    lenet = ["conv_1", "conv_2", "conv_3", "dense", "exit_1", "exit_1_conv", "logits"]
    for method in ("prune", "cluster", "qat"):
        assert found["lenet"][method] == lenet
        assert {"deep", "conv"} <= set(found["inside"][method])
    assert len(found["alexnet"]["prune"]) == 13
    # Convolutions with batch norm are quantised as one.
    assert len(found["resnet"]["qat"]) == 17


def test_recurrent_layers_and_embeddings_are_pruned_and_clustered(found):
    for method in ("prune", "cluster"):
        assert {"embedding", "lstm", "conv"} <= set(found["text"][method])


def test_a_layer_that_is_called_twice_is_compressed_once(found):
    for method in ("prune", "cluster", "qat"):
        assert found["shared"][method] == ["exit_1", "exit_2", "shared"]


def test_kernels_with_no_more_weights_than_clusters_need_none(found):
    expected = "No layer of 'functional' is left to cluster: pass fewer --skip_layers, or"
    assert found["small"]["cluster"].startswith(expected)


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        (
            "odd",
            "qat",
            "cannot quantize these layers: norm (BatchNormalization), prelu (PReLU). "
            "Leave them as they are with --skip_layers=norm,prelu.",
        ),
        ("text", "qat", "cannot quantize these layers: conv (Conv1D), lstm (LSTM), norm"),
        ("odd", "prune", "cannot prune these layers: prelu (PReLU). Leave them as they"),
        ("odd", "cluster", "--skip_layers=prelu."),
    ],
)
def test_unknown_layers_with_kernels_are_named(found, name, method, expected):
    assert expected in found[name][method]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hard_sigmoid", "differs from the model by 0."),
        ("lambda", "Layer 'two', a Lambda, cannot be rebuilt on tf_keras: "),
    ],
)
def test_networks_that_compute_something_else_are_refused(found, name, expected):
    assert expected in found[name]["error"]
    assert "\n" not in found[name]["error"]

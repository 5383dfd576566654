"""The multi-scale dense network: its published size, and what its stages leave out."""

from __future__ import annotations

import math

import pytest

from branchy_tf import costs, stages
from branchy_tf.errors import BranchyError
from branchy_tf.zoo import branchy_msdnet


@pytest.mark.parametrize(
    ("spacing", "blocks", "macs", "parameters"),
    [
        ("growing", 4, 37_689_344, 1_373_076),
        ("growing", 5, 58_030_336, 2_020_874),
        ("growing", 7, 136_484_608, 3_885_394),
        ("even", 7, 75_407_104, 2_986_690),
    ],
)
def test_has_the_authors_size(spacing, blocks, macs, parameters):
    """The reference was counted on the authors' PyTorch release, by forward hooks.

    https://github.com/kalviny/MSDNet-PyTorch, convolutions and dense layers, CIFAR-10.
    """
    model = branchy_msdnet(spacing=spacing, blocks=blocks)
    assert costs.cumulative_macs(model)[-1] == macs
    trained = sum(math.prod(variable.shape) for variable in model.trainable_weights)
    assert trained == parameters


def test_an_exit_does_not_pay_for_finer_features_of_its_last_layer():
    # The authors' release computes all scales of a block before its exit.
    eager = [6_781_184, 14_185_984, 25_852_672, 37_689_344]
    lazy = costs.cumulative_macs(branchy_msdnet(blocks=4))
    assert lazy[-1] == eager[-1]
    assert all(0.8 * e < n < e for n, e in zip(lazy[:-1], eager[:-1], strict=True))


def test_every_block_has_an_exit():
    parts = stages.split(branchy_msdnet(blocks=5))
    assert len(parts) == 5
    first = {layer.name for layer in parts[0].model.layers}
    assert "layer_1_scale_3" in first
    assert "layer_1_scale_1" not in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 1}, "blocks"),
        ({"blocks": 12}, "at most 11"),
        ({"blocks": 5.5}, "blocks"),
        ({"spacing": "linear"}, "must be one of growing, even"),
        ({"input_shape": (8, 8, 3)}, "at least 16"),
    ],
)
def test_rejects_invalid_arguments(arguments, message):
    with pytest.raises(BranchyError, match=message):
        branchy_msdnet(**arguments)

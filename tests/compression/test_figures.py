from __future__ import annotations

import gzip

import numpy as np
import pytest
import small

from branchy_tf.compression import Settings, figures
from branchy_tf.errors import BranchyError


def test_counts_zeros_and_values_of_each_compressed_kernel():
    kernel = np.array([[0, 1], [1, 2]], np.float32)
    weights = {"0.0": np.ones(3), "1.0": kernel, "1.1": np.zeros(2)}
    (row,) = figures.of_layers(["a", "b"], weights, {"b": [0]})
    assert row == {"layer": "b", "weights": 4, "sparsity": 0.25, "distinct_values": 3}
    rows = [row, row | {"weights": 12, "sparsity": 0.5}]
    assert figures.sparsity(rows) == pytest.approx(7 / 16)


@pytest.mark.parametrize(
    ("weights", "zeros", "fits"),
    [(10, 8, True), (10, 9, True), (10, 7, False), (30, 24, True), (13, 10, True),
     (13, 9, False), (1, 0, True)],
)  # fmt: skip
def test_pruned_kernels_have_the_sparsity_within_rounding(weights, zeros, fits):
    row = {"layer": "x", "weights": weights, "sparsity": zeros / weights}
    if fits:
        figures.check([row], Settings("prune", sparsity=0.8))
    else:
        with pytest.raises(BranchyError, match=r"'x' has .* expected 80\.00%"):
            figures.check([row], Settings("prune", sparsity=0.8))


def test_clustered_kernels_have_at_most_the_clusters():
    row = {"layer": "x", "weights": 99, "sparsity": 0.0, "distinct_values": 16}
    figures.check([row], Settings("cluster", clusters=16))
    with pytest.raises(BranchyError, match=r"16 distinct weights .* at most 15"):
        figures.check([row], Settings("cluster", clusters=15))


def test_fewer_values_take_fewer_bytes():
    model = small.model()
    whole = figures.gzipped_weights(model)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    assert figures.gzipped_weights(model) < whole
    assert figures.gzipped(b"x" * 99) == len(gzip.compress(b"x" * 99, mtime=0))

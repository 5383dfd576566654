from __future__ import annotations

import numpy as np
import pytest

from branchy_tf.compression import LEARNING_RATES, METHODS, Settings
from branchy_tf.errors import BranchyError


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("shrink", {}, "Unknown method 'shrink'. Known: prune, cluster, qat."),
        ("prune", {"sparsity": 0}, "`sparsity` must be a fraction of 1, between 0 and 1"),
        ("prune", {"sparsity": 1}, "`sparsity` must be a fraction of 1, between 0 and 1"),
        ("prune", {"sparsity": 80}, "Received 80. 80 % is 0.8."),
        ("prune", {"sparsity": float("nan")}, "Received nan."),
        ("cluster", {"clusters": 1}, "`clusters` must be a whole number from 2 to 256"),
        ("cluster", {"clusters": 257}, "from 2 to 256. Received 257."),
        ("cluster", {"clusters": 2.5}, "from 2 to 256. Received 2.5."),
        ("qat", {"epochs": 0}, "`epochs` must be a whole number of at least 1."),
        ("qat", {"batch_size": 0}, "`batch_size` must be a whole number of at least 1."),
        ("qat", {"learning_rate": 0}, "`learning_rate` must be a finite number above 0"),
        ("qat", {"augmentation": "blur"}, "Unknown augmentation 'blur'."),
        ("qat", {"skip_layers": [""]}, "`skip_layers` must be a non-empty string."),
        ("qat", {"loss_weights": ["a"]}, "`loss_weights` must be numbers."),
        ("qat", {"seed": -1}, "`seed` must be a whole number of at least 0."),
    ],
)
def test_rejects_invalid_values(method, given, expected):
    with pytest.raises(BranchyError) as caught:
        Settings(method, **given)
    assert expected in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_learning_rate(method):
    assert Settings(method).learning_rate == LEARNING_RATES[method]
    assert Settings(method, learning_rate=0.5).learning_rate == 0.5


def test_the_record_holds_what_counts_for_the_method():
    assert Settings("prune", sparsity=0.5).record()["sparsity"] == 0.5
    assert "clusters" not in Settings("prune").record()
    assert "sparsity" not in Settings("cluster").record()
    weights = Settings("qat", loss_weights=np.array([1, 0.5])).record()["loss_weights"]
    assert weights == [1.0, 0.5]

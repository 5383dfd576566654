"""Compresses a model of several inputs, whose classes have weights.

A compression takes as long as importing TensorFlow and tensorflow-model-optimization, so
there is one.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import odd_models
import pytest

from branchy_tf import data
from branchy_tf.compression import Settings, compress, tflite
from branchy_tf.compression.describing import describe_inputs
from branchy_tf.errors import BranchyError
from branchy_tf.training import RunFolder, read_history


@pytest.fixture(scope="module")
def model():
    return odd_models.build(odd_models.several_inputs)[0]


@pytest.fixture(scope="module")
def dataset():
    random = np.random.default_rng(2)

    def split(rows):
        inputs = {
            "image": random.normal(size=(rows, 8, 8, 3)).astype(np.float32),
            "extra": random.normal(size=(rows, 5)).astype(np.float32),
        }
        return data.Split(inputs, np.arange(rows, dtype=np.int64) % 4)

    return data.Dataset("two", 4, split(32), split(8), split(8))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None,
    reason="the extra compression is not installed",
)
def test_compresses_with_the_weights_of_classes(model, dataset, tmp_path):
    settings = Settings(
        "cluster", clusters=4, epochs=1, learning_rate=1e-6, class_weights={"3": 4000.0}
    )
    folder = RunFolder(tmp_path / "run")
    record = compress(model, dataset, settings, folder)
    assert record["class_weights"] == [1, 1, 1, 4000]
    assert all(row["distinct_values"] <= 4 for row in record["layers"])
    (row,) = read_history(folder.history)
    # A quarter of the rows count 4,000 times.
    assert float(row["exit_1_loss"]) > 200
    assert float(row["val_exit_1_loss"]) < 10
    compressed = folder.load_model()
    assert [tensor.name for tensor in compressed.inputs] == ["image", "extra"]
    # Once more: nothing to do.
    assert compress(model, dataset, settings, folder) == record


def test_rejects_what_does_not_fit_the_data(model, dataset, tmp_path):
    folder = RunFolder(tmp_path / "run")
    for settings, expected in (
        ({"augmentation": "shift"}, "`augmentation` shift is for images"),
        ({"class_weights": {"cat": 2.0}}, "`class_weights` has the class 'cat'"),
    ):
        with pytest.raises(BranchyError, match=expected):
            compress(model, dataset, Settings("prune", **settings), folder)
    assert not folder.path.exists()


def test_a_file_of_every_exit_takes_the_inputs_by_name(model, dataset, tmp_path):
    names = ["exit_1", "exit_2"]
    path = tmp_path / "all_exits.tflite"
    path.write_bytes(tflite.convert(model, describe_inputs(model), names, False))
    inputs = dataset.test.inputs
    logits = tflite.every_exit(path, model, dataset.test, batch_size=3)
    outputs = model([inputs["image"], inputs["extra"]], training=False)
    expected = np.stack([outputs[name] for name in names], axis=1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)

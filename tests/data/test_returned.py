"""Data sets that a function returns, and those of TensorFlow Datasets."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from branchy_tf import data
from branchy_tf.errors import BranchyError

X = np.random.default_rng(0).random((20, 3)).astype(np.float32)
Y = np.arange(20) % 2
TEST = (X[:6], Y[:6])


@pytest.fixture
def load(monkeypatch):
    def load_(function, **options) -> data.Dataset:
        module = types.ModuleType("own_data")
        module.make = function
        monkeypatch.setitem(sys.modules, "own_data", module)
        return data.load("own_data:make", **options)

    return load_


def complaint(load, function) -> str:
    with pytest.raises(BranchyError) as caught:
        load(function)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pipeline(rows=20, batch=None):
    found = tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows]))
    return found.batch(batch) if batch else found


@pytest.mark.parametrize(
    "train",
    [
        (X, Y),
        [X.tolist(), Y.tolist()],
        (tf.constant(X), tf.constant(Y)),
        pipeline(),
        pipeline(batch=7),
        pipeline(batch=5).map(lambda x, y: (x, y[:, None])),
    ],
    ids=["arrays", "lists", "tensors", "rows", "batches", "column"],
)
def test_splits_of_every_kind(load, train):
    loaded = load(lambda: (train, TEST), validation_size=4)
    assert loaded.name == "own_data:make"
    assert [len(split) for split in loaded.splits.values()] == [16, 4, 6]
    np.testing.assert_array_equal(np.bincount(loaded.validation.labels), [2, 2])
    rows = np.concatenate([loaded.train.inputs, loaded.validation.inputs])
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(X, axis=0))


def test_names_weights_and_several_inputs(load):
    def make():
        both = {"a": X, "b": X[:, :2]}
        some = {"a": X[:6], "b": X[:6, :2]}
        return {
            "train": (both, Y, X[:, 0]),
            "validation": (some, Y[:6]),
            "test": (some, Y[:6]),
            "class_names": ["no", "yes"],
        }

    loaded = load(make)
    assert loaded.class_names == ("no", "yes")
    assert loaded.train.inputs["b"].shape == (20, 2)
    np.testing.assert_array_equal(loaded.train.weights, X[:, 0])


def test_dicts_in_a_pipeline(load):
    rows = tf.data.Dataset.from_tensor_slices(({"a": X, "b": X[:, :2]}, Y))
    loaded = load(lambda: (rows.batch(6), rows))
    assert loaded.test.inputs["b"].shape == (20, 2)


def test_names_as_labels_in_a_pipeline(load):
    rows = tf.data.Dataset.from_tensor_slices((X, np.array(["no", "yes"])[Y]))
    assert load(lambda: (rows, rows)).class_names == ("no", "yes")


def test_memory_mapped_rows_stay_on_disk(load, tmp_path):
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    loaded = load(lambda: ((mapped, Y), (mapped, Y)))
    assert isinstance(loaded.train.inputs, data.View)
    inputs, _ = next(loaded.test.batches(4))
    np.testing.assert_array_equal(inputs, X[:4])


def broken():
    raise KeyError("no\nfile")


def generator(rows):
    def rows_():
        for i in range(rows):
            yield X[i % 20], i % 2

    signature = (tf.TensorSpec((3,)), tf.TensorSpec((), tf.int32))
    return tf.data.Dataset.from_generator(rows_, output_signature=signature)


def failing():
    def rows():
        yield np.zeros(2, np.float32), 0
        raise KeyError("no more")

    signature = (tf.TensorSpec((2,)), tf.TensorSpec((), tf.int32))
    return tf.data.Dataset.from_generator(rows, output_signature=signature)


def ragged():
    def rows():
        yield np.zeros(2, np.float32), 0
        yield np.zeros(3, np.float32), 1

    signature = (tf.TensorSpec((None,)), tf.TensorSpec((), tf.int32))
    return tf.data.Dataset.from_generator(rows, output_signature=signature)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (broken, "own_data:make raised KeyError: 'no"),
        (sys.exit, "own_data:make raised SystemExit"),
        (lambda: 5, "own_data:make returned 'int'; expected (train, validation, test)"),
        (lambda: None, "own_data:make returned 'NoneType'; expected"),
        (lambda: {"train": TEST}, "own_data:make returned a dict with train; expected"),
        (lambda: (X, Y), "own_data:make returned 'ndarray' as train; expected"),
        (lambda: ((X, Y), 5), "own_data:make returned 'int' as test; expected"),
        (lambda: ((X, 5), TEST), "train labels is 5; expected an array"),
        (lambda: ((X, Y[:5]), TEST), "train labels holds 5 labels for 20 rows"),
        (lambda: (({"a": X, "b": X[:3]}, Y), ({"a": X, "b": X}, Y)), "differ in their"),
        (lambda: (({"a": X}, Y), (X, Y)), "train inputs has the inputs a and test"),
        (
            lambda: (pipeline().repeat(), TEST),
            "train is endless; expected every row",
        ),
        (lambda: (pipeline(0), TEST), "train is empty; expected at least one row"),
        (lambda: (pipeline().map(lambda x, y: x), TEST), "train gives a single value"),
        (lambda: (failing(), TEST), "own_data:make: train failed after 1 rows: "),
        (lambda: (ragged(), TEST), "train gives rows of different shapes"),
    ],
)
def test_rejects_functions_that_return_something_else(load, function, expected):
    assert expected in complaint(load, function)


def test_notices_an_endless_generator(load, monkeypatch):
    from branchy_tf.data import pipelines

    monkeypatch.setattr(pipelines, "_MOST_ROWS", 50)
    assert len(load(lambda: (generator(30), TEST)).train) == 27
    text = complaint(load, lambda: (generator(10**9), TEST))
    assert "train gives more than 51 rows" in text
    assert "or is endless" in text


def test_unknown_modules_and_functions():
    with pytest.raises(BranchyError, match="There is no Python module own_missing"):
        data.load("own_missing:make")


# TensorFlow Datasets


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """A data set of pictures of two sizes, registered like any other."""
    tfds = pytest.importorskip(
        "tensorflow_datasets", reason="tensorflow-datasets is not installed"
    )

    class BranchyPets(tfds.core.GeneratorBasedBuilder):
        """Pictures."""

        # Without it, the class would have to be part of a package.
        pkg_dir_path = tmp_path_factory.mktemp("branchy_pets")
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "label": tfds.features.ClassLabel(names=["owl", "cat"]),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(20),
                "test": self._generate_examples(4),
            }

        def _generate_examples(self, count=20):
            for i in range(count):
                side = 8 + 2 * (i % 2)
                image = np.full((side, 8, 3), 10 * i, np.uint8)
                yield i, {"image": image, "label": ("owl", "cat")[i % 2]}

    return BranchyPets


def test_reads_tensorflow_datasets(builder, tmp_path):
    loaded = data.load("tfds:branchy_pets", str(tmp_path), image_size=(8, 8))
    assert loaded.class_names == ("owl", "cat")
    assert [len(split) for split in loaded.splits.values()] == [18, 2, 4]
    assert loaded.image_shape == (8, 8, 3)
    for split in loaded.splits.values():
        values = split.images[:, 0, 0, 0] // 10
        np.testing.assert_array_equal(values % 2, split.labels)


def test_pictures_of_several_sizes_need_one(builder, tmp_path):
    with pytest.raises(BranchyError, match=r"rows of different shapes .* Resize"):
        data.load("tfds:branchy_pets", str(tmp_path))


def test_an_unknown_name(builder, tmp_path):
    with pytest.raises(BranchyError, match="tfds:branchy_none is not available: "):
        data.load("tfds:branchy_none", str(tmp_path))


def test_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(BranchyError, match=r"pip install 'branchy_tf\[tfds\]'"):
        data.load("tfds:mnist")

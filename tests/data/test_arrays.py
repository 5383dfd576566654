"""Data sets in .npz files beyond images, and labels of every kind."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from absl import logging
from keras import layers

from branchy_tf import data, exits
from branchy_tf.errors import BranchyError


@pytest.fixture
def npz(tmp_path):
    def write(**changes) -> str:
        whole = {
            "x_train": np.random.default_rng(0).random((40, 6)),
            "y_train": np.arange(40) % 4,
            "x_test": np.random.default_rng(1).random((12, 6)),
            "y_test": np.arange(12) % 4,
        } | changes
        kept = {name: array for name, array in whole.items() if array is not None}
        np.savez(tmp_path / "own.npz", **kept)
        return str(tmp_path / "own.npz")

    return write


@pytest.fixture
def said(monkeypatch):
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            logging,
            level,
            lambda text, *args: lines.append(text % args if args else text),
        )
    return lines


def complaint(*args, **options) -> str:
    with pytest.raises(BranchyError) as caught:
        data.load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Inputs


@pytest.mark.parametrize(
    ("rows", "shape", "dtype"),
    [
        (np.arange(240).reshape(40, 6), (6,), np.int32),
        (np.arange(240, dtype=np.uint8).reshape(40, 6), (6,), np.uint8),
        (np.arange(240).reshape(40, 6) * 2**40, (6,), np.int64),
        (np.ones((40, 6)) / 3, (6,), np.float32),
        (np.ones((40, 6, 2)) / 3, (6, 2), np.float32),
        (np.ones((40, 6, 2), np.float32), (6, 2), np.float32),
        (np.ones((40, 4, 4, 3)) / 3, (4, 4, 3), np.float32),
        (np.ones((40, 4, 4, 4, 3), np.float16), (4, 4, 4, 3), np.float32),
        (np.full((40, 6, 2), 7.0), (6, 2, 1), np.uint8),
    ],
)
def test_arrays_of_any_rank_and_dtype(npz, rows, shape, dtype):
    loaded = data.load(npz(x_train=rows, x_test=rows[:12]))
    for split in loaded.splits.values():
        assert split.inputs.shape == (len(split), *shape)
        assert split.inputs.dtype == dtype
    np.testing.assert_allclose(np.ravel(loaded.test.inputs), np.ravel(rows[:12]))


def test_several_inputs_by_name(npz):
    left, right = np.arange(240).reshape(40, 6), np.full((40, 5, 2), 9.0)
    names = {"x_train": None, "x_test": None}
    loaded = data.load(npz(
        **names,
        **{"x_train/left": left, "x_train/right": right},
        **{"x_test/left": left[:12], "x_test/right": right[:12]},
    ))  # fmt: skip
    assert set(loaded.train.inputs) == {"left", "right"}
    # Named arrays are never taken for images.
    assert loaded.train.inputs["right"].shape == (36, 5, 2)
    inputs, labels = next(loaded.test.batches(5))
    np.testing.assert_array_equal(inputs["left"], left[:5])
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 0])
    with pytest.raises(BranchyError, match="inputs left, right; expected one input"):
        _ = loaded.train.images


def test_a_name_keeps_a_single_array_as_it_is(npz):
    rows = np.full((40, 6, 2), 7.0)
    names = {"x_train": None, "x_test": None}
    loaded = data.load(
        npz(**names, **{"x_train/series": rows, "x_test/series": rows[:12]})
    )
    assert loaded.train.inputs["series"].shape == (36, 6, 2)


def test_a_validation_split_of_its_own(npz):
    path = npz(x_validation=np.zeros((5, 6)), y_validation=np.arange(5) % 4)
    loaded = data.load(path)
    assert [len(split) for split in loaded.splits.values()] == [40, 5, 12]
    assert "has its own validation split of 5 rows" in complaint(path, validation_size=3)


def test_weights_of_rows_stay_with_their_rows(npz):
    rows = np.arange(240.0).reshape(40, 6) + 0.5
    loaded = data.load(npz(x_train=rows, w_train=rows[:, 0]))
    np.testing.assert_array_equal(loaded.train.weights, loaded.train.inputs[:, 0])
    assert loaded.train.weights.dtype == np.float32
    assert loaded.test.weights is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"w_train": np.ones(39)}, "w_train has shape (39,) and dtype float64; expected"),
        ({"w_train": np.full(40, -1.0)}, "w_train holds -1 to -1; expected finite"),
        ({"w_train": np.zeros(40)}, "w_train holds 0 to 0; expected"),
        ({"x_validation": np.ones((2, 6))}, "Missing: y_validation."),
        ({"x_train/more": np.ones((40, 6))}, "holds x_train and x_train/more; expected"),
        ({"x_test": np.ones((12, 5)) / 3}, "x_train holds rows of shape (6,) and x_test"),
        (
            {"x_train": np.full((40, 6), 1e300)},
            "x_train holds 1e+300, which is too",
        ),
        (
            {"x_train": np.full((40, 6), 2**64 - 1, np.uint64)},
            "x_train holds 18446744073709551615, which is too large for int64",
        ),
        ({"x_train": np.ones(40)}, "x_train has shape (40,); expected rows [n, ...]"),
    ],
)
def test_rejects_what_does_not_belong_together(npz, changes, expected):
    assert expected in complaint(npz(**changes))


# Labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 255], ("0", "255")),
        ([1, 2, 3, 4, 5], ("1", "2", "3", "4", "5")),
        ([3, 9, 700], ("3", "9", "700")),
        ([-1, 1], ("-1", "1")),
        ([False, True], ("0", "1")),
        (["owl", "cat"], ("cat", "owl")),
        ([0, 1, 2], None),
    ],
)
def test_numbers_labels_of_any_kind_visibly(npz, said, labels, names):
    given = np.array(labels)[np.arange(40) % len(labels)]
    loaded = data.load(npz(y_train=given, y_test=given[:12]))
    assert loaded.classes == len(labels)
    shown = None if given.dtype == bool else names
    assert loaded.class_names == shown
    order = np.array(sorted(labels))
    np.testing.assert_array_equal(order[loaded.test.labels], given[:12])
    mapped = [line for line in said if "they become the classes 0 to" in line]
    assert len(mapped) == (shown is not None)
    if mapped:
        assert f"the labels {', '.join(names)}; they become" in mapped[0]


def test_class_names_in_the_file(npz):
    names = np.array(["zebra", "ant", "cow", "dog"])
    path = npz(class_names=names)
    loaded = data.load(path)
    assert loaded.class_names == tuple(names)
    np.testing.assert_array_equal(loaded.test.labels, np.arange(12) % 4)
    # Labels by name follow the order of class_names.
    by_name = data.load(npz(
        class_names=names,
        y_train=names[np.arange(40) % 4],
        y_test=names[np.arange(12) % 4],
    ))  # fmt: skip
    np.testing.assert_array_equal(by_name.test.labels, np.arange(12) % 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"class_names": np.array(["a", "b"])},
            "y_train holds labels from 0 to 3; expected 0 to 1.",
        ),
        ({"class_names": np.array(["a", "a"])}, "`class_names` must be at least two"),
        (
            {"class_names": np.array(list("abcd")), "y_train": np.full(40, "x")},
            "y_train holds the label x, which class_names lacks",
        ),
        (
            {"y_test": np.full(12, "x")},
            "y_test and y_train differ in kind: one holds numbers, the other names",
        ),
        (
            {"y_train": np.random.default_rng(0).permutation(1_000_000)[:40]},
            "40 different labels for 40 rows, too many for classes. These networks",
        ),
        ({"y_train": np.where(np.arange(40) % 2, "", "x")}, "an empty label in row 1"),
        (
            {"y_train": np.eye(4)[np.arange(40) % 4]},
            "They look one-hot: pass",
        ),
    ],
)
def test_rejects_labels_that_are_no_classes(npz, changes, expected):
    assert expected in complaint(npz(**changes))


def test_rejects_a_million_labels(npz):
    rows = np.arange(2_000_000)
    zeros = np.zeros((len(rows), 1), np.uint8)
    text = complaint(npz(x_train=zeros, x_test=zeros[:12], y_train=rows // 2))
    assert "holds 1,000,000 different labels for 2,000,000 rows, too many" in text


def test_says_which_classes_a_split_lacks(npz, said):
    data.load(npz(y_test=np.arange(12) % 3))
    assert any(line.endswith("y_test has no rows of the classes 3.") for line in said)


# Fitting a model


def network(shapes, dtypes, classes=4) -> keras.Model:
    inputs = [
        keras.Input(shape, dtype=dtype, name=name)
        for (name, shape), dtype in zip(shapes.items(), dtypes, strict=True)
    ]
    flat = [layers.Flatten()(keras.ops.cast(tensor, "float32")) for tensor in inputs]
    x = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    outputs = {f"exit_{k}": exits.logits_head(x, classes, f"exit_{k}") for k in (1, 2)}
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name="net")


def test_whole_numbers_become_floats_where_the_model_reads_them(npz):
    path = npz(x_train=np.arange(240).reshape(40, 6), x_test=np.zeros((12, 6), int))
    fitted = data.fitted(network({"table": (6,)}, ["float32"]), data.load(path))
    assert fitted.train.inputs.dtype == np.float32
    tokens = data.fitted(network({"tokens": (6,)}, ["int32"]), data.load(path))
    assert tokens.train.inputs.dtype == np.int32


@pytest.mark.parametrize(
    ("shapes", "dtypes", "expected"),
    [
        ({"a": (5,)}, ["float32"], "reads inputs of shape (5,), but"),
        ({"a": (6,), "b": (6,)}, ["float32"] * 2, "reads the inputs a, b, but"),
        ({"a": (6,)}, ["uint8"], "reads uint8, but the input a of"),
        ({"a": (6,)}, ["int32"], "has dtype float32. Convert it with .astype('int32')"),
    ],
)
def test_rejects_data_of_other_shapes_or_dtypes(npz, shapes, dtypes, expected):
    with pytest.raises(BranchyError) as caught:
        data.check_fits(network(shapes, dtypes), data.load(npz()))
    assert expected in str(caught.value)


def test_fractions_for_raw_pixels_say_to_multiply(npz):
    rows = np.random.default_rng(0).random((40, 4, 4, 1))
    loaded = data.load(npz(x_train=rows, x_test=rows[:12]))
    with pytest.raises(BranchyError, match="from 0 to 1, multiply by 255 and round"):
        data.check_fits(network({"images": (4, 4, 1)}, ["uint8"]), loaded)

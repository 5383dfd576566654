from __future__ import annotations

import shutil
import tracemalloc

import made_pictures
import numpy as np
import pytest
from absl import logging
from PIL import Image

from branchy_tf import data, images
from branchy_tf.errors import BranchyError


def complaint(root, **options) -> str:
    with pytest.raises(BranchyError) as caught:
        data.load(str(root), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path):
    return made_pictures.write(tmp_path / "pets")


def pixels(split: data.Split) -> np.ndarray:
    return np.asarray(split.images[:])


def test_reads_pictures_with_the_classes_of_their_folders(root):
    loaded = data.load(str(root))
    assert loaded.class_names == made_pictures.CLASSES
    assert loaded.classes == 3
    assert loaded.image_shape == (8, 8, 1)
    assert [len(split) for split in loaded.splits.values()] == [30, 12, 12]
    for split in loaded.splits.values():
        assert split.labels.dtype == np.int64
        # The brightness tells the class.
        np.testing.assert_array_equal(
            pixels(split).mean(axis=(1, 2, 3)) // 80, split.labels
        )


def test_the_first_rows_have_all_classes(root):
    assert set(data.load(str(root)).train.labels[:12].tolist()) == {0, 1, 2}


def test_rows_are_read_on_access_and_alike_by_every_index(root):
    array = data.load(str(root)).train.images
    everything = np.asarray(array)
    assert everything.shape == array.shape == (30, 8, 8, 1)
    assert everything.dtype == array.dtype == np.uint8
    np.testing.assert_array_equal(array[3], everything[3])
    np.testing.assert_array_equal(array[2:5], everything[2:5])
    rows = np.array([7, 2, 2])
    np.testing.assert_array_equal(array[rows], everything[rows])
    assert array[rows[:0]].shape == (0, 8, 8, 1)


def test_taken_rows_stay_unread(root, monkeypatch):
    split = data.load(str(root)).train
    everything = pixels(split)
    read = []
    decode = images.decode
    monkeypatch.setattr(
        images, "decode", lambda path, shape: read.append(path) or decode(path, shape)
    )
    taken = split.take(np.array([9, 4, 1])).take([2, 0])
    assert not read
    np.testing.assert_array_equal(pixels(taken), everything[[1, 9]])
    assert len(read) == 2
    np.testing.assert_array_equal(taken.labels, split.labels[[1, 9]])


def test_batches_come_in_order(root):
    split = data.load(str(root)).train
    found = list(split.batches(8))
    assert [len(labels) for _, labels in found] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), pixels(split))
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), split.labels)


def test_few_pictures_are_in_memory_at_a_time(tmp_path):
    root = made_pictures.write(
        tmp_path / "large", {"train": 40, "test": 1}, sides=(256, 256)
    )
    split = data.load(str(root)).train
    whole = len(split) * 256 * 256
    tracemalloc.start()
    try:
        for _ in split.batches(4):
            pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < whole / 2


@pytest.mark.parametrize(
    ("suffix", "mode", "channels"),
    [
        ("png", "L", 1),
        ("png", "RGB", 3),
        ("png", "RGBA", 3),
        ("png", "I;16", 1),
        ("jpg", "L", 1),
        ("JPEG", "RGB", 3),
        ("jpg", "CMYK", 3),
        ("webp", "RGB", 3),
        ("webp", "RGBA", 3),
    ],
)
def test_reads_pictures_as_predict_does(tmp_path, suffix, mode, channels):
    splits = {"train": 3, "test": 1}
    root = made_pictures.write(tmp_path / "x", splits, mode=mode, suffix=suffix)
    loaded = data.load(str(root))
    assert loaded.image_shape == (8, 8, channels)
    path = str(root / "train" / "cat" / f"0.{suffix}")
    expected, _ = images.read([path], (8, 8, channels))
    assert any(np.array_equal(row, expected[0]) for row in pixels(loaded.train))


def test_one_colour_picture_makes_all_coloured(root):
    Image.new("RGB", (8, 8), "red").save(root / "test" / "owl" / "9.png")
    assert data.load(str(root)).image_shape == (8, 8, 3)
    assert data.load(str(root), image_size=(8, 8, 1)).image_shape == (8, 8, 1)


def test_fits_mixed_sizes_to_the_given_one(root):
    Image.new("L", (16, 12)).save(root / "test" / "owl" / "9.png")
    text = complaint(root)
    assert "The pictures differ in size: " in text
    assert "9.png 12x16 (height x width). Pass --image_size=8x8" in text
    loaded = data.load(str(root), image_size=(6, 4))
    assert loaded.image_shape == (6, 4, 1)
    assert pixels(loaded.test).shape == (13, 6, 4, 1)
    # The model's input is the default.
    assert data.load(str(root), input_shape=(6, 4, 1)).image_shape == (6, 4, 1)
    assert data.load(str(root), image_size=(5, 5), input_shape=(6, 4, 1)).image_shape == (
        5, 5, 1,
    )  # fmt: skip


def test_the_size_of_a_turned_picture_is_its_upright_one(tmp_path):
    root = made_pictures.write(tmp_path / "x", {"train": 2, "test": 1}, sides=(8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (8, 6), 7).save(root / "test" / "owl" / "9.jpg", exif=exif)
    assert data.load(str(root)).image_shape == (8, 6, 1)


def test_cuts_a_missing_validation_split_by_seed_and_class(tmp_path):
    root = made_pictures.write(tmp_path / "x", {"train": 40, "test": 2})
    loaded = data.load(str(root), seed=5, validation_size=30)
    assert np.bincount(loaded.validation.labels).tolist() == [10, 10, 10]
    assert np.bincount(loaded.train.labels).tolist() == [30, 30, 30]
    rows = {row.tobytes() for row in pixels(loaded.train)}
    assert not rows & {row.tobytes() for row in pixels(loaded.validation)}
    again = data.load(str(root), seed=5, validation_size=30)
    np.testing.assert_array_equal(pixels(again.validation), pixels(loaded.validation))
    other = data.load(str(root), seed=6, validation_size=30)
    assert (pixels(other.validation) != pixels(loaded.validation)).any()


def test_rejects_a_size_for_a_given_validation_split(root):
    assert "has its own validation split of 12 rows" in complaint(root, validation_size=5)


def test_ignores_hidden_files_and_other_kinds(root):
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "more").mkdir()
    Image.new("L", (8, 8)).save(root / "train" / "cat" / "more" / "a.png")
    assert len(data.load(str(root)).train) == 31


def remove(*parts):
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def empty(root):
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


def add_class(root):
    shutil.copytree(root / "test" / "cat", root / "test" / "yak")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("train"), "holds no folder train/; expected train/ and test/"),
        (remove("test"), "holds no folder test/. The test split measures the result"),
        (empty, "train/dog holds no readable pictures; expected files ending in .png"),
        (add_class, "test holds classes that train/ lacks: yak. Add their pictures"),
        (remove("test", "owl"), "test lacks classes that train/ holds: owl. Move"),
        (remove("validation", "cat"), "validation lacks classes that train/ holds: cat"),
        (
            lambda root: (root / "validation").rename(root / "val"),
            "holds val/; expected validation/. Rename it.",
        ),
        (
            lambda root: [shutil.rmtree(root / "train" / n) for n in ("cat", "dog")],
            "train holds 1 class folder(s); expected at least 2",
        ),
    ],
)
def test_rejects_folders_of_another_form(root, change, expected):
    change(root)
    assert expected in complaint(root)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def other_bytes(path):
    path.write_bytes(b"no picture")


@pytest.mark.parametrize("damage", [cut_short, other_bytes])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_names_or_skips_a_damaged_picture(tmp_path, damage, suffix, monkeypatch):
    root = made_pictures.write(tmp_path / "x", sides=(24, 24), suffix=suffix)
    damage(root / "train" / "dog" / f"5.{suffix}")
    text = complaint(root)
    assert f"train/dog/5.{suffix} cannot be read as an image: " in text
    assert text.endswith("To leave out such pictures, pass --skip_unreadable.")
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    loaded = data.load(str(root), skip_unreadable=True)
    assert np.bincount(loaded.train.labels).tolist() == [10, 9, 10]
    assert (
        f"Skipped 1 of 54 pictures that cannot be read, the first of them {root}"
        in (said[0])
    )


def test_skipping_finds_damage_that_only_decoding_tells(root):
    path = root / "train" / "dog" / "5.png"
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(raw)
    # The header and the end are right: only reading the row fails, naming the file.
    loaded = data.load(str(root))
    with pytest.raises(BranchyError, match=r"dog/5\.png cannot be read as an image"):
        pixels(loaded.train)
    assert len(data.load(str(root), skip_unreadable=True).train) == 29


def test_rejects_a_class_without_any_readable_picture(root):
    for path in (root / "test" / "owl").iterdir():
        cut_short(path)
    text = complaint(root, skip_unreadable=True)
    assert f"{root}/test/owl holds no readable pictures" in text


@pytest.mark.parametrize("size", [(8,), (8, 8, 2), (0, 8), ("8", 8), (8, 8, 3, 1)])
def test_rejects_invalid_sizes(root, size):
    assert "`image_size` must be" in complaint(root, image_size=size)


def test_sizes_are_for_pictures(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert "`image_size` is for folders of pictures" in complaint(
        tmp_path / "a.npz", image_size=(8, 8)
    )
    assert "`skip_unreadable` is for folders" in complaint("mnist", skip_unreadable=True)


def test_says_what_a_path_is_that_is_no_data_set(tmp_path):
    path = tmp_path / "table.csv"
    assert f"There is no data set {path}; expected an .npz, or a folder" in complaint(
        path
    )
    path.write_text("1,2")
    assert f"{path} is a file that is no .npz; expected an .npz" in complaint(path)

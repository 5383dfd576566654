"""Loads a data set from any source, checked and cut into three splits."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import numpy as np

from branchy_tf import checks, files
from branchy_tf.data import (
    folders,
    functions,
    inputs,
    labels,
    named,
    npz,
    pipelines,
    weights,
)
from branchy_tf.data.raw import Raw
from branchy_tf.data.splits import Dataset, Split
from branchy_tf.errors import BranchyError
from branchy_tf.files.functions import names_function

_Arguments = ParamSpec("_Arguments")


def _remembered(load: Callable[_Arguments, Dataset]) -> Callable[_Arguments, Dataset]:
    """`load`, whose results know the arguments that load them again."""

    @functools.wraps(load)
    def remembering(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Dataset:
        dataset = load(*args, **kwargs)
        given = inspect.signature(load).bind(*args, **kwargs).arguments
        source: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        # The data are the same from any working folder.
        for name in ("name", "data_dir"):
            if name in source and (name == "data_dir" or is_path(source[name])):
                source[name] = str(files.absolute(source[name]))
        return dataclasses.replace(dataset, source=source)

    return remembering


@_remembered
def load(
    name: str,
    data_dir: files.Path | None = None,
    validation_size: int | None = None,
    seed: int = 0,
    *,
    image_size: Sequence[int] | None = None,
    skip_unreadable: bool = False,
    input_shape: Sequence[int | None] | None = None,
) -> Dataset:
    """Loads a data set.

    Args:
        name: one of
            - `mnist`, `fashion_mnist`, `cifar10`, `cifar100` or `mnist_5k`;
            - the path of an .npz with x_train, y_train, x_test and y_test, maybe
              x_validation and y_validation. Several inputs are stored by their names,
              as x_train/NAME; w_train holds weights of the rows, class_names the names
              of the classes;
            - the path of a folder with train/, test/ and maybe validation/, each with a
              folder of pictures for each class;
            - `tfds:NAME`, a data set of TensorFlow Datasets;
            - `module:function`, a function that returns the splits.
        data_dir: the folder to search for `<name>.npz`, or that of TensorFlow Datasets.
            `keras.datasets` downloads the data set if the file is missing.
        validation_size: rows to cut from the training split for validation. Default:
            a tenth, at most 5,000. A data set with its own validation split takes none.
        seed: the seed that selects these rows.
        image_size: (height, width), maybe with channels, to fit pictures of a folder
            and images of `tfds:` to. Bilinear, without preserving the aspect ratio.
            Default: the size of `input_shape`, or else their common size.
        skip_unreadable: whether to leave out pictures of a folder that cannot be read.
        input_shape: the shape of the model's input, (height, width, channels).

    Raises:
        BranchyError: unknown data set, or its data are not as expected.

    Example:

    ```python
    data.load("mnist", "~/datasets").validation.images.shape   # (5000, 28, 28, 1)
    data.load("pictures", image_size=(96, 96)).class_names      # ("cat", "dog")
    ```
    """
    name = os.fspath(checks.path("name", name))
    seed = checks.whole_number("seed", seed, at_least=0)
    if data_dir is not None:
        checks.path("data_dir", data_dir)
    image_size = _check_size(image_size)
    is_folder = is_path(name) and not name.endswith(".npz") and os.path.isdir(name)
    if (image_size is not None or skip_unreadable) and not (
        is_folder or name.startswith(pipelines.TFDS)
    ):
        flag = "image_size" if image_size is not None else "skip_unreadable"
        raise BranchyError(
            f"`{flag}` is for folders of pictures, and {name} is none. Leave it out."
        )
    if name == "mnist_5k":
        if validation_size is not None:
            raise BranchyError(
                "mnist_5k has a fixed split with 500 rows for validation. Received "
                f"`validation_size` {validation_size}. Leave it out."
            )
        return named.mnist_5k()
    if image_size is None and input_shape is not None and len(input_shape) == 3:
        image_size = None if None in input_shape else input_shape  # type: ignore[assignment]
    if name in named.KERAS_DATASETS:
        raw = named.read(name, data_dir)
    elif name.startswith(pipelines.TFDS):
        raw = pipelines.read_tfds(name, data_dir, image_size)
    elif name.endswith(".npz"):
        raw = npz.read(files.path(name), name)
    elif is_folder:
        raw = folders.read(files.path(name), name, image_size, skip_unreadable)
    elif names_function(name):
        raw = functions.read(name)
    else:
        raise _unknown(name)
    return _assembled(raw, validation_size, seed)


def is_path(name: str) -> bool:
    """Whether the name of a data set is a path, of an .npz or a folder."""
    return (
        name not in named.NAMES
        and not name.startswith(pipelines.TFDS)
        and (name.endswith(".npz") or files.path(name).is_dir())
    )


def _check_size(size: Sequence[int] | None) -> tuple[int, ...] | None:
    if size is None:
        return None
    values = [checks.whole_number("image_size", side, 1, 100_000) for side in size]
    if len(values) not in (2, 3) or (len(values) == 3 and values[2] not in (1, 3)):
        raise BranchyError(
            "`image_size` must be height and width, maybe with 1 or 3 channels. Received "
            f"{checks.shown(size)}."
        )
    return tuple(values)


def _unknown(name: str) -> BranchyError:
    if os.path.exists(name):
        return BranchyError(
            f"{name} is a file that is no .npz; expected an .npz, or a folder with "
            "train/ and test/."
        )
    if os.sep in name:
        return BranchyError(
            f"There is no data set {name}; expected an .npz, or a folder with train/ and "
            "test/."
        )
    close = difflib.get_close_matches(name, named.NAMES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return BranchyError(
        f"Unknown data set {name!r}.{hint} Known: {', '.join(named.NAMES)}, or the path "
        "of an .npz file or of a folder of pictures, tfds:NAME, or module:function."
    )


def _assembled(raw: Raw, validation_size: int | None, seed: int) -> Dataset:
    """The data set, checked and cut into three splits."""
    names = [
        {part: split.names[i] for part, split in raw.splits.items()} for i in range(3)
    ]
    arrays = inputs.check(
        {part: split.inputs for part, split in raw.splits.items()}, names[0], raw.source
    )
    numbers, classes, class_names = labels.encode(
        {part: split.labels for part, split in raw.splits.items()},
        names[1],
        raw.source,
        raw.classes,
        raw.class_names,
    )
    splits = {}
    for part, array in arrays.items():
        count = inputs.rows(array, f"{raw.source}: {names[0][part]}")
        if len(numbers[part]) != count:
            raise BranchyError(
                f"{raw.source}: {names[1][part]} holds {len(numbers[part])} labels for "
                f"{count} rows; expected one for each."
            )
        splits[part] = Split(
            array,
            numbers[part],
            weights.check(
                raw.splits[part].weights, count, f"{raw.source}: {names[2][part]}"
            ),
        )
    if "validation" not in splits:
        splits["train"], splits["validation"] = _cut(
            splits["train"], validation_size, seed, raw.stratified
        )
    elif validation_size is not None:
        raise BranchyError(
            f"{raw.name} has its own validation split of {len(splits['validation'])} "
            f"rows. Received `validation_size` {validation_size}. Leave it out."
        )
    return Dataset(
        raw.name,
        classes,
        splits["train"],
        splits["validation"],
        splits["test"],
        class_names,
    )


def _cut(
    train: Split, size: int | None, seed: int, stratified: bool
) -> tuple[Split, Split]:
    """Training and validation rows, sorted so that reading them is contiguous."""
    if size is None:
        size = max(1, min(5000, len(train) // 10))
    if len(train) < 2:
        raise BranchyError(
            f"The training split holds {len(train)} row; expected at least 2, one of "
            "them for validation."
        )
    try:
        size = checks.whole_number("validation_size", size, 1, len(train) - 1)
    except BranchyError:
        raise BranchyError(
            f"`validation_size` must be between 1 and {len(train) - 1}, one less than "
            f"the rows of the training split. Received {checks.shown(size)}."
        ) from None
    random = np.random.default_rng(seed)
    rows = random.permutation(len(train))
    if stratified:
        # Each class is spread evenly over the order, so the first rows have its share.
        place = np.empty(len(rows))
        for label in np.unique(train.labels):
            own = rows[train.labels[rows] == label]
            place[own] = (np.arange(len(own)) + random.random()) / len(own)
        rows = np.argsort(place, kind="stable")
    return train.take(np.sort(rows[size:])), train.take(np.sort(rows[:size]))

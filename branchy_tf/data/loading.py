"""Loads a data set from any source, checked and cut into three splits."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from branchy_tf import checks, files
from branchy_tf.data import inputs, labels, named, npz
from branchy_tf.data.raw import Raw
from branchy_tf.data.splits import Dataset, Split
from branchy_tf.errors import BranchyError

_Arguments = ParamSpec("_Arguments")


def _remembered(load: Callable[_Arguments, Dataset]) -> Callable[_Arguments, Dataset]:
    """`load`, whose results know the arguments that load them again."""

    @functools.wraps(load)
    def remembering(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Dataset:
        dataset = load(*args, **kwargs)
        given = inspect.signature(load).bind(*args, **kwargs).arguments
        source: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        for name in ("name", "data_dir"):
            # The data are the same from any working folder.
            is_path = name == "data_dir" or source["name"] not in named.NAMES
            if name in source and is_path and files.path(source[name]).exists():
                source[name] = str(files.absolute(source[name]))
        return dataclasses.replace(dataset, source=source)

    return remembering


@_remembered
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
        return named.mnist_5k()
    if name in named.KERAS_DATASETS:
        raw = named.read(name, data_dir)
    elif name.endswith(".npz"):
        raw = npz.read(files.path(name), name)
    else:
        close = difflib.get_close_matches(name, named.NAMES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise BranchyError(
            f"Unknown data set {name!r}.{hint} Known: {', '.join(named.NAMES)}, or the "
            "path of an .npz file."
        )
    return _assembled(raw, validation_size, seed)


def _assembled(raw: Raw, validation_size: int | None, seed: int) -> Dataset:
    """The data set, checked and cut into three splits."""
    arrays = {
        part: inputs.check(split.inputs, f"{raw.source}: {split.names[0]}")
        for part, split in raw.splits.items()
    }
    if arrays["train"].shape[1:] != arrays["test"].shape[1:]:
        raise BranchyError(
            f"{raw.source}: x_train holds images of shape {arrays['train'].shape[1:]} "
            f"and x_test of {arrays['test'].shape[1:]}; expected the same."
        )
    classes = raw.classes
    if classes is None:
        classes = labels.count_classes(
            raw.splits["train"].labels, f"{raw.source}: y_train"
        )
    train, test = (
        Split(
            arrays[part],
            labels.check(
                raw.splits[part].labels,
                len(arrays[part]),
                classes,
                f"{raw.source}: {raw.splits[part].names[1]}",
            ),
        )
        for part in ("train", "test")
    )
    train, validation = _cut(train, validation_size, seed)
    return Dataset(raw.name, classes, train, validation, test)


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

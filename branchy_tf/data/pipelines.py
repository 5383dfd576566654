"""Reads `tf.data.Dataset` into arrays, and data sets of TensorFlow Datasets."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from branchy_tf import files, images
from branchy_tf.data.raw import Raw, RawSplit
from branchy_tf.errors import BranchyError, first_line

# An endless pipeline of unknown length is noticed here at the latest.
_MOST_ROWS = 10_000_000
_NEWS = 100_000
TFDS = "tfds:"


def is_pipeline(value: Any) -> bool:
    """Whether a value is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(value, "element_spec") and hasattr(value, "as_numpy_iterator")


def arrays(
    dataset: Any, what: str, fit: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[Any, ...]:
    """All rows of a `tf.data.Dataset`, in memory.

    Args:
        dataset: gives `(inputs, labels)` or `(inputs, labels, weights)`, single rows or
            batches.
        what: what messages call it.
        fit: applied to the input of each row.

    Returns:
        The same tuple of arrays, with all rows.

    Raises:
        BranchyError: it gives something else, is empty or endless, raises an error, or
            its rows differ in shape.
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise BranchyError(
            f"{what} gives {_described(spec)}; expected (inputs, labels) or (inputs, "
            "labels, weights)."
        )
    if int(dataset.cardinality()) == -1:
        raise BranchyError(
            f"{what} is endless; expected every row once. Remove repeat(), or add take()."
        )
    batched = _is_batched(spec)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows: list[Any] = []
    count = size = 0
    try:
        for row in dataset.as_numpy_iterator():
            row = tuple(row)
            if fit is not None:
                row = (fit(row[0]), *row[1:])
            leaves = keras.tree.flatten(row)
            before = count // _NEWS
            count += len(leaves[-1]) if batched else 1
            size += sum(np.asarray(leaf).nbytes for leaf in leaves)
            rows.append(row)
            if count // _NEWS > before:
                logging.info("%s: %d rows read.", what, count)
            if count > _MOST_ROWS or size > memory // 2:
                raise BranchyError(
                    f"{what} gives more than {count:,} rows ({size / 2**30:.1f} GiB), "
                    "too many for memory, or is endless. Return arrays that read rows on "
                    "access, such as numpy.memmap, or add take()."
                )
    except BranchyError:
        raise
    except Exception as error:  # TensorFlow raises whatever the pipeline does
        raise BranchyError(
            f"{what} failed after {count:,} rows: {first_line(error)}."
        ) from error
    if not count:
        raise BranchyError(f"{what} is empty; expected at least one row.")
    join = np.concatenate if batched else np.stack
    try:
        return keras.tree.map_structure(lambda *parts: join(parts), *rows)
    except ValueError as error:
        raise BranchyError(
            f"{what} gives rows of different shapes ({first_line(error)}); expected the "
            "same shape. Resize or pad them."
        ) from None


def _is_batched(spec: tuple[Any, ...]) -> bool:
    """Whether elements are batches: labels and inputs share their first axis."""
    labels = keras.tree.flatten(spec[1])[0].shape
    inputs = keras.tree.flatten(spec[0])[0].shape
    if not labels.rank:
        return False
    return bool(inputs.rank) and inputs[0] == labels[0]


def _described(spec: Any) -> str:
    if isinstance(spec, (tuple, list)):
        return f"{len(spec)} values"
    if isinstance(spec, dict):
        return f"a dict with {', '.join(map(str, spec))}"
    return "a single value"


def read_tfds(
    name: str,
    data_dir: files.Path | None = None,
    image_size: Sequence[int] | None = None,
) -> Raw:
    """A data set of TensorFlow Datasets, in memory.

    Args:
        name: "tfds:" and its name, maybe with a configuration and a version.
        data_dir: the folder of TensorFlow Datasets; default: its own.
        image_size: (height, width, ...) to resize images to. Default: as they are.

    Raises:
        BranchyError: the package or the data set is missing, it has no inputs and
            labels, or no split test.
    """
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ImportError:
        raise BranchyError(
            f"{name} needs the package tensorflow-datasets, which is not installed. "
            "Install it: pip install 'branchy_tf[tfds]'."
        ) from None
    try:
        place = None if data_dir is None else os.fspath(files.path(data_dir))
        builder = tfds.builder(name.removeprefix(TFDS), data_dir=place)
        builder.download_and_prepare()
    except Exception as error:
        # Downloads and builders raise errors without a common type.
        raise BranchyError(
            f"{name} is not available: {first_line(error)}. Check the name, or prepare "
            "it elsewhere and pass its folder as --data_dir."
        ) from None
    found = set(builder.info.splits)
    if not {"train", "test"} <= found:
        raise BranchyError(
            f"{name} has the splits {', '.join(sorted(found))}; expected train and test. "
            "Choose the splits in a function and pass it as --dataset=module:function."
        )
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2:
        raise BranchyError(
            f"{name} does not say which features are input and label. Choose them in a "
            "function and pass it as --dataset=module:function."
        )
    names = getattr(builder.info.features[keys[1]], "names", None)
    fit = None
    if image_size is not None:
        sides = (image_size[0], image_size[1])

        def fit(image: np.ndarray) -> np.ndarray:
            return images.resize(image, sides)

    splits = {}
    for part in ("train", "validation", "test"):
        if part in found:
            pipeline = builder.as_dataset(split=part, as_supervised=True)
            values, labels = arrays(pipeline, f"{name}: {part}", fit)
            splits[part] = RawSplit(values, labels, names=(part, f"{part} labels", ""))
    if names is not None and list(names) == [str(i) for i in range(len(names))]:
        names = None
    return Raw(name, name, splits, class_names=names)

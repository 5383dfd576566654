"""Rows from whatever a Keras user has: arrays, or a tf.data.Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from branchy_tf import checks
from branchy_tf.data import Dataset, Split
from branchy_tf.errors import BranchyError, first_line

_EXPECTED = "a data.Dataset, a data.Split, (inputs, labels) or a tf.data.Dataset of such"


def validation_rows(dataset: Any, classes: int) -> Split:
    """The rows to calibrate or to compare answers on.

    Args:
        dataset: a `data.Dataset`, whose validation split is taken; a `data.Split`; a
            pair `(inputs, labels)`; or a `tf.data.Dataset` of such pairs, batched or
            not. Inputs are one array, or a dict by input name. Labels are class indices
            [n] or [n, 1], or the dict `{exit: labels}` that the model was fitted with.
            Weights as a third element are ignored.
        classes: the number of classes of the model.

    Raises:
        BranchyError: it is none of these, infinite or empty, or its labels are no class
            indices of the model.
    """
    if isinstance(dataset, Dataset):
        return dataset.validation
    if isinstance(dataset, Split):
        return dataset
    if isinstance(dataset, tf.data.Dataset):
        dataset = _read(dataset)
    if not isinstance(dataset, (tuple, list)) or len(dataset) not in (2, 3):
        raise BranchyError(
            f"`dataset` must be {_EXPECTED}. Received {checks.shown(dataset)}."
        )
    inputs, labels = dataset[0], dataset[1]
    several = isinstance(inputs, Mapping)
    named = inputs if several else {"inputs": inputs}
    arrays = {name: _array(name, value) for name, value in named.items()}
    counts = {len(array) for array in arrays.values()}
    found = _labels(labels, classes)
    if counts != {len(found)}:
        raise BranchyError(
            f"`dataset` has inputs of {', '.join(map(str, sorted(counts)))} rows and "
            f"{len(found)} labels; expected one label for each row."
        )
    return Split(arrays if several else arrays["inputs"], found)


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception:  # array libraries raise types of their own
        array = np.array(None)
    if not array.ndim or array.dtype.kind not in "iufb":
        raise BranchyError(
            f"`{name}` must be an array of numbers, rows first. Received "
            f"{checks.shown(value)}."
        )
    return array


def _labels(given: Any, classes: int) -> np.ndarray:
    """Class indices int64 [n]."""
    if isinstance(given, Mapping) and given:
        given = list(given.values())[-1]
    labels = checks.real_array("labels", given)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = ""
        if labels.ndim == 2 and labels.shape[1] == classes:
            hint = " Pass one-hot labels as their argmax(axis=1)."
        raise BranchyError(
            f"`labels` has shape {labels.shape}; expected class indices [n].{hint}"
        )
    whole = labels == np.rint(labels)
    if not whole.all() or (
        labels.size and not 0 <= labels.min() <= labels.max() < classes
    ):
        raise BranchyError(
            f"`labels` holds values from {labels.min():g} to {labels.max():g}; expected "
            f"class indices, whole numbers from 0 to {classes - 1}."
        )
    return labels.astype(np.int64)


def _read(dataset: tf.data.Dataset) -> tuple[Any, Any]:
    """The inputs and labels of a finite data set, in memory."""
    spec = dataset.element_spec
    if not isinstance(spec, (tuple, list)) or len(spec) not in (2, 3):
        raise BranchyError(
            f"`dataset` must be {_EXPECTED}. Received a tf.data.Dataset whose elements "
            f"are {checks.shown(spec)}."
        )
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise BranchyError(
            "`dataset` is infinite; expected a validation split. Leave out repeat(), or "
            "take(n) of it."
        )
    labels = tf.nest.flatten(spec[1])
    if all(not label.shape.rank for label in labels if label.shape.rank is not None):
        dataset = dataset.batch(256)
    try:
        parts = [(element[0], element[1]) for element in dataset.as_numpy_iterator()]
    except tf.errors.OpError as error:
        raise BranchyError(
            f"`dataset` cannot be read: {first_line(error)}. Iterate over it to see "
            "where."
        ) from None
    if not parts:
        raise BranchyError("`dataset` is empty; expected a validation split.")
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

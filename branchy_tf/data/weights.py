"""Weights of rows and classes in the training loss."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf import checks, files
from branchy_tf.data.splits import Dataset
from branchy_tf.errors import BranchyError

BALANCED = "balanced"
# `balanced`, the path of a .json file, or weights by class name or number.
ClassWeights = str | os.PathLike | Mapping[str, float] | Sequence[float]


def check(weights: Any, rows: int, what: str) -> np.ndarray | None:
    """The weights of the rows as float32 [n]; None stays None.

    Raises:
        BranchyError: not one finite, non-negative number for each row, or all are 0.
    """
    if weights is None:
        return None
    values = np.asarray(weights)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (rows,) or values.dtype.kind not in "iuf":
        raise BranchyError(
            f"{what} has shape {values.shape} and dtype {values.dtype}; expected one "
            f"number for each of {rows} rows."
        )
    _check_numbers(values, what)
    return values.astype(np.float32)


def class_weights(given: ClassWeights, dataset: Dataset) -> np.ndarray:
    """The weight of each class in the training loss.

    Args:
        given: `balanced`: n / (C n_c), n the training rows, n_c those of the class and C
            the number of classes, so that every class counts as much and the mean
            over the rows is 1. Otherwise the weights themselves: the path of a .json
            file or a dict, by class name or number, where classes left out have 1; or a
            list of C numbers.
        dataset: counts the training rows.

    Returns:
        float32 [C].

    Raises:
        BranchyError: unknown classes, or weights that are negative, not finite, or all 0.

    Example:

    ```python
    class_weights({"cat": 2.0}, dataset)
    ```
    """
    counts = np.bincount(dataset.train.labels, minlength=dataset.classes)
    if isinstance(given, (str, os.PathLike)):
        if given == BALANCED:
            if not counts.all():
                name = dataset.class_name(int(np.argmin(counts)))
                raise BranchyError(
                    f"`class_weights` {BALANCED} needs training rows of every class, but "
                    f"{name} has none. Give the weights themselves."
                )
            return (counts.sum() / (len(counts) * counts)).astype(np.float32)
        if not os.fspath(given).endswith(".json"):
            raise BranchyError(
                f"`class_weights` must be {BALANCED} or the path of a .json file. "
                f"Received {checks.shown(given)}."
            )
        given = files.read_json(files.path(given))
    if not isinstance(given, Mapping):
        values = checks.real_array("class_weights", given)
        if values.shape != (dataset.classes,):
            raise BranchyError(
                f"`class_weights` has shape {values.shape}; expected {dataset.classes} "
                "numbers, one for each class."
            )
    else:
        values = _by_name(given, dataset)
    _check_numbers(values, "`class_weights`")
    return values.astype(np.float32)


def weighted(dataset: Dataset, given: ClassWeights | None) -> Dataset:
    """The data set whose training rows also have the weights of their classes.

    The weight of a row is its own times that of its class.
    """
    if given is None:
        return dataset
    weights = class_weights(given, dataset)[dataset.train.labels]
    if dataset.train.weights is not None:
        weights = weights * dataset.train.weights
    train = dataclasses.replace(dataset.train, weights=weights)
    return dataclasses.replace(dataset, train=train)


def _by_name(given: Mapping[str, Any], dataset: Dataset) -> np.ndarray:
    names = [dataset.class_name(i) for i in range(dataset.classes)]
    places = {str(i): i for i in range(dataset.classes)}
    # A name may look like a number.
    places |= {name: i for i, name in enumerate(names)}
    values = np.ones(dataset.classes)
    for name, value in given.items():
        if str(name) not in places:
            raise BranchyError(
                f"`class_weights` has the class {checks.shown(name)}; known: "
                f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
            )
        values[places[str(name)]] = checks.real_number(
            f"class_weights[{name}]", value, at_least=0
        )
    return values


def _check_numbers(values: np.ndarray, what: str) -> None:
    if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
        raise BranchyError(
            f"{what} holds {values.min():g} to {values.max():g}; expected finite, "
            "non-negative weights that are not all 0."
        )

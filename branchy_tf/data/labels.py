"""Turns labels of any kind into class indices, visibly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from branchy_tf import checks
from branchy_tf.errors import BranchyError, one_line

# More classes than any classifier has; a list of numbers rather than of classes.
_MOST_CLASSES = 100_000
_MOST_SHOWN = 10
_EXPECTED = "expected class indices [n], whole numbers from 0, or names"


def encode(
    labels: Mapping[str, Any],
    names: Mapping[str, str],
    source: str,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[dict[str, np.ndarray], int, tuple[str, ...] | None]:
    """Class indices for the labels of all splits.

    Labels 0, 1, 2, ... are taken as they are. Other numbers and strings are numbered in
    their order among the training labels, which is logged; they become the names of the
    classes.

    Args:
        labels: the labels of each split, [n] or [n, 1].
        names: what messages call them.
        source: starts the messages.
        classes: the number of classes, if the labels are known to be indices.
        class_names: the names of the classes, if known.

    Returns:
        `({split: int64 [n]}, number of classes, class names or None)`.

    Raises:
        BranchyError: the labels are no classes, or a split has a class that the
            training split lacks.
    """
    whole = {part: f"{source}: {name}" for part, name in names.items()}
    flat = {part: _flat(value, whole[part]) for part, value in labels.items()}
    if class_names is not None:
        class_names = _check_names(class_names)
        classes = len(class_names)
        if flat["train"].dtype.kind == "U":
            known = np.array(class_names)
            return _numbered(flat, whole, known, "class_names"), classes, class_names
    if classes is not None:
        for part, values in flat.items():
            _check_indices(values, classes, whole[part])
        _warn_of_missing(flat, whole, classes, class_names)
        return flat, classes, None if class_names is None else tuple(class_names)
    known = _check_classes(flat["train"], whole["train"])
    shown: tuple[str, ...] | None = None
    if known.dtype.kind == "U" or not np.array_equal(known, np.arange(len(known))):
        shown = tuple(map(str, known.tolist()))
        logging.info(
            "%s holds the labels %s; they become the classes 0 to %d, in this order.",
            whole["train"],
            _listed(shown),
            len(known) - 1,
        )
    encoded = _numbered(flat, whole, known, names["train"])
    _warn_of_missing(encoded, whole, len(known), shown)
    return encoded, len(known), shown


def _flat(labels: Any, what: str) -> np.ndarray:
    """The labels as int64 or str [n], from [n] or [n, 1]."""
    values = np.asarray(labels)
    if values.dtype == object and all(isinstance(x, str | bytes) for x in values.flat):
        values = values.astype(str)
    if values.dtype.kind in "ST":
        with_text = (x.decode() if isinstance(x, bytes) else x for x in values.flat)
        values = np.array(list(with_text), str).reshape(values.shape)
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.ndim != 1 or not len(flat) or flat.dtype.kind not in "iufbU":
        hint = ""
        if flat.ndim == 2 and flat.dtype.kind in "iufb" and (flat.sum(axis=1) == 1).all():
            hint = " They look one-hot: pass labels.argmax(axis=1)."
        elif flat.ndim > 1 and flat.dtype.kind in "iufb":
            hint = (
                " Several labels or quantities for one row, as in multi-label "
                "classification, regression and segmentation, are out of scope."
            )
        raise BranchyError(
            f"{what} has shape {values.shape} and dtype {one_line(str(values.dtype))}; "
            f"{_EXPECTED}.{hint}"
        )
    if flat.dtype.kind == "U":
        if (flat == "").any():
            row = int(np.argmax(flat == ""))
            raise BranchyError(
                f"{what} holds an empty label in row {row}; expected the name of a class."
            )
        return flat
    # A larger number would wrap around in int64.
    whole = (flat == np.rint(flat)) & (np.abs(flat) < 2.0**63)
    if not whole.all():
        row = int(np.argmin(whole))
        raise BranchyError(
            f"{what} holds {flat[row]} in row {row}; expected class indices, whole "
            "numbers from 0, because these networks classify and predict no quantities."
        )
    return flat.astype(np.int64)


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(names)
    if (
        len(found) < 2
        or not all(isinstance(name, str) and name for name in found)
        or len(set(found)) < len(found)
    ):
        raise BranchyError(
            "`class_names` must be at least two different, non-empty names. Received "
            f"{checks.shown(list(found))}."
        )
    return found


def _check_indices(labels: np.ndarray, classes: int, what: str) -> None:
    if labels.dtype.kind == "U":
        raise BranchyError(
            f"{what} holds names such as {labels[0]!r}; expected the numbers 0 to "
            f"{classes - 1}."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise BranchyError(
            f"{what} holds labels from {labels.min()} to {labels.max()}; expected 0 to "
            f"{classes - 1}."
        )


def _check_classes(labels: np.ndarray, what: str) -> np.ndarray:
    """The different labels, in order."""
    known = np.unique(labels)
    if len(known) < 2:
        raise BranchyError(f"{what} holds only one class; expected at least 2.")
    if len(known) > min(max(2, len(labels) // 2), _MOST_CLASSES):
        raise BranchyError(
            f"{what} holds {len(known):,} different labels for {len(labels):,} rows, too "
            "many for classes. These networks classify; cut a quantity into ranges, for "
            "example with numpy.digitize."
        )
    if known.dtype.kind != "U" and known[0] < 0 and known.tolist() != [-1, 1]:
        raise BranchyError(
            f"{what} holds labels from {known[0]} to {known[-1]}; expected class indices "
            "from 0. A negative number often marks rows without a label: remove them."
        )
    return known


def _numbered(
    labels: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    known: np.ndarray,
    source: str,
) -> dict[str, np.ndarray]:
    """The place of each label in `known`."""
    order = np.argsort(known)
    encoded = {}
    for part, values in labels.items():
        if values.dtype.kind != known.dtype.kind:
            raise BranchyError(
                f"{names[part]} and {source} differ in kind: one holds numbers, the "
                "other names; expected the same."
            )
        place = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
        place = order[place]
        unknown = np.unique(values[known[place] != values])
        if len(unknown):
            raise BranchyError(
                f"{names[part]} holds the label{'s' if len(unknown) > 1 else ''} "
                f"{_listed(unknown.tolist())}, which {source} lacks, so no model can "
                "learn it. Add rows of that class to the training split, or remove it."
            )
        encoded[part] = place.astype(np.int64)
    return encoded


def _warn_of_missing(
    labels: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    classes: int,
    class_names: Sequence[str] | None,
) -> None:
    for part, values in labels.items():
        counts = np.bincount(values, minlength=classes)
        if not counts.all():
            missing = np.flatnonzero(counts == 0).tolist()
            logging.warning(
                "%s has no rows of the classes %s.",
                names[part],
                _listed(missing if class_names is None else
                        [class_names[i] for i in missing]),
            )  # fmt: skip


def _listed(values: Sequence[Any]) -> str:
    shown = [one_line(str(value)) for value in values[:_MOST_SHOWN]]
    if len(values) > _MOST_SHOWN:
        shown += ["...", one_line(str(values[-1]))]
    return ", ".join(shown)

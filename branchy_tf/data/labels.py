"""Checks the labels of a data set."""

from __future__ import annotations

import numpy as np

from branchy_tf.errors import BranchyError, one_line


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


def count_classes(labels: np.ndarray, what: str) -> int:
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


def check(labels: np.ndarray, rows: int, classes: int, what: str) -> np.ndarray:
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

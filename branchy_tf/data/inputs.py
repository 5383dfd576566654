"""Checks the inputs of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError, one_line


def check(images: Any, what: str) -> np.ndarray:
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

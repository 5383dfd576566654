"""Reads PNG and JPEG files as a model's input."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from branchy_tf import files
from branchy_tf.errors import BranchyError


def read(
    paths: Sequence[str], shape: Sequence[int | None]
) -> tuple[np.ndarray, list[str]]:
    """Reads image files and fits them to a model.

    Args:
        paths: of PNG or JPEG files.
        shape: (height, width, channels) that the model takes, 1 or 3 channels;
            None or -1 for a side of any size.

    Returns:
        uint8 [B, height, width, channels], and what was done to each file that
        did not fit, one sentence each.

    Raises:
        BranchyError: a file that cannot be read, or a shape no image can have.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise BranchyError(
            f"The model takes {channels} channels; image files have 1 (grey) or 3 (red, "
            "green, blue). Pass an array to EarlyExitClient.predict instead."
        )
    mode = "L" if channels == 1 else "RGB"
    arrays, notes = [], []
    for path in paths:
        picture = _open(files.path(path))
        size = (_side(width, picture.width), _side(height, picture.height))
        changes = []
        if picture.mode.startswith("I"):
            # Pillow would cut every value above 255.
            changes.append("16 bits made 8")
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode != mode:
            changes.append("made grey" if mode == "L" else "made RGB")
            picture = picture.convert(mode)
        if picture.size != size:
            changes.append(
                f"resized from {picture.width}x{picture.height} to {size[0]}x{size[1]} "
                "(bilinear, sides not kept in proportion)"
            )
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        if changes:
            notes.append(f"{path}: {', '.join(changes)}.")
        arrays.append(np.asarray(picture, np.uint8).reshape(size[1], size[0], channels))
    if len({array.shape for array in arrays}) > 1:
        raise BranchyError(
            "The images differ in size and the model takes any; ask one at a time."
        )
    return np.stack(arrays), notes


def _side(wanted: int | None, given: int) -> int:
    return given if wanted is None or wanted < 0 else wanted


def _open(path: pathlib.Path) -> Image.Image:
    try:
        picture = Image.open(path, formats=["PNG", "JPEG"])
        # Cameras store how they were held.
        return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise BranchyError(f"There is no image {path}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # Pillow calls a broken PNG a SyntaxError.
        raise BranchyError(
            f"{path} cannot be read; expected a PNG or JPEG file."
        ) from None

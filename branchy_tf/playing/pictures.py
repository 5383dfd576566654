"""Turns strokes into an image as a model expects it, and images into data URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from branchy_tf.errors import BranchyError

# The side of the square that is drawn on, in pixels.
BOARD = 280
# The share of the side that a drawing fills, as in MNIST.
_FILLED = 20 / 28


def fit_drawing(
    content: bytes, height: int, width: int, dark_on_light: bool = False
) -> np.ndarray:
    """A drawing as an image in the manner of MNIST.

    The drawing is scaled to 20/28 of the image, keeping its proportions, and its centre
    of mass is put into the middle.

    Args:
        content: the strokes, one byte a pixel, `BOARD` rows of `BOARD`: 0 where nothing
            was drawn, 255 in the middle of a stroke.
        height: of the image.
        width: of the image.
        dark_on_light: whether strokes are to be dark on a white ground.

    Returns:
        uint8 [height, width].

    Raises:
        BranchyError: the content has another size, or nothing was drawn.

    References:
        LeCun, Cortes, Burges: The MNIST database of handwritten digits.
    """
    if len(content) != BOARD * BOARD:
        raise BranchyError(
            f"A drawing is {BOARD} x {BOARD} bytes. Received {len(content):,}."
        )
    board = np.frombuffer(content, np.uint8).reshape(BOARD, BOARD)
    rows, columns = np.flatnonzero(board.any(1)), np.flatnonzero(board.any(0))
    if not len(rows):
        raise BranchyError("The drawing is empty. Draw something.")
    drawn = board[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(_FILLED * height / drawn.shape[0], _FILLED * width / drawn.shape[1])
    size = (
        max(1, round(drawn.shape[1] * scale)),
        max(1, round(drawn.shape[0] * scale)),
    )
    small = np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.BOX))
    image = np.zeros((height, width), np.uint8)
    top, left = (
        _start(small.astype(float).sum(axis=1 - axis), side)
        for axis, side in ((0, height), (1, width))
    )
    image[top : top + size[1], left : left + size[0]] = small
    return 255 - image if dark_on_light else image


def _start(weights: np.ndarray, side: int) -> int:
    """Where a drawing begins whose centre of mass lies in the middle of the side."""
    centre = (weights @ np.arange(len(weights))) / weights.sum() + 0.5
    return int(np.clip(round(side / 2 - centre), 0, side - len(weights)))


def is_dark_on_light(images: np.ndarray) -> bool:
    """Whether images have a light border, so that drawings should have one too.

    Args:
        images: uint8 [n, height, width, channels].
    """
    edges = [images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]]
    return bool(np.median(np.concatenate([edge.ravel() for edge in edges])) > 127)


def data_url(pixels: np.ndarray) -> str:
    """A PNG that a page can show.

    Args:
        pixels: uint8 [height, width, 1 or 3].
    """
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        file, "PNG", compress_level=1
    )
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

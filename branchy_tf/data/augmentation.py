"""The augmentation of training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from branchy_tf import checks


@dataclasses.dataclass(frozen=True)
class _Variation:
    """One augmentation.

    Attributes:
        pixels: the largest shift along each axis.
        flip: whether half the images are mirrored.
        cutout: the side of the blanked square, as a fraction of the image's side.
    """

    pixels: int
    flip: bool = False
    cutout: float = 0.0


_VARIATIONS = {
    "none": _Variation(0),
    "shift": _Variation(2),
    "flip_shift": _Variation(4, flip=True),
    "flip_shift_cutout": _Variation(4, flip=True, cutout=0.25),
}
AUGMENTATIONS = tuple(_VARIATIONS)


def check_augmentation(name: str) -> str:
    """Returns `name` if it is a known augmentation; raises `BranchyError` if not."""
    return checks.one_of("augmentation", name, AUGMENTATIONS)


def augment(name: str, images: Any, random: np.random.Generator) -> Any:
    """Augments each image at random.

    Args:
        name: `none`; `shift`: shifts by up to 2 whole pixels, filled with 0;
            `flip_shift`: mirrors half the images and shifts by up to 4 pixels;
            `flip_shift_cutout`: the same, and fills a rectangle of a quarter of the
            height and width with 0, centred anywhere in the image.
        images: uint8 [n, H, W, C], which stay unchanged, or a dict of such arrays.
        random: the generator of all draws.

    Returns:
        uint8 [n, H, W, C], or a dict of them.

    Raises:
        BranchyError: unknown augmentation.

    References:
        DeVries, Taylor: Improved Regularization of Convolutional Neural Networks
        with Cutout (2017), arXiv 1708.04552. As there, the square may cross the
        border; its side there is half the image's for CIFAR-10.

    Example:

    ```python
    augment("shift", images, np.random.default_rng(0))
    ```
    """
    variation = _VARIATIONS[check_augmentation(name)]
    pixels = variation.pixels
    if not pixels:
        return images
    if isinstance(images, Mapping):
        return {key: augment(name, array, random) for key, array in images.items()}
    count, height, width, channels = images.shape
    # Rounding makes the largest shift half as likely as each of the others.
    shifts = np.rint(random.uniform(-pixels, pixels, (count, 2))).astype(int)
    flips = random.random(len(images)) < (0.5 if variation.flip else 0.0)
    padded = np.zeros(
        (count, height + 2 * pixels, width + 2 * pixels, channels), images.dtype
    )
    padded[:, pixels:-pixels, pixels:-pixels] = images
    varied = np.empty_like(images)
    # Slices copy whole rows; indexing each pixel takes ten times as long.
    for i, (top, left) in enumerate((pixels - shifts).tolist()):
        image = padded[i, top : top + height, left : left + width]
        varied[i] = image[:, ::-1] if flips[i] else image
    if variation.cutout:
        _cut_out(varied, variation.cutout, random)
    return varied


def _cut_out(images: np.ndarray, share: float, random: np.random.Generator) -> None:
    """Blanks a square of each image in place."""
    count, height, width, _ = images.shape
    sides = max(1, round(share * height)), max(1, round(share * width))
    centres = random.integers((height, width), size=(count, 2))
    starts = centres - np.floor_divide(sides, 2)
    ends = starts + sides
    # A slice stops at the border, but a negative start would count from the end.
    corners = np.hstack([np.maximum(starts, 0), ends]).tolist()
    for i, (top, left, bottom, right) in enumerate(corners):
        images[i, top:bottom, left:right] = 0

"""The augmentation of training images."""

from __future__ import annotations

import dataclasses

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


def augment(
    name: str,
    images: np.ndarray,
    random: np.random.Generator,
    rows: np.ndarray | slice = slice(None),
    of: int | None = None,
) -> np.ndarray:
    """Augments each image at random.

    Args:
        name: `none`; `shift`: shifts by up to 2 whole pixels, filled with 0;
            `flip_shift`: mirrors half the images and shifts by up to 4 pixels;
            `flip_shift_cutout`: the same, and fills a rectangle of a quarter of the
            height and width with 0, centred anywhere in the image.
        images: uint8 [n, H, W, C], which stay unchanged.
        random: the generator of all draws.
        rows: which rows of a larger batch these images are. Each is augmented as it
            would be with all others; see `training.distributing`.
        of: the number of rows of that batch. Default: `images` are all of it.

    Returns:
        uint8 [n, H, W, C].

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
    count, height, width, channels = images.shape
    # Rounding makes the largest shift half as likely as each of the others.
    drawn = count if of is None else of
    shifts = np.rint(random.uniform(-pixels, pixels, (drawn, 2))).astype(int)[rows]
    flips = (random.random(drawn) < (0.5 if variation.flip else 0.0))[rows]
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
        centres = random.integers((height, width), size=(drawn, 2))[rows]
        _cut_out(varied, variation.cutout, centres)
    return varied


def _cut_out(images: np.ndarray, share: float, centres: np.ndarray) -> None:
    """Blanks a square of each image in place."""
    _, height, width, _ = images.shape
    sides = max(1, round(share * height)), max(1, round(share * width))
    starts = centres - np.floor_divide(sides, 2)
    ends = starts + sides
    # A slice stops at the border, but a negative start would count from the end.
    corners = np.hstack([np.maximum(starts, 0), ends]).tolist()
    for i, (top, left, bottom, right) in enumerate(corners):
        images[i, top:bottom, left:right] = 0

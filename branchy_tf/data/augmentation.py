"""The augmentation of training images."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from branchy_tf import checks
from branchy_tf.data.splits import Dataset
from branchy_tf.errors import BranchyError


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


def check_augmentable(name: str, dataset: Dataset) -> None:
    """Raises `BranchyError` unless an augmentation fits the rows of a data set."""
    shapes = [tuple(array.shape[1:]) for array in dataset.train.arrays.values()]
    if name != "none" and (len(shapes) != 1 or len(shapes[0]) != 3):
        raise BranchyError(
            f"`augmentation` {name} is for images [height, width, channels], but "
            f"{dataset.name} has rows of shape {', '.join(map(str, shapes))}. Pass none."
        )


class Draws(NamedTuple):
    """The random draws that augment n images.

    Attributes:
        shifts: int32 [n, 2], the pixels by which each image moves down and right.
        flips: bool [n], whether it is mirrored afterwards.
        corners: int32 [n, 2], the top and left of the rectangle that is then filled
            with 0, which may lie outside the image; None without cutout.
    """

    shifts: np.ndarray
    flips: np.ndarray
    corners: np.ndarray | None


def cutout_sides(name: str, height: int, width: int) -> tuple[int, int]:
    """Height and width of the rectangle that an augmentation fills with 0."""
    share = _VARIATIONS[name].cutout
    return max(1, round(share * height)), max(1, round(share * width))


def draw(
    name: str, shape: tuple[int, int, int], random: np.random.Generator
) -> Draws | None:
    """The draws that augment some images.

    Args:
        name: the augmentation, as for `augment`.
        shape: the number of images, their height and their width. It does not matter
            if the augmentation is `none`.
        random: the generator of all draws.

    Returns:
        The draws, or None if the augmentation needs none.

    Raises:
        BranchyError: unknown augmentation.
    """
    return None if _changes_nothing(name) else _draw(name, shape, random)


def _changes_nothing(name: str) -> bool:
    return not _VARIATIONS[check_augmentation(name)].pixels


def _draw(name: str, shape: tuple[int, int, int], random: np.random.Generator) -> Draws:
    count, height, width = shape
    variation = _VARIATIONS[name]
    pixels = variation.pixels
    # Rounding makes the largest shift half as likely as each of the others.
    shifts = np.rint(random.uniform(-pixels, pixels, (count, 2))).astype(np.int32)
    flips = random.random(count) < (0.5 if variation.flip else 0.0)
    corners = None
    if variation.cutout:
        centres = random.integers((height, width), size=(count, 2))
        sides = cutout_sides(name, height, width)
        corners = (centres - np.floor_divide(sides, 2)).astype(np.int32)
    return Draws(shifts, flips, corners)


def augment(name: str, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Augments each image at random.

    Args:
        name: `none`; `shift`: shifts by up to 2 whole pixels, filled with 0;
            `flip_shift`: mirrors half the images and shifts by up to 4 pixels;
            `flip_shift_cutout`: the same, and fills a rectangle of a quarter of the
            height and width with 0, centred anywhere in the image.
        images: uint8 [n, H, W, C], which stay unchanged.
        random: the generator of all draws.

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
    if _changes_nothing(name):
        return images
    return _apply(name, images, _draw(name, images.shape[:3], random))


def _apply(name: str, images: np.ndarray, draws: Draws) -> np.ndarray:
    pixels = _VARIATIONS[name].pixels
    count, height, width, channels = images.shape
    padded = np.zeros(
        (count, height + 2 * pixels, width + 2 * pixels, channels), images.dtype
    )
    padded[:, pixels:-pixels, pixels:-pixels] = images
    varied = np.empty_like(images)
    # Slices copy whole rows; indexing each pixel takes ten times as long.
    for i, (top, left) in enumerate((pixels - draws.shifts).tolist()):
        image = padded[i, top : top + height, left : left + width]
        varied[i] = image[:, ::-1] if draws.flips[i] else image
    if draws.corners is not None:
        ends = draws.corners + cutout_sides(name, height, width)
        # A slice stops at the border, but a negative start would count from the end.
        corners = np.hstack([np.maximum(draws.corners, 0), ends]).tolist()
        for i, (top, left, bottom, right) in enumerate(corners):
            varied[i, top:bottom, left:right] = 0
    return varied

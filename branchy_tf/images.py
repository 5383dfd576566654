"""Reads image files as input of a model."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from branchy_tf import files
from branchy_tf.errors import BranchyError

# The formats that Pillow reads without external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_EXPECTED = "Expected a PNG, JPEG, WebP, GIF, BMP or TIFF file."
# From here on the pixels take several hundred MB.
_TOO_MANY_PIXELS = 100_000_000
# {EXIF orientation: the transposition that makes the image upright}.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(
    paths: Sequence[str], shape: Sequence[int | None]
) -> tuple[np.ndarray, list[str]]:
    """Reads image files and fits them to a model.

    Reads the first frame of animations, and turns images upright by their EXIF data.
    Transparency becomes white; an image of one flat colour after that is refused.

    Args:
        paths: PNG, JPEG, WebP, GIF, BMP or TIFF files.
        shape: (height, width, channels) of the model's input, 1 or 3 channels;
            None or -1 for any size.

    Returns:
        uint8 [B, height, width, channels], and a sentence per changed file that says
        what was done to it.

    Raises:
        BranchyError: a file cannot be read, has 100 megapixels or more, or values that
            are not pixels; or the model does not take images.

    Example:

    ```python
    arrays, notes = images.read(["seven.png"], (28, 28, 1))   # uint8 [1, 28, 28, 1]
    ```
    """
    arrays, notes = [], []
    for path in paths:
        array, changes = decode(path, shape)
        if changes:
            notes.append(f"{path}: {', '.join(changes)}.")
        arrays.append(array)
    if len({array.shape for array in arrays}) > 1:
        raise BranchyError(
            "The images differ in size, and the model takes any size. Pass one image at "
            "a time."
        )
    return np.stack(arrays), notes


def decode(path: files.Path, shape: Sequence[int | None]) -> tuple[np.ndarray, list[str]]:
    """Reads one image file as `read` does.

    Args:
        path: the file.
        shape: as for `read`.

    Returns:
        uint8 [height, width, channels], and what was done to it.

    Raises:
        BranchyError: as `read`.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise BranchyError(
            f"The model takes {channels} channels; image files have 1 (grey) or 3 (red, "
            "green, blue). Pass an array to EarlyExitClient.predict instead."
        )
    mode = "L" if channels == 1 else "RGB"
    with files.reading(path, "an image", _EXPECTED), warnings.catch_warnings():
        # Pillow warns of what is refused below, or is harmless.
        warnings.simplefilter("ignore")
        picture, changes = _open(files.path(path))
        picture = _fit(picture, mode, (width, height), changes)
        array = np.asarray(picture, np.uint8)
        return array.reshape(picture.height, picture.width, channels), changes


def resize(image: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Resizes an image as `read` does: bilinear, without preserving the aspect ratio.

    Args:
        image: uint8 [H, W, 1 or 3].
        sides: (height, width).

    Returns:
        uint8 [height, width, 1 or 3].
    """
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    fitted = _fit(picture, picture.mode, (sides[1], sides[0]), [])
    return np.asarray(fitted, np.uint8).reshape(*sides, image.shape[-1])


@dataclasses.dataclass(frozen=True)
class Header:
    """What the beginning of an image file says.

    Attributes:
        sides: (height, width) of the upright image.
        grey: whether it has no colours.
        complete: whether the end of the file is there; None if only decoding tells.
    """

    sides: tuple[int, int]
    grey: bool
    complete: bool | None


def header(path: files.Path) -> Header:
    """Reads size and kind of an image file, and whether it is cut short.

    Raises:
        BranchyError: the file is missing or no image.
    """
    with files.reading(path, "an image", _EXPECTED), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _identified(files.path(path))
        with picture:
            turn = _turn(picture, [])
            sides = picture.height, picture.width
            turned = turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
            grey = picture.mode in ("1", "L", "LA", "La") or _is_deep(picture)
            complete = _is_complete(path, str(picture.format))
    return Header(sides[::-1] if turned else sides, grey, complete)


def _is_complete(path: files.Path, format_: str) -> bool | None:
    with open(path, "rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
    if format_ == "JPEG":
        # Padding after the end is common.
        return tail.rstrip(b"\0\r\n").endswith(b"\xff\xd9") or None
    if format_ == "PNG":
        return b"IEND" in tail or None
    if format_ == "WEBP":
        return size >= int.from_bytes(head[4:8], "little") + 8 or None
    return None


def _open(path: pathlib.Path) -> tuple[Image.Image, list[str]]:
    """An upright 8-bit image, and the changes made to it."""
    changes: list[str] = []
    picture: Image.Image = _identified(path)
    with picture:
        pixels = picture.width * picture.height
        if pixels == 0 or pixels >= _TOO_MANY_PIXELS:
            raise BranchyError(
                f"{path} has {picture.width} x {picture.height} pixels; expected at "
                f"least one and fewer than {_TOO_MANY_PIXELS:,}. Resize it."
            )
        if getattr(picture, "is_animated", False):
            changes.append("first frame taken")
        picture.load()
        turn = _turn(picture, changes)
        picture = _in_8_bits(path, picture, changes)
        picture = _without_transparency(path, picture, changes)
        return picture if turn is None else picture.transpose(turn), changes


def _identified(path: pathlib.Path) -> Image.Image:
    """The file, opened and not yet decoded."""
    try:
        return Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise BranchyError(f"There is no image {path}.") from None
    except UnidentifiedImageError:
        raise BranchyError(
            f"{path} cannot be read as an image: its format is unknown. {_EXPECTED}"
        ) from None


def _turn(picture: Image.Image, changes: list[str]) -> Image.Transpose | None:
    """The transposition that makes the image upright, or None."""
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # The pixels are intact; damaged metadata is no reason to refuse them.
        changes.append("EXIF data unreadable, so not turned")
        return None
    if turn is not None:
        changes.append("turned upright")
    return turn


def _is_deep(picture: Image.Image) -> bool:
    """Whether it is a grey image with 16 bits."""
    return picture.mode.startswith("I;16") or (
        # The mode of 16-bit PNGs in older releases of Pillow.
        picture.mode == "I" and picture.format == "PNG"
    )


def _in_8_bits(
    path: pathlib.Path, picture: Image.Image, changes: list[str]
) -> Image.Image:
    deep = _is_deep(picture)
    if not deep and picture.mode in ("I", "F"):
        kind = "whole numbers" if picture.mode == "I" else "floats"
        raise BranchyError(
            f"{path} holds 32-bit {kind}; expected 8-bit or 16-bit pixels. Save it with "
            "values from 0 to 255."
        )
    transparent = picture.info.get("transparency")
    if (deep and transparent is not None) or (
        isinstance(transparent, tuple) and max(transparent) > 255
    ):
        raise BranchyError(
            f"{path} declares a 16-bit colour transparent, which 8 bits cannot express. "
            "Save it with 8 bits, or without transparency."
        )
    if not deep:
        return picture
    # Pillow would clip values above 255.
    changes.append("16 bits made 8")
    upper = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    upper.info = picture.info
    return upper


def _without_transparency(
    path: pathlib.Path, picture: Image.Image, changes: list[str]
) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    coloured = picture.convert("RGBA")
    if coloured.getchannel("A").getextrema() == (255, 255):
        # Fully opaque.
        return coloured.convert("RGB").convert(mode)
    white = Image.new("RGBA", picture.size, "white")
    seen = Image.alpha_composite(white, coloured).convert("RGB")
    if seen.getcolors(1):
        raise BranchyError(
            f"{path} is transparent, and a single colour on a white background. Save it "
            "on a background of another colour."
        )
    changes.append("transparency made white")
    return seen.convert(mode)


def _fit(
    picture: Image.Image,
    mode: str,
    sides: tuple[int | None, int | None],
    changes: list[str],
) -> Image.Image:
    """The image in this mode and (width, height), each None or -1 for any."""
    if picture.mode != mode:
        changes.append("made grey" if mode == "L" else "made RGB")
        picture = picture.convert(mode)
    width, height = (
        given if wanted is None or wanted < 0 else wanted
        for wanted, given in zip(sides, picture.size, strict=True)
    )
    if picture.size != (width, height):
        changes.append(
            f"resized from {picture.width}x{picture.height} to {width}x{height} "
            "(bilinear, aspect ratio not preserved)"
        )
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return picture

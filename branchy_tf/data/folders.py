"""Folders of pictures: train/ validation/ test/, each with a folder per class."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging

from branchy_tf import images
from branchy_tf.data.raw import Raw, RawSplit
from branchy_tf.errors import BranchyError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SPLITS = ("train", "validation", "test")
_MISNAMED = {"val": "validation", "valid": "validation", "dev": "validation"}
_T = TypeVar("_T")


class ImageFiles:
    """Pictures that are decoded on access, in several threads.

    Args:
        paths: the files.
        shape: (height, width, channels) to fit each picture to, as `images.read` does.

    Example:

    ```python
    ImageFiles(paths, (96, 96, 3))[10:42]   # uint8 [32, 96, 96, 3]
    ```
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[str], shape: tuple[int, int, int]) -> None:
        self._paths = np.array(paths, dtype=object)
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        return (len(self._paths), *self._shape)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: Any) -> np.ndarray:
        paths = self._paths[rows]
        if isinstance(paths, str):
            return images.decode(paths, self._shape)[0]
        decoded = np.empty((len(paths), *self._shape), np.uint8)

        def decode(place: int) -> None:
            decoded[place] = images.decode(paths[place], self._shape)[0]

        for _ in _threads().map(decode, range(len(paths))):
            pass
        return decoded


def read(
    path: pathlib.Path,
    name: str,
    image_size: Sequence[int] | None = None,
    skip_unreadable: bool = False,
) -> Raw:
    """The data set in a folder.

    Args:
        path: has train/, test/ and maybe validation/, each with a folder per class.
        name: of the data set.
        image_size: (height, width) or (height, width, channels) to fit pictures to.
            Default: their common size; 1 channel if all are grey, otherwise 3.
        skip_unreadable: whether to leave out pictures that cannot be read, which decodes
            each of them once.

    Raises:
        BranchyError: a folder is missing or empty, the classes of the splits differ, a
            picture cannot be read, or the sizes differ and there is no `image_size`.
    """
    classes, found = _listed(path)
    headers = _headers([file for files in found.values() for file, _ in files],
                       skip_unreadable)  # fmt: skip
    splits, unreadable = {}, []
    for part, rows in found.items():
        kept = [(file, label) for file, label in rows if file in headers]
        unreadable += [file for file, _ in rows if file not in headers]
        _check_counts(path / part, classes, [label for _, label in kept])
        # So that the first rows of a split have all classes.
        order = np.random.default_rng(0).permutation(len(kept))
        splits[part] = [kept[i] for i in order]
    if unreadable:
        logging.warning(
            "Skipped %d of %d pictures that cannot be read, the first of them %s.",
            len(unreadable),
            len(unreadable) + len(headers),
            unreadable[0],
        )
    shape = _shape(headers, image_size)
    return Raw(
        name,
        str(path),
        {
            part: RawSplit(
                ImageFiles([file for file, _ in rows], shape),
                np.array([label for _, label in rows], np.int64),
                names=(f"{part}/", f"{part}/", f"{part}/"),
            )
            for part, rows in splits.items()
        },
        class_names=classes,
    )


def _listed(path: pathlib.Path) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """The class names, and `{split: [(file, class index)]}` in a fixed order."""
    here = _folders(path)
    for wrong, right in _MISNAMED.items():
        if wrong in here and right not in here:
            raise BranchyError(f"{path} holds {wrong}/; expected {right}/. Rename it.")
    if "train" not in here:
        raise BranchyError(
            f"{path} holds no folder train/; expected train/ and test/, maybe "
            "validation/, each with a folder for each class, such as train/cat/1.jpg. "
            f"It holds {_some(here) or 'no folders'}."
        )
    if "test" not in here:
        raise BranchyError(
            f"{path} holds no folder test/. The test split measures the result, so none "
            "of its pictures may be trained on: move a part of each class, such as a "
            "tenth, from train/ to test/."
        )
    parts = [part for part in _SPLITS if part in here]
    names = {part: _folders(path / part) for part in parts}
    classes = names["train"]
    if len(classes) < 2:
        raise BranchyError(
            f"{path / 'train'} holds {len(classes)} class folder(s); expected at least "
            "2, one for each class."
        )
    for part in parts[1:]:
        unknown = sorted(set(names[part]) - set(classes))
        if unknown:
            raise BranchyError(
                f"{path / part} holds classes that train/ lacks: {_some(unknown)}. Add "
                "their pictures to train/, or remove them."
            )
        missing = sorted(set(classes) - set(names[part]))
        if missing:
            raise BranchyError(
                f"{path / part} lacks classes that train/ holds: {_some(missing)}. Move "
                "some of their pictures there, or remove the classes from train/."
            )
    found = {}
    for part in parts:
        rows = [
            (file, label)
            for label, name in enumerate(classes)
            for file in _pictures(path / part / name)
        ]
        _check_counts(path / part, classes, [label for _, label in rows])
        found[part] = rows
    return classes, found


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(path)
        if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def _pictures(folder: pathlib.Path) -> list[str]:
    """The picture files in a folder and the folders below it, in order."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        found += [
            os.path.join(place, name)
            for name in sorted(names)
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        ]
    return found


def _check_counts(path: pathlib.Path, classes: list[str], labels: list[int]) -> None:
    counts = np.bincount(labels, minlength=len(classes)) if labels else [0]
    for name, count in zip(classes, counts, strict=False):
        if not count:
            raise BranchyError(
                f"{path / name} holds no readable pictures; expected files ending in "
                f"{', '.join(_SUFFIXES)}. Add some, or remove this class from every "
                "split."
            )


def _headers(paths: list[str], skip: bool) -> dict[str, images.Header]:
    """`{path: header}` of the pictures that can be read.

    Decodes files whose end is missing, which may still be readable, and with `skip` all.
    """
    if skip:
        logging.info("Reading %d pictures, to skip those that cannot be read.",
                     len(paths))  # fmt: skip

    def look(path: str) -> images.Header | None:
        try:
            header = images.header(path)
            if skip or not header.complete:
                images.decode(path, (None, None, 3))
            return header
        except BranchyError as error:
            if skip:
                return None
            raise BranchyError(
                f"{error} To leave out such pictures, pass --skip_unreadable."
            ) from None

    found = zip(paths, _map(look, paths), strict=True)
    return {path: header for path, header in found if header is not None}


def _shape(
    headers: Mapping[str, images.Header], image_size: Sequence[int] | None
) -> tuple[int, int, int]:
    """(height, width, channels) of all pictures."""
    grey = all(header.grey for header in headers.values())
    if image_size is not None:
        height, width, *channels = image_size
        return (height, width, channels[0] if channels else (1 if grey else 3))
    (first, head), *others = headers.items()
    for path, header in others:
        if header.sides != head.sides:
            raise BranchyError(
                f"The pictures differ in size: {first} has {_sides(head)} and {path} "
                f"{_sides(header)} (height x width). Pass --image_size="
                f"{head.sides[0]}x{head.sides[1]}, or another size, to fit all to it."
            )
    return (*head.sides, 1 if grey else 3)


def _sides(header: images.Header) -> str:
    return "x".join(map(str, header.sides))


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "pictures")


def _map(function: Callable[[str], _T], paths: list[str]) -> Iterable[_T]:
    """`map` in threads, stopping at the first error."""
    block = 1000
    for start in range(0, len(paths), block):
        yield from _threads().map(function, paths[start : start + block])

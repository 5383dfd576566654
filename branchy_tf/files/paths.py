"""Paths on this machine: checked, made absolute, and folders of versions."""

from __future__ import annotations

import os
import pathlib
import re
import unicodedata

from branchy_tf.errors import BranchyError

Path = str | os.PathLike

# One slash is enough: path functions drop the second.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LONGEST_NAME = 255


def is_url(path: Path) -> bool:
    """Whether a path is a URL, such as gs://bucket/net."""
    return bool(_URL.match(os.fspath(path)))


def path(given: Path) -> pathlib.Path:
    """A path on this machine, with ~ expanded.

    Every path from a user passes through here. Brackets, spaces and trailing dots have no
    special meaning.

    Raises:
        BranchyError: a URL, a Windows drive, a name too long for a file, or one that is
            not UTF-8, which TensorFlow requires.

    Example:

    ```python
    files.path("~/runs/lenet")      # PosixPath('/home/me/runs/lenet')
    ```
    """
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise BranchyError(f"Expected a path as text. Received {given!r}.")
    text = os.fspath(given)
    shown = printable(text)
    if is_url(text):
        raise BranchyError(
            f"{shown} is a URL; expected a path on this machine, because files are "
            "written under a temporary name and renamed, which object stores cannot do. "
            "Copy the files with the store's own tool, or mount it."
        )
    if _DRIVE.match(text) and os.name != "nt":
        raise BranchyError(
            f"{shown} is a Windows path; expected a path of this machine, such as /mnt/c."
        )
    if shown != text:
        raise BranchyError(
            f"The path {shown} has bytes that are not UTF-8, or control characters; "
            "TensorFlow cannot open it. Rename it."
        )
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in text.split("/")):
        raise BranchyError(
            f"The path {shown[:60]}... has a name of more than {_LONGEST_NAME} bytes. "
            "Shorten it."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise BranchyError(
            f"{shown}: there is no home folder for ~. Write the full path."
        ) from None


def absolute(given: Path) -> pathlib.Path:
    """`path` as an absolute path."""
    return path(given).absolute()


def folder(given: Path) -> pathlib.Path:
    """`absolute`, for a folder that exists or can be created.

    Raises:
        BranchyError: as `path`, or it or a parent is a file.
    """
    found = absolute(given)
    for place in (found, *found.parents):
        if place.is_dir():
            break
        if place.exists():
            raise BranchyError(
                f"{place} is a file; expected a folder. Not a directory: {found}."
            )
    return found


def printable(text: str) -> str:
    r"""The text in one line of UTF-8, with \x escapes for unprintable characters."""
    odd = {"Cc", "Cs"}  # control characters, and surrogates for bytes other than UTF-8
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in odd else char for char in text
    )


def version_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """`{version: folder}` in ascending order; empty if the folder is missing."""
    return {
        number: entry
        for number, entry in sorted(_numbered(folder).items())
        if entry.is_dir()
    }


def next_version(folder: pathlib.Path) -> int:
    """The next version: the highest plus 1, or 1."""
    # Files with a version's name count too, as they would be in the way.
    return max(_numbered(folder), default=0) + 1


def _numbered(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    if not folder.is_dir():
        return {}
    return {
        int(entry.name): entry
        for entry in sorted(folder.iterdir())
        # TF Serving's versions are int64.
        if entry.name.isascii() and entry.name.isdigit() and int(entry.name) < 2**63
    }

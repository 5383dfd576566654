"""Paths on this machine: checked, made absolute, and folders of versions."""

from __future__ import annotations

import os
import pathlib
import re
import unicodedata

from branchy_tf.errors import BranchyError

Path = str | os.PathLike

# With one slash too: a URL that went through a path function.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LONGEST_NAME = 255


def is_url(path: Path) -> bool:
    """Whether it names something that is not on this machine, like gs://bucket/net."""
    return bool(_URL.match(os.fspath(path)))


def path(given: Path) -> pathlib.Path:
    """A path on this machine, with ~ for the home folder.

    Every path that a user gives comes through here. Brackets, spaces and trailing
    dots are characters like others.

    Raises:
        BranchyError: a URL, a Windows drive, or a name that no file here can have,
            or that TensorFlow, which takes UTF-8 alone, could not open.

    Example:

    ```python
    files.path("~/runs/lenet")      # PosixPath('/home/me/runs/lenet')
    ```
    """
    text = os.fspath(given)
    if not isinstance(text, str):
        raise BranchyError(f"Expected a path as text, received {given!r}.")
    shown = printable(text)
    if is_url(text):
        raise BranchyError(
            f"{shown} is a URL; expected a path on this machine, because files are "
            "written beside and renamed, which object stores cannot do. Copy from or "
            "to it with its own tool, or mount it."
        )
    if _DRIVE.match(text) and os.name != "nt":
        raise BranchyError(
            f"{shown} is a Windows path; expected one of this machine, such as /mnt/c."
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
            f"{shown}: there is no home folder for its ~. Write the path out."
        ) from None


def absolute(given: Path) -> pathlib.Path:
    """`path`, from the root."""
    return path(given).absolute()


def folder(given: Path) -> pathlib.Path:
    """`absolute`, for a folder that is there or can be made.

    Raises:
        BranchyError: as `path`, or a file stands in its place or above it.
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
    r"""The text in one line of UTF-8; what cannot be shown becomes \x escapes."""
    odd = {"Cc", "Cs"}  # control characters, and what stands for bytes that are no UTF-8
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in odd else char for char in text
    )


def version_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """`{version: its folder}`, rising; empty if there is no such folder."""
    return {
        number: entry
        for number, entry in sorted(_numbered(folder).items())
        if entry.is_dir()
    }


def next_version(folder: pathlib.Path) -> int:
    """The highest there is plus 1; the first is 1."""
    # A plain file of that name stands in the way too.
    return max(_numbered(folder), default=0) + 1


def _numbered(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    if not folder.is_dir():
        return {}
    return {
        int(entry.name): entry
        for entry in sorted(folder.iterdir())
        # What TF Serving reads as a version: an int64.
        if entry.name.isascii() and entry.name.isdigit() and int(entry.name) < 2**63
    }

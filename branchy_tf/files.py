"""Files: which paths are taken, how they are written, how they are read.

Writers write beside and rename, so that nobody ever meets half a file. Readers are other
libraries, and each may raise anything for a damaged file: `reading` turns that into one
line.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import pathlib
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf import checks
from branchy_tf.errors import BranchyError, first_line

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
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise BranchyError(f"Expected a path as text. Received {checks.shown(given)}.")
    text = os.fspath(given)
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Gives a file name beside `path`; on success that file becomes `path`.

    The name keeps the suffixes of `path`, for writers that go by it. On an
    error, `path` is as it was before and the other file is gone.

    Example:

    ```python
    with files.replacing("run/model.keras") as beside:
        model.save(beside)
    ```
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        # Short, so that the longest of names leaves room for what tells them apart.
        prefix=f".{path.stem[:40]}-",
        suffix="".join(path.suffixes),
        dir=path.parent,
    )
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    beside = pathlib.Path(name)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: Path, expected: str, mend: str = "") -> Iterator[None]:
    """Turns whatever a reader raises into one line that names the file.

    h5py, Pillow, zipfile, numpy, csv and TensorFlow raise types for damaged files
    that none of them lists, so every exception is caught here. Nothing but the
    reading belongs into the block.

    Args:
        path: of the file.
        expected: what it should be, e.g. "a Keras model".
        mend: what to do about it, one sentence or several.

    Raises:
        BranchyError: the block raised anything. Its own `BranchyError` passes as it is.

    Example:

    ```python
    with files.reading(path, "an image", "Save it again as PNG."):
        picture.load()
    ```
    """
    try:
        yield
    except BranchyError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            text = f"There is no file {path}; expected {expected}."
        else:
            reason = first_line(error).removesuffix(".")
            text = f"{path} cannot be read as {expected}: {reason}. {mend}".rstrip()
        raise BranchyError(text) from error


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes a text file, beside and renamed."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON: numpy values as plain ones, infinity as "inf"."""
    text = json.dumps(_encode(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; the string "inf" stands for infinity.

    Raises:
        BranchyError: the file is missing or holds no JSON object; it has a key twice
            in one object, or NaN or Infinity, which are not JSON.
    """
    with reading(path, "JSON"):
        value = json.loads(
            pathlib.Path(path).read_text(encoding="utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
        )
        if isinstance(value, dict):
            return _decode(value)
    raise BranchyError(f"{path} holds a JSON {type(value).__name__}; expected an object.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON; infinity is written "inf"')


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that have the same keys as CSV: floats of 6 digits, None as nothing."""
    with (
        replacing(path) as beside,
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            )


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _encode(value.tolist())
    if isinstance(value, float) and math.isinf(value) and value > 0:
        return "inf"
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return math.inf if value == "inf" else value


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

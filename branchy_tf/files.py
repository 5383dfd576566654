"""Which paths are taken, and writing so that no reader, or kill, meets half a file."""

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
        BranchyError: the file is missing or holds no JSON object.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BranchyError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise BranchyError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BranchyError(
            f"{path} holds a JSON {type(value).__name__}; expected an object."
        )
    return _decode(value)


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

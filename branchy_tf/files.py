"""Writing files so that a reader, or a kill, never meets half of one."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from branchy_tf.errors import BranchyError

Path = str | os.PathLike


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
        prefix=f".{path.stem}-", suffix="".join(path.suffixes), dir=path.parent
    )
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    beside = pathlib.Path(name)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def absolute(path: Path) -> pathlib.Path:
    """The path from the root, with ~ for the home folder read as such."""
    return pathlib.Path(path).expanduser().absolute()


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

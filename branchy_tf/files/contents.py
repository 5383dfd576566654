"""Reads and writes files.

Writers write beside the file and rename, so nobody meets half a file. Readers call other
libraries, which may raise anything for a damaged file: `reading` turns that into one
line.
"""

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

from branchy_tf.errors import BranchyError, first_line
from branchy_tf.files import paths
from branchy_tf.files.paths import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Gives a temporary file beside `path` that replaces it on success.

    It has the suffixes of `path`, for writers that go by them. On an error `path` stays
    unchanged and the temporary file is removed.

    Example:

    ```python
    with files.replacing("run/model.keras") as beside:
        model.save(beside)
    ```
    """
    path = paths.path(path)
    if path.is_dir():
        raise BranchyError(f"{path} is a folder; expected a file to write.")
    paths.folder(path.parent).mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        # Short, to leave room for the random part.
        prefix=f".{path.stem[:40]}-",
        suffix="".join(path.suffixes),
        dir=path.parent,
    )
    os.close(handle)
    os.chmod(name, 0o666 & ~umask())
    beside = pathlib.Path(name)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: Path, expected: str, mend: str = "") -> Iterator[None]:
    """Turns any exception of a reader into one line that names the file.

    h5py, Pillow, zipfile, numpy, csv and TensorFlow raise undocumented types for damaged
    files, so this catches every exception. Only the reading belongs in the block.

    Args:
        path: the file.
        expected: its content, e.g. "a Keras model".
        mend: how to fix it, in whole sentences.

    Raises:
        BranchyError: the block raised an exception. A `BranchyError` passes unchanged.

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


def umask() -> int:
    """The mask that this process applies to the permissions of new files."""
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, with NumPy values as plain ones and infinity as "inf"."""
    text = json.dumps(_encode(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object, with "inf" as infinity.

    Raises:
        BranchyError: the file is missing or not a JSON object, has a duplicate key, or
            has NaN or Infinity, which are not JSON.
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
        raise ValueError(f"the key {twice!r} is duplicated in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON; infinity is written "inf"')


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys as CSV, floats with 6 digits, None as empty."""
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
    if hasattr(value, "tolist"):  # NumPy's, without importing it
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

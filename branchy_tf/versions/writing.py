"""Writes a version beside the others and renames it to the next number."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from branchy_tf import checks, files
from branchy_tf.errors import BranchyError
from branchy_tf.versions.describing import LITERT, SAVED_MODEL

# Not a number, so that no server takes it for a version.
_BESIDE = ".writing-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
# The arguments of an export that one format alone has, and their defaults.
_OWN_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    SAVED_MODEL: {"freeze": "auto", "input_dtype": None, "precision": "float32"},
    LITERT: {"quantize": "none", "max_accuracy_drop": None},
}


def misplaced(format: str, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first argument of an export that only another format has, and that format.

    Args:
        format: the format to export in.
        arguments: all that were given, by name, those at their defaults included.
    """
    for other, own in _OWN_ARGUMENTS.items():
        for name, default in own.items():
            if other != format and arguments[name] != default:
                return name, other
    return None


def check_model_name(name: str) -> str:
    """Returns the name of a served model, or raises `BranchyError` if it is invalid."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise BranchyError(
            "`model_name` must be letters, digits, '.', '_' and '-', and begin with a "
            f"letter or digit. Received {checks.shown(name)}."
        )
    return name


class NewVersion:
    """A version that is being written.

    Attributes:
        beside: the folder to write to.
        path: the folder of the finished version, once the block has ended.
    """

    def __init__(self, beside: pathlib.Path) -> None:
        self.beside = beside
        self.path = beside


@contextlib.contextmanager
def new_version(folder: pathlib.Path) -> Iterator[NewVersion]:
    """Gives a temporary folder that becomes the next version when the block succeeds.

    A server that polls `folder` never sees a partial version. After an error, or when
    the process is killed, no version has appeared; what a killed process left is removed
    by an export a day later.

    Args:
        folder: the folder of the model, which is created.

    Example:

    ```python
    with versions.new_version(pathlib.Path("exports/lenet")) as version:
        (version.beside / "model").write_bytes(b"...")
    version.path                # exports/lenet/1
    ```
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=_BESIDE, dir=folder))
    try:
        # mkdtemp gives access to its user only; a server often runs as another user.
        os.chmod(beside, 0o755)
        version = NewVersion(beside)
        yield version
        version.path = _rename_to_next(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes leftovers of killed exports, which are more than a day old."""
    for leftover in folder.glob(f"{_BESIDE}*"):
        if time.time() - leftover.stat().st_mtime > 24 * 3600:
            shutil.rmtree(leftover, ignore_errors=True)


def _rename_to_next(beside: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    while True:
        target = folder / str(files.next_version(folder))
        try:
            os.rename(beside, target)
            return target
        except OSError as error:
            # Another export has taken the number in the meantime.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise

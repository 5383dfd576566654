"""Writes a version folder under a temporary name and renames it when it is complete."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import tempfile
import time

from branchy_tf.files import paths

# Not a number, so that no server takes it for a version.
_BESIDE = ".writing-"
_OLD_SECONDS = 24 * 3600


def begin_version(folder: pathlib.Path) -> pathlib.Path:
    """A new folder beside the versions in `folder`, to write the next one to.

    Servers do not see it. The caller removes it if it does not become a version.

    Example:

    ```python
    beside = files.begin_version(folder)
    try:
        model.save(beside)
        version = files.finish_version(beside)      # folder / "1"
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    ```
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=_BESIDE, dir=folder))
    # mkdtemp gives access to its user only; a server often runs as another user.
    os.chmod(beside, 0o755)
    return beside


def finish_version(beside: pathlib.Path) -> pathlib.Path:
    """Renames a folder of `begin_version` to the next version and returns its path."""
    while True:
        target = beside.parent / str(paths.next_version(beside.parent))
        try:
            os.rename(beside, target)
            return target
        except OSError as error:
            # Another export has taken the number in the meantime.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes leftovers of killed exports, which are more than a day old."""
    for leftover in folder.glob(f"{_BESIDE}*"):
        if time.time() - leftover.stat().st_mtime > _OLD_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)

"""Reads flagfiles, one flag per line, as written on Windows and Linux."""

from __future__ import annotations

import codecs
import pathlib
from collections.abc import Sequence

from branchy_tf import files
from branchy_tf.errors import BranchyError

# UTF-16 as PowerShell writes it.
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: files.Path) -> list[str]:
    """The flags in a flagfile, with nested flagfiles expanded in place.

    Skips empty lines and comments with # or //. Reads UTF-8, with or without a byte
    order mark, and UTF-16 with one. Nested paths resolve against the working directory.

    Raises:
        BranchyError: the file is missing, not text, or names itself.

    Example:

    ```python
    flagfiles.read("runs/lenet/train.flags")    # ["--model=branchy_lenet", ...]
    ```
    """
    return _read(files.path(path), ())


def expand(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with each --flagfile expanded in place.

    Raises:
        BranchyError: a flagfile cannot be read, see `read`.
    """
    return _expand(arguments, ())


def _read(path: pathlib.Path, above: tuple[pathlib.Path, ...]) -> list[str]:
    real = path.resolve()
    if real in above:
        raise BranchyError(f"The flagfile {path} names itself. Remove that --flagfile.")
    lines = [line.strip() for line in _text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("#", "//"))]
    return _expand(lines, (*above, real))


def _expand(arguments: Sequence[str], above: tuple[pathlib.Path, ...]) -> list[str]:
    found: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            return [*found, argument, *waiting]
        name, equals, value = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            found.append(argument)
            continue
        value = value if equals else next(waiting, "")
        if not value:
            raise BranchyError("--flagfile is empty: expected the path of a flagfile.")
        found += _read(files.path(value), above)
    return found


def _text(path: pathlib.Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BranchyError(f"There is no flagfile {path}.") from None
    except OSError as error:
        raise BranchyError(
            f"The flagfile {path} cannot be read: {error.strerror}."
        ) from None
    encoding = "utf-16" if raw.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BranchyError(
            f"The flagfile {path} is not UTF-8: byte 0x{raw[error.start]:02x} in line "
            f"{line}. Save it as UTF-8."
        ) from None
    if "\0" in text:
        raise BranchyError(
            f"The flagfile {path} holds NUL characters; expected text, in UTF-8."
        )
    return text

"""Starts commands without start-up noise and under the name that the user typed."""

from __future__ import annotations

import ast
import atexit
import contextlib
import os
import pathlib
import select
import signal
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any

# Silences TensorFlow's messages on CPU and drivers; errors are still exceptions.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "NONE"}

# The prefix of commands in help texts, and the prefix that the user typed.
_WRITTEN = "python -m branchy_tf."
_typed = _WRITTEN


class _Hush:
    """Holds back writes to the file descriptor of stderr.

    TensorFlow's C++ code writes some lines before it reads TF_CPP_MIN_LOG_LEVEL.
    """

    def __init__(self) -> None:
        self._held: IO[bytes] | None = None
        self._stderr = -1

    def begin(self) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        # A user who sets another log level wants to see the output.
        level = "TF_CPP_MIN_LOG_LEVEL"
        if self._held is not None or os.environ[level] != QUIET[level]:
            return
        with contextlib.suppress(OSError):  # no room for the file, or no stderr
            held = tempfile.TemporaryFile()  # noqa: SIM115
            try:
                self._stderr = os.dup(2)
            except OSError:
                held.close()
                return
            _flush()
            os.dup2(held.fileno(), 2)
            self._held = held

    def end(self, show: bool) -> None:
        """Restores stderr; `show` prints what was held back."""
        if self._held is None:
            return
        _flush()
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        held, self._held = self._held, None
        with held:
            held.seek(0)
            if show:
                with contextlib.suppress(OSError):
                    os.write(2, held.read())


_hush = _Hush()


def begin() -> None:
    """Holds stderr back until `ready`; without it, the end of the process shows it."""
    atexit.register(_hush.end, show=True)
    sys.excepthook = _import_failed
    _hush.begin()


def ready() -> None:
    """Discards what the successful imports wrote."""
    sys.excepthook = sys.__excepthook__
    _hush.end(show=False)


def _import_failed(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    # The user chose the backend; any other missing module is a bug.
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing not in ("jax", "torch", "openvino"):
        sys.__excepthook__(kind, error, trace)
        return
    _hush.end(show=False)
    print(
        f"error: Keras is set to the backend {missing} (KERAS_BACKEND or keras.json), "
        "which is not installed. Install it, or set KERAS_BACKEND=tensorflow.",
        file=sys.stderr,
    )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silences an import of TensorFlow; after an exception, shows what it wrote."""
    _hush.begin()
    try:
        yield
    except BaseException:
        _hush.end(show=True)
        raise
    _hush.end(show=False)


def typed_as(prefix: str) -> None:
    """Sets the prefix of command names, e.g. "branchy_tf "."""
    global _typed
    _typed = prefix


def as_typed(text: str) -> str:
    """The text with commands as the user types them."""
    return text.replace(_WRITTEN, _typed)


def docstring(path: str | os.PathLike) -> str:
    """The docstring of a source file, which python -OO strips from the module."""
    source = pathlib.Path(path).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def never_fail(stream: Any) -> None:
    """Escapes characters that a console cannot encode, instead of failing."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """Writes out what the block prints, and ends the process once nobody reads it.

    `branchy_tf train --help | head -1` closes the pipe after one line. The process then
    ends without a word, with the status that shells give to one that SIGPIPE ended.

    Raises:
        OSError: the output cannot be written for another reason, such as a full disk.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        for stream in {sys.stdout, *unread}:
            _discard(stream)
        if unread and isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        raise


def _is_unread(stream: Any) -> bool:
    """Whether a stream is a pipe without a reader."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)
        return bool(pipe.poll(0))  # only errors are reported unasked
    return False


def _discard(stream: Any) -> None:
    """Drops what is buffered, which the end of the interpreter would write again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()

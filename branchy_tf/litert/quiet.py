"""Holds back what LiteRT's C++ code writes to stderr while it converts or loads."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(prefix: bytes = b"") -> Iterator[None]:
    """Discards lines that the block writes to the file descriptor of stderr.

    No setting silences LiteRT: it ignores TF_CPP_MIN_LOG_LEVEL when it announces its
    kernels, and the converter prints its errors besides raising them.

    Args:
        prefix: how the lines to discard begin; by default, all lines are discarded.
    """
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with tempfile.TemporaryFile() as held:
            _flush()
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                _flush()
                os.dup2(kept, 2)
                held.seek(0)
                others = [line for line in held if not line.startswith(prefix)]
                with contextlib.suppress(OSError):
                    os.write(2, b"".join(others))
    finally:
        os.close(kept)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()

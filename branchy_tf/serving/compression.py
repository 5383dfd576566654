"""Compressed requests: gzip by gRPC itself, zstd between programs of this package.

gRPC cannot carry zstd, so the whole message is compressed and marked in the call's
metadata. The embedded server reads both; TF Serving reads gzip.
"""

from __future__ import annotations

from typing import Any

import grpc

from branchy_tf.errors import BranchyError

NONE, GZIP, ZSTD = "none", "gzip", "zstd"
COMPRESSIONS = (NONE, GZIP, ZSTD)
# Metadata of a call whose message is compressed with zstd.
_KEY = "branchy-encoding"
# A few bytes can declare gigabytes, so larger messages are refused.
_MOST_BYTES = 64 * 2**20
_LEVEL = 3


def check(compression: str) -> None:
    """Raises `BranchyError` if zstd is asked for, but is not installed."""
    if compression == ZSTD:
        _library()


def prepare(compression: str, request: bytes) -> tuple[bytes, dict[str, Any]]:
    """A request as it is sent, and arguments of the gRPC call.

    Args:
        compression: one of `COMPRESSIONS`.
        request: the serialised message.
    """
    if compression == ZSTD:
        packed = _library().ZstdCompressor(level=_LEVEL).compress(request)
        return packed, {"metadata": ((_KEY, ZSTD),)}
    if compression == GZIP:
        return request, {"compression": grpc.Compression.Gzip}
    return request, {}


def is_marked(metadata: Any) -> bool:
    """Whether the metadata of a call say that its message is compressed with zstd."""
    return any(key == _KEY and value == ZSTD for key, value in metadata)


def unpack(content: bytes) -> bytes:
    """A message that `prepare` compressed with zstd.

    Raises:
        BranchyError: it is damaged, or larger than 64 MiB.
    """
    library = _library()
    try:
        size = library.frame_content_size(content)
        if not 0 <= size <= _MOST_BYTES:
            raise BranchyError(
                f"A message of {size:,} bytes is too large for zstd; expected at most "
                f"{_MOST_BYTES:,}. Send fewer rows."
            )
        return library.ZstdDecompressor().decompress(content)
    except library.ZstdError as error:
        raise BranchyError(f"The message is not zstd: {error}.") from None


def _library() -> Any:
    try:
        import zstandard
    except ImportError:
        raise BranchyError(
            "zstd needs the package zstandard. Install it: pip install "
            "'branchy_tf[cascade]', or use gzip."
        ) from None
    return zstandard

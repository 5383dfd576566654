"""What a visitor of the page does."""

from __future__ import annotations

import struct
import zlib


def stroke(page, *points):
    """Draws along points in fractions of the board."""
    box = page.locator("#board").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"])
              for x, y in points]  # fmt: skip
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def settled(page, text):
    """Waits until the answer contains a text."""
    page.wait_for_function(
        "(text) => document.getElementById('summary').textContent.includes(text)",
        arg=text,
    )


def huge_png(width=10_000, height=10_000):
    """A PNG of 100 megapixels in a few bytes."""

    def chunk(kind, data):
        checked = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checked)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )

"""Puts styles, scripts and data into a page that needs no other file."""

from __future__ import annotations

import base64
import hashlib
import pathlib
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

# The look of all pages.
STYLE = pathlib.Path(__file__).parent / "style.css"


def text(path: pathlib.Path) -> str:
    """The text of a stylesheet or script of this package, to be inlined in a page."""
    return path.read_text(encoding="utf-8")


def inlined(value: Any) -> str:
    """JSON that is safe inside a script element, whatever the strings in it."""
    return htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False)


def content_hash(script: str) -> str:
    """The source expression with which a Content-Security-Policy allows one script."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"

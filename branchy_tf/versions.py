"""The versions of an exported model: folders that are named by a number."""

from __future__ import annotations

import pathlib


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

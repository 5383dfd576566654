"""The cascade.yaml of a network in two units."""

from __future__ import annotations

import pathlib


def write(
    folder: pathlib.Path, exact_dir: pathlib.Path, cloud: str, more: str = ""
) -> pathlib.Path:
    """A cascade.yaml whose second unit runs at `cloud`."""
    path = folder / "cascade.yaml"
    path.write_text(
        f"model: net\n{more}units:\n"
        f"  device: {{path: {exact_dir / 'device'}, next: cloud}}\n"
        f"  cloud: {{{cloud}}}\n"
    )
    return path

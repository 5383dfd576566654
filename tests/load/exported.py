"""Serves an existing export, with images for it."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import lab
import numpy as np
import servers

from branchy_tf import data
from branchy_tf.files import version_folders
from branchy_tf.serving import EarlyExitClient


def parser(text: str) -> argparse.ArgumentParser:
    """A parser with --export and --dataset."""
    found = lab.parser(text)
    found.add_argument(
        "--export",
        type=pathlib.Path,
        required=True,
        help="the folder of a model, <export_dir>/<model_name>",
    )
    found.add_argument(
        "--dataset", help="what to ask about, as in predict; default: noise"
    )
    return found


def newest(export: pathlib.Path) -> pathlib.Path:
    """The folder of the newest version."""
    folders = version_folders(export)
    if not folders:
        raise SystemExit(f"error: {export} holds no versions.")
    return folders[max(folders)]


@contextlib.contextmanager
def serving(
    export: pathlib.Path, folder: pathlib.Path, flags: Sequence[str] = ()
) -> Iterator[tuple[servers.ServeProcess, EarlyExitClient]]:
    """Serves the newest version in another process; yields it and a client."""
    newest(export)
    name = export.resolve().name
    log = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "log"
    with (
        lab.serving(export.resolve(), log, flags) as server,
        EarlyExitClient(server.address, name, timeout=30) as client,
    ):
        client.wait_until_ready()
        yield server, client


def images(client: EarlyExitClient, dataset: str | None) -> np.ndarray:
    """Test images of a data set, or noise of the model's shape."""
    if dataset is not None:
        return data.load(dataset).test.images
    ((_, expected),) = client.describe()[0].items()
    shape = [1000, *(size if size and size > 0 else 32 for size in expected.shape[1:])]
    noise = np.random.default_rng(0).integers(0, 256, shape)
    return noise.astype(expected.dtype)

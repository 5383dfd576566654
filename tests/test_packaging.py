"""The wheel and the source distribution hold what they need, and install."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import branchy_tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = f"branchy_tf-{branchy_tf.__version__}"


def packaged() -> set[str]:
    """The files of the package: all but those of Bazel."""
    paths = ROOT.glob("branchy_tf/**/*")
    return {
        str(path.relative_to(ROOT))
        for path in paths
        if path.is_file() and path.name != "BUILD" and "__pycache__" not in path.parts
    }


def build(kind: str, source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Builds `wheel` or `sdist` with the installed setuptools, which needs no network."""
    target.mkdir()
    script = f"from setuptools import build_meta as b; b.build_{kind}({str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> pathlib.Path:
    """The source distribution, built from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("packaging")
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "shared", "runs", "exports"
    )
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    return build("sdist", folder / "checkout", folder / "sdist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> pathlib.Path:
    """The wheel, built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / NAME, folder / "made")


def test_the_source_distribution_holds_the_package_and_how_to_build_it(sdist):
    assert sdist.name == f"{NAME}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive if member.isfile()}
    inside = {name.removeprefix(f"{NAME}/") for name in names}
    needed = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert inside >= packaged() | needed
    folders = {name.partition("/")[0] for name in inside if "/" in name}
    assert folders == {"branchy_tf", "branchy_tf.egg-info"}


def test_the_wheel_of_the_source_distribution_holds_the_package_alone(wheel):
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if name.startswith("branchy_tf/")}
    assert inside == packaged()
    assert all(".dist-info/" in name for name in names - inside)


def test_the_installed_wheel_lists_its_commands(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    installed = tmp_path / "installed"
    subprocess.run([*pip, "-q", "--target", installed, wheel], check=True)
    environment = {"PYTHONPATH": str(installed), "PATH": ""}
    script = (
        "import importlib.metadata as m, branchy_tf; print(branchy_tf.__file__, "
        "m.version('branchy_tf'))"
    )
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    said = subprocess.run([sys.executable, "-c", script], env=environment, **run)
    path, version = said.stdout.split()
    assert pathlib.Path(path).is_relative_to(installed)
    assert version == branchy_tf.__version__
    # The console script, as pip made it.
    listed = subprocess.run(
        [sys.executable, installed / "bin" / "branchy_tf"], env=environment, **run
    )
    for command in ("train", "calibrate", "evaluate", "export", "serve", "predict"):
        assert f"\n  {command} " in listed.stdout

from __future__ import annotations

import pathlib

import commands
import pytest

ZOO = pathlib.Path(__file__).resolve().parents[2] / "zoo"


def pages() -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in ZOO.rglob("*") if path.is_file()}


def test_rewriting_the_pages_changes_nothing():
    before = pages()
    done = commands.run("zoo.publish", f"--zoo_dir={ZOO}")
    assert done.status == 0, done.stderr
    assert pages() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--zoo_dir=nowhere"], "There is no folder nowhere. Run this in a checkout"),
        (
            ["--run_dir=run"],
            "--tag must be letters, digits and _, starting with a letter, e.g. cifar10. "
            "Received None",
        ),
        (["--run_dir=run", "--tag=../x"], "--tag must be letters"),
        (
            ["--run_dir=nowhere", "--tag=x"],
            "thresholds.json is missing. Train, calibrate",
        ),
    ],
)
def test_rejects_invalid_flags_in_one_line(tmp_path, flags, expected):
    (tmp_path / "zoo").mkdir()
    assert expected in commands.run("zoo.publish", *flags, cwd=tmp_path).error
    assert list(tmp_path.rglob("*")) == [tmp_path / "zoo"]


def test_rejects_a_run_without_an_evaluation(run_dir, tmp_path):
    (tmp_path / "zoo").mkdir()
    flags = (f"--run_dir={run_dir}", "--tag=mine")
    error = commands.run("zoo.publish", *flags, cwd=tmp_path).error
    assert "evaluation.json is missing" in error

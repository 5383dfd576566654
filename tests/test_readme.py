"""What the README shows works as written: every Python block and every command."""

from __future__ import annotations

import pathlib
import re

import guides
import pytest

from branchy_tf.serving.embedded import EmbeddedServer

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# What `benchmark` would do for minutes.
SHORT = [
    "--seconds=0.1", "--batch_sizes=1,32", "--threads=1", "--peers=", "--nobfloat16",
    "--noint8",
]  # fmt: skip


PYTHON = guides.blocks(README, "python")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run_as_they_stand(number, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = f"README.md, Python block {number}"
    if "localhost:8500" not in PYTHON[number]:
        guides.Walk(tmp_path, 0, {}).python(PYTHON[number], source)
        return
    with EmbeddedServer(exported, "branchy_lenet", port=0) as server:
        guides.Walk(tmp_path, server.port, {}).python(PYTHON[number], source)


def test_the_commands_run_as_they_stand(tmp_path):
    """In order, in a folder like a checkout; only shorter than they would be."""
    for name in ("zoo", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shorter = {"train": ["--epochs=2", "--baseline_epochs=1"], "benchmark": SHORT}
    with guides.walk(tmp_path, shorter) as walk:
        for line in guides.walkthrough(README):
            walk.command(line)
    assert walk.ran == [
        "train", "calibrate", "evaluate", "export", "serve", "predict", "benchmark",
    ]  # fmt: skip
    assert (tmp_path / "runs/lenet/report.html").is_file()


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

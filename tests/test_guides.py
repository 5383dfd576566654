"""What the guides show works as written, and their notebooks say the same."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys

import guides
import pytest

from zoo import notebook

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDES = sorted(ROOT.glob("docs/*.md"))
NOTEBOOKS = sorted(ROOT.glob("docs/*.ipynb"))
# Run by other tests, in a shorter form; the guide's steps take hours or many processes.
ELSEWHERE = {
    "accelerator": "tests/training/test_on_device.py",
    "cascade": "tests/units/test_cascade_commands.py",
    "compression": "tests/compression/test_compress.py",
    "device": "tests/litert/test_device_page.py",
    "placement": "tests/units/placing/test_placing_commands.py",
    "several-devices": "tests/load/test_devices.py",
}
# Guides that go on from a trained and calibrated run.
GO_ON = ("first-model", "serving", "thresholds")
# What takes long and stands in the README too, whose test runs it.
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_BY_README = [
    line
    for line in guides.walkthrough(README)
    if re.search(r"branchy_tf\.(train|benchmark) ", line)
]
SHORTER = {
    "benchmark": ["--seconds=0.1", "--batch_sizes=1,32", "--threads=1"],
    "measure": ["--seconds=0.1"],
}


@pytest.mark.parametrize(
    "guide", [x for x in GUIDES if x.stem not in ELSEWHERE], ids=lambda path: path.stem
)
def test_what_a_guide_shows_runs_in_its_order(guide, run_dir, tmp_path, monkeypatch):
    """It takes as long as training the few networks that a guide trains."""
    if guide.stem in GO_ON:
        shutil.copytree(run_dir, tmp_path / "runs" / "lenet")
    for name in ("zoo", "docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    parts = notebook.parts(guide.read_text(encoding="utf-8"))
    with guides.walk(tmp_path, SHORTER) as walk:
        for number, part in enumerate(parts):
            if part.kind == "file":
                (tmp_path / part.name).write_text(part.content, encoding="utf-8")
            elif part.kind == "python":
                walk.python(part.content, f"{guide.name}, part {number}")
            elif part.kind == "sh":
                for line in guides.lines(part.content):
                    recipe = " --epochs=2 --baseline_epochs=1"
                    if guide.stem not in GO_ON or line not in RUN_BY_README:
                        walk.command(line + recipe * ("--flagfile=zoo/" in line))


def test_there_are_guides_and_a_notebook():
    assert {*ELSEWHERE, *GO_ON} <= {path.stem for path in GUIDES}
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_guide_and_was_run(path):
    guide = path.with_suffix(".md").read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert ["".join(cell["source"]) for cell in cells] == [
        part.cell for part in notebook.parts(guide)
    ], f"Make it anew: python -m zoo.notebook docs/{path.stem}.md"
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [x for x in outputs if x["output_type"] == "error"]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "gain" in text


def test_the_parts_of_a_guide():
    guide = (
        "# A\n\n```python\n# net.py\nx = 1\n```\n\n```sh\npython -m a\n```\nb\n"
        "<!-- not run: it takes hours -->\n```sh\npython -m b\n```\n"
        "```python\ny = 2\n```\n"
    )
    found = notebook.parts(guide)
    assert [part.kind for part in found] == ["text", "file", "sh", "text", "python"]
    assert found[1].cell == "%%writefile net.py\n# net.py\nx = 1"
    assert found[2].cell == "%%bash -e\npython -m a"
    assert "python -m b" in found[3].cell

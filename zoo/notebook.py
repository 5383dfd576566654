"""Turns a guide into a notebook and runs it, so that its outputs can be read.

    python -m zoo.notebook docs/own-network.md

writes docs/own-network.ipynb. It needs the packages nbclient, nbformat and ipykernel. A
block of the guide becomes a cell, a block that starts with `# NAME.py` a cell that writes
this file. A block after the comment `<!-- not run: WHY -->` remains text.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

# A fence of a language, maybe after the comment that nobody runs it.
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n+)?^```(?P<language>python|sh)\n"
    r"(?P<code>.*?)^```$\n?",
    re.MULTILINE | re.DOTALL,
)
_MODULE = re.compile(r"# (\w+\.py)\n")
# What differs from run to run: progress, times and log lines.
_NOISE = re.compile(
    r"it/s|/s\]|s/step|per second|INFO:tensorflow|\d{10}\.\d{6}|WARNING: All"
)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a guide.

    Attributes:
        kind: "text", "python", "sh" or "file".
        content: the text or code.
        name: the name of a file to write.
    """

    kind: str
    content: str
    name: str = ""

    @property
    def cell(self) -> str:
        """The source of its cell in a notebook."""
        if self.kind == "file":
            return f"%%writefile {self.name}\n{self.content}".rstrip("\n")
        if self.kind == "sh":
            return f"%%bash -e\n{self.content}".rstrip("\n")
        return self.content.strip("\n")


def parts(guide: str) -> list[Part]:
    """The parts of a guide in Markdown, in order."""
    found, end = [], 0
    for block in _BLOCK.finditer(guide):
        if block["why"]:
            continue
        found.append(Part("text", guide[end : block.start()]))
        end = block.end()
        module = _MODULE.match(block["code"])
        if module and block["language"] == "python":
            found.append(Part("file", block["code"], module[1]))
        else:
            found.append(Part(block["language"], block["code"]))
    found.append(Part("text", guide[end:]))
    return [part for part in found if part.content.strip()]


def convert(guide: pathlib.Path) -> Any:
    """The notebook of a guide, not run yet."""
    import nbformat

    new = nbformat.v4
    cells = [
        (new.new_markdown_cell if part.kind == "text" else new.new_code_cell)(part.cell)
        for part in parts(guide.read_text(encoding="utf-8"))
    ]
    for number, cell in enumerate(cells):
        # Random ones would change the file each time.
        cell["id"] = f"cell-{number}"
    return new.new_notebook(cells=cells)


def run(notebook: Any) -> None:
    """Runs a notebook in an empty folder and keeps what its cells print."""
    import nbclient

    # `python` in a cell is this one.
    path = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    os.environ |= {"PATH": os.pathsep.join(path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=3600, resources=resources).execute()
        _clean(notebook, folder)


def _clean(notebook: Any, folder: str) -> None:
    """Keeps what a reader of the page needs."""
    import nbformat

    notebook.metadata = {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            printed = "".join(output.get("text", "") for output in cell.outputs)
            text = _readable(printed, folder)
            shown = nbformat.v4.new_output("stream", text=text, name="stdout")
            cell.outputs = [shown] if text else []


def _readable(text: str, folder: str) -> str:
    """What a reader sees of an output: the last state of a line, without times."""
    text = _COLOURS.sub("", text.replace("\b", ""))
    text = text.replace(f"{os.path.realpath(folder)}/", "").replace(f"{folder}/", "")
    lines = [line.split("\r")[-1] for line in text.split("\n")]
    return "\n".join(line for line in lines if not _NOISE.search(line)).strip("\n")


def main() -> None:
    import nbformat

    guide = pathlib.Path(sys.argv[1])
    notebook = convert(guide)
    run(notebook)
    nbformat.write(notebook, guide.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()

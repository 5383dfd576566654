"""The HTML page that a run's commands write their results to.

Each command that measures something writes one section. A section is stored as JSON
beside its pictures, and writing one renders the page again from all sections, so the
order of the commands does not matter.
"""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from branchy_tf import files

# In page order.
SECTIONS = ("validation", "test")


class Report:
    """The page of a run.

    Args:
        page: the .html file to write.
        folder: the folder of the pictures and sections.
        title: the title of the page.
    """

    def __init__(self, page: files.Path, folder: files.Path, title: str) -> None:
        self._page = pathlib.Path(page)
        self._folder = pathlib.Path(folder)
        self._title = title

    def write(self, name: str, section: Section) -> None:
        """Writes a section, one of `SECTIONS`, and the page with all sections.

        Drops the sections after it, because they describe other thresholds.
        """
        for later in SECTIONS[SECTIONS.index(name) + 1 :]:
            self._file(later).unlink(missing_ok=True)
        files.write_json(self._file(name), section.content())
        present = [self._file(n) for n in SECTIONS if self._file(n).is_file()]
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("branchy_tf.report", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["embedded"] = self._embedded
        template = environment.get_template("page.html.jinja")
        mend = f"Remove {self._folder}, and calibrate and evaluate again."
        with files.reading(self._folder, "the sections of a report", mend):
            sections = [files.read_json(path) for path in present]
            page = template.render(title=self._title, sections=sections)
        files.write_text(self._page, page)

    def _embedded(self, file: str) -> str:
        """A picture as a data URL, so that the page needs no other file."""
        data = (self._folder / file).read_bytes()
        return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"

    def _file(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.section.json"


class Section:
    """A part of the page: paragraphs, tables and pictures, in the order added.

    Args:
        heading: the heading of the section.
        folder: the folder to write its pictures to.
        prefix: the prefix of their file names.

    Example:

    ```python
    section = Section("Validation split", "run/report", "validation")
    section.paragraph("500 images.")
    section.picture("frontier", "Accuracy against cost.", draw)
    ```
    """

    def __init__(self, heading: str, folder: files.Path, prefix: str) -> None:
        self._heading = heading
        self._folder = pathlib.Path(folder)
        self._prefix = prefix
        self._parts: list[dict[str, Any]] = []

    def paragraph(self, text: str, note: bool = False) -> None:
        """Adds a paragraph; `note` highlights it."""
        self._parts.append({"kind": "paragraph", "text": text, "note": note})

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table of strings."""
        self._parts.append({"kind": "table", "head": head, "rows": rows})

    def picture(
        self, name: str, caption: str, draw: Callable[[pathlib.Path], None]
    ) -> None:
        """Draws `<prefix>_<name>.png` and adds it; the page embeds the file."""
        file = f"{self._prefix}_{name}.png"
        draw(self._folder / file)
        self._parts.append({"kind": "picture", "file": file, "caption": caption})

    def content(self) -> dict[str, Any]:
        """The section as it is stored in JSON."""
        return {"heading": self._heading, "parts": self._parts}

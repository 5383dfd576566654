"""The HTML page that a run's commands write their results to.

Each command that measures something writes one section. A section is stored as JSON
beside its pictures, and writing one renders the page again from all sections, so the
order of the commands does not matter.
"""

from __future__ import annotations

import base64
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from branchy_tf import files
from branchy_tf.report import assets
from branchy_tf.report.scores import measured_times

# In page order.
SECTIONS = ("validation", "test")

_SCRIPT = pathlib.Path(__file__).parent / "sliders.js"
_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}


class Report:
    """The page of a run.

    Args:
        page: the .html file to write.
        folder: the folder of the pictures and sections.
        title: the title of the page.
        costs: the costs.json of the command measure, whose times the page shows if it
            exists and belongs to the same network.
    """

    def __init__(
        self,
        page: files.Path,
        folder: files.Path,
        title: str,
        costs: files.Path | None = None,
    ) -> None:
        self._page = pathlib.Path(page)
        self._folder = pathlib.Path(folder)
        self._title = title
        self._costs = None if costs is None else pathlib.Path(costs)

    def write(self, name: str, section: Section) -> None:
        """Writes a section, one of `SECTIONS`, and the page with all sections.

        Drops the sections after it, because they describe other thresholds.
        """
        for later in SECTIONS[SECTIONS.index(name) + 1 :]:
            self._file(later).unlink(missing_ok=True)
        files.write_json(self._file(name), section.content())
        self.render()

    def render(self) -> None:
        """Writes the page from the stored sections, and from times measured since."""
        present = [n for n in SECTIONS if self._file(n).is_file()]
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("branchy_tf.report", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {
            "embedded": self._embedded,
            "inlined": assets.inlined,
            "hash": assets.content_hash,
        }
        mend = f"Remove {self._folder}, and calibrate and evaluate again."
        with files.reading(self._folder, "the sections of a report", mend):
            sections = {name: files.read_json(self._file(name)) for name in present}
            figures = sections.get("test", {}).get("figures")
            environment.filters["stored"] = functools.partial(
                self._stored, figures=figures
            )
            page = environment.get_template("page.html.jinja").render(
                title=self._title,
                sections=list(sections.values()),
                style=assets.text(assets.STYLE),
                script=assets.text(_SCRIPT),
            )
        files.write_text(self._page, page)

    def _embedded(self, file: str) -> str:
        """A picture as a data URL, so that the page needs no other file."""
        path = self._folder / file
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        return f"data:{_KINDS[path.suffix]};base64,{data}"

    def _stored(self, file: str, figures: dict[str, Any] | None) -> dict[str, Any]:
        """The data of sliders, with the test figures and the times known by now."""
        # Plain JSON, in which infinity stays "inf".
        data = json.loads((self._folder / file).read_text(encoding="utf-8"))
        if self._costs is not None and self._costs.is_file():
            known = {time["batch"] for time in data["times"]}
            measured = measured_times(files.read_json(self._costs), data["macs"])
            data["times"] += [time for time in measured if time["batch"] not in known]
        return data | {"test": figures}

    def _file(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.section.json"


class Section:
    """A part of the page: paragraphs, tables and pictures, in the order added.

    Args:
        heading: the heading of the section.
        folder: the folder to write its pictures to.
        prefix: the prefix of their file names.

    Attributes:
        figures: figures of the section that other sections show too, or None.

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
        self.figures: dict[str, Any] | None = None

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

    def sliders(self, pack: Callable[[pathlib.Path], dict[str, Any]]) -> None:
        """Adds sliders that move the thresholds; a page has room for one set of them.

        Args:
            pack: returns what `scores.pack` does, given the .jpg file for its pictures.
        """
        file = f"{self._prefix}_scores.json"
        packed = pack(self._folder / f"{self._prefix}_rows.jpg")
        files.write_json(self._folder / file, packed)
        self._parts.append({"kind": "sliders", "file": file})

    def content(self) -> dict[str, Any]:
        """The section as it is stored in JSON."""
        content: dict[str, Any] = {"heading": self._heading, "parts": self._parts}
        return content if self.figures is None else content | {"figures": self.figures}

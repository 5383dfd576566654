"""report.html: one page with its pictures in it, for people.

It has a section for each command that measured something. A section is kept as
a file of its own beside the pictures, and the page is put together anew whenever
one is written.
"""

from __future__ import annotations

import base64
import html
import pathlib
import re
from collections.abc import Callable, Sequence

from branchy_tf import files

# In the order of the page.
SECTIONS = ("validation", "test")

# What `Section.picture` writes.
_PICTURE = re.compile(r'src="([\w.]+\.png)"')
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; line-height: 1.45; color: #000; background: #fff;
  max-width: 44rem; margin: 0 auto; padding: 0.75rem; }}
img {{ max-width: 100%; height: auto; display: block; }}
figure {{ margin: 1.5rem 0; break-inside: avoid; }}
figcaption {{ font-size: 0.95rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #888; padding: 0.25rem 0.5rem; text-align: right;
  font-variant-numeric: tabular-nums; }}
.note {{ border-left: 0.3rem solid #000; padding-left: 0.6rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


class Report:
    """The page of a run.

    Args:
        page: the .html to write.
        folder: where the pictures and sections lie.
        title: of the page.
    """

    def __init__(self, page: files.Path, folder: files.Path, title: str) -> None:
        self._page = pathlib.Path(page)
        self._folder = pathlib.Path(folder)
        self._title = title

    def write(self, name: str, section: Section) -> None:
        """Writes a section, one of `SECTIONS`, and the page with all there are.

        Those behind it are dropped: they told of other thresholds.
        """
        later = SECTIONS[SECTIONS.index(name) + 1 :]
        for other in later:
            self._file(other).unlink(missing_ok=True)
        files.write_text(self._file(name), section.text())
        there = [self._file(n) for n in SECTIONS if self._file(n).is_file()]
        body = "\n".join(self._read(path) for path in there)
        files.write_text(
            self._page, _PAGE.format(title=html.escape(self._title), body=body)
        )

    def _read(self, path: pathlib.Path) -> str:
        mend = f"Remove {self._folder}, and calibrate and evaluate again."
        with files.reading(path, "a section of the report", mend):
            return _PICTURE.sub(self._embedded, path.read_text(encoding="utf-8"))

    def _embedded(self, found: re.Match) -> str:
        data = (self._folder / found[1]).read_bytes()
        return f'src="data:image/png;base64,{base64.b64encode(data).decode("ascii")}"'

    def _file(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.section.html"


class Section:
    """A part of the page: paragraphs, tables and pictures, in the order given.

    Args:
        heading: of the section.
        folder: where its pictures go.
        prefix: of their file names.

    Example:

    ```python
    section = Section("Validation split", "run/report", "validation")
    section.paragraph("500 images.")
    section.picture("frontier", "Accuracy against cost.", draw)
    ```
    """

    def __init__(self, heading: str, folder: files.Path, prefix: str) -> None:
        self._parts = [f"<h2>{html.escape(heading)}</h2>"]
        self._folder = pathlib.Path(folder)
        self._prefix = prefix

    def paragraph(self, text: str, note: bool = False) -> None:
        """Adds a paragraph; a note stands out."""
        kind = ' class="note"' if note else ""
        self._parts.append(f"<p{kind}>{html.escape(text)}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table of texts."""
        lines = [_row("th", head), *(_row("td", row) for row in rows)]
        self._parts.append(
            '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"
        )

    def picture(
        self, name: str, caption: str, draw: Callable[[pathlib.Path], None]
    ) -> None:
        """Draws `<prefix>_<name>.png` and adds it; the page will hold it itself."""
        file = f"{self._prefix}_{name}.png"
        draw(self._folder / file)
        words = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{words}" src="{file}">\n'
            f"<figcaption>{words}</figcaption></figure>"
        )

    def text(self) -> str:
        """The section as HTML."""
        return "\n".join(self._parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return (
        "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"
    )

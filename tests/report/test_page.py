from __future__ import annotations

import base64
import html.parser

import pytest

from branchy_tf.errors import BranchyError
from branchy_tf.report import Report, Section

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJ"
    "RU5ErkJggg=="
)


def section(folder, name):
    made = Section(f"The {name} <split>", folder, name)
    made.paragraph("1 < 2", note=True)
    made.table(["exit", "right"], [["exit_1", "90%"]])
    made.picture("dot", 'A "dot"', lambda path: path.write_bytes(PIXEL))
    return made


class Tags(html.parser.HTMLParser):
    """Which tags are open, and all sources."""

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    report = Report(tmp_path / "report.html", folder, "Model & exits")
    report.write("validation", section(folder, "validation"))
    report.write("test", section(folder, "test"))
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert base64.b64encode(PIXEL).decode() in page
    assert "Model &amp; exits" in page
    assert "The test &lt;split&gt;" in page
    assert 'name="viewport"' in page
    assert (folder / "validation_dot.png").read_bytes() == PIXEL


def test_new_calibration_drops_the_test_section(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    report = Report(tmp_path / "report.html", folder, "Model")
    for name in ("validation", "test", "validation"):
        report.write(name, section(folder, name))
    page = (tmp_path / "report.html").read_text()
    assert "The validation" in page
    assert "The test" not in page


def test_names_a_damaged_section(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    report = Report(tmp_path / "report.html", folder, "Model")
    report.write("validation", section(folder, "validation"))
    before = (tmp_path / "report.html").read_bytes()
    (damaged,) = folder.glob("validation*.json")
    (folder / "validation_dot.png").unlink()
    for _ in range(2):
        with pytest.raises(BranchyError, match=r"Remove|cannot be read as JSON"):
            report.write("test", section(folder, "test"))
        damaged.write_bytes(b"\xff")
    assert (tmp_path / "report.html").read_bytes() == before

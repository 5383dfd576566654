"""Gathers the site: guides, the zoo's pages and the reference of the package.

Pages stay where they are read in a checkout. A link between them is turned into one
within the site; a link to a file that the site lacks becomes plain text; a link to a file
that does not exist stays and fails the build.
"""

from __future__ import annotations

import os
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent

# In this order, where they exist; other pages of docs/ come after them.
GUIDES = (
    "first-model.md",
    "own-network.md",
    "own-data.md",
    "accelerator.md",
    "several-devices.md",
    "thresholds.md",
    "python.md",
    "serving.md",
    "device.md",
    "compression.md",
    "cascade.md",
    "placement.md",
)

# {page of the site: page of the checkout}, beside those of docs/ and zoo/.
ELSEWHERE = {
    "overview.md": "README.md",
    "production.md": "serving/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
# What the zoo's pages show and link to.
SHOWN = (".md", ".png", ".csv", ".json", ".flags")

# The reference has a page for each of these that exists.
REFERENCE = (
    "policy",
    "predictor",
    "results",
    "zoo",
    "exits",
    "data",
    "training",
    "thresholds",
    "calibration",
    "scoring",
    "stages",
    "costs",
    "saved_model",
    "litert",
    "compression",
    "units",
    "serving",
    "tuning",
    "benchmarking",
    "plots",
    "report",
    "playing",
    "images",
    "files",
    "errors",
)

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def origins() -> dict[str, str]:
    """`{page or file of the site: its path in the checkout}`."""
    found = {
        path.relative_to(ROOT / "docs").as_posix(): path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "docs").rglob("*"))
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    for path in sorted((ROOT / "zoo").rglob("*")):
        if path.is_file() and path.suffix in SHOWN:
            found[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT).as_posix()
    return found | ELSEWHERE


def modules() -> list[str]:
    """The modules and rooms of the package that the reference describes."""
    package = ROOT / "branchy_tf"
    return [
        name
        for name in REFERENCE
        if (package / f"{name}.py").is_file()
        or (package / name / "__init__.py").is_file()
    ]


def on_config(config: Any) -> Any:
    """Sets the navigation."""
    pages = [page for page in origins() if page.endswith(".md")]
    own = [page for page in pages if "/" not in page and page not in ELSEWHERE]
    guides = [page for page in GUIDES if page in own]
    guides += sorted(set(own) - set(guides) - {"index.md"})
    studies = [page for page in pages if page.startswith("zoo/studies/")]
    cards = [page for page in pages if page.startswith("zoo/") and page not in studies]
    config["nav"] = [
        {"Start": ["index.md", {"Overview": "overview.md"}]},
        {"Guides": [*guides, {"In production": "production.md"}]},
        {"Zoo": sorted(cards, key=_index_first)},
        {"Studies": sorted(studies, key=_index_first)},
        {"Reference": [{name: f"reference/{name}.md"} for name in modules()]},
        {"Project": [{"Contributing": "contributing.md"}, {"Changes": "changes.md"}]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of other folders, and the reference."""
    for page, origin in origins().items():
        if not origin.startswith("docs/"):
            path = str(ROOT / origin)
            files.append(File.generated(config, page, abs_src_path=path))
    for name in modules():
        content = f"# {name}\n\n::: branchy_tf.{name}\n"
        page = f"reference/{name}.md"
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links of the checkout into links of the site."""
    known = origins()
    here = page.file.src_uri
    if here not in known:
        return markdown
    pages = {origin: name for name, origin in known.items()}

    def turn(found: re.Match) -> str:
        mark, text, target = found.groups()
        place, _, anchor = target.partition("#")
        if not place or ":" in place:
            return found[0]
        origin = posixpath.normpath(posixpath.join(posixpath.dirname(known[here]), place))
        if f"{origin}/README.md" in pages:
            origin = f"{origin}/README.md"
        if origin in pages:
            way = os.path.relpath(pages[origin], posixpath.dirname(here) or ".")
            return f"{mark}[{text}]({way}{'#' * bool(anchor)}{anchor})"
        # A link to nowhere stays, so that the build fails.
        return text if (ROOT / origin).exists() else found[0]

    parts = _FENCE.split(markdown)
    # Every second part is a block of code.
    parts[::2] = [_LINK.sub(turn, part) for part in parts[::2]]
    return "".join(parts)


def _index_first(page: str) -> tuple[bool, bool, str]:
    return page != "zoo/README.md", not page.endswith("README.md"), page

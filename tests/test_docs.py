"""The documentation site builds without a warning, and its commands exist."""

from __future__ import annotations

import html.parser
import importlib.util
import pathlib
import posixpath
import re
import subprocess
import sys
import types
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDES = sorted(ROOT.glob("docs/*.md"))


class Links(html.parser.HTMLParser):
    """The targets of a page's links, and what it loads."""

    def __init__(self):
        super().__init__()
        self.targets, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "preconnect"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="mkdocs is missing: pip install -e '.[docs]'")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("mkdocs", "material", "mkdocstrings"):
        why = f"{name} is missing: pip install -e '.[docs]'"
        pytest.importorskip(name, reason=why)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built_and_every_link_leads_somewhere(site, hooks):
    pages = sorted(site.rglob("index.html"))
    names = {page.parent.relative_to(site).as_posix() for page in pages}
    for guide in GUIDES:
        assert (guide.stem in names) or guide.stem == "index"
    assert {f"reference/{name}" for name in hooks.modules()} <= names
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        here = page.parent.relative_to(site).as_posix()
        for target in links.targets + links.loaded:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme in ("http", "https", "mailto"):
                # Links may lead elsewhere, but nothing is loaded from there.
                assert target not in links.loaded, (page, target)
                continue
            path = posixpath.normpath(
                posixpath.join(here, urllib.parse.unquote(parts.path))
            )
            found = site / path.lstrip("/")
            assert found.exists() or parts.path in ("", "/"), (page, target)


def test_the_reference_describes_public_names(site):
    for page, names in {
        "policy": ["ExitPolicy", "exit_indices"],
        "predictor": ["EarlyExitPredictor", "predict"],
        "thresholds": ["frontier", "Calibration", "choose"],
        "serving": ["EarlyExitClient", "Tls"],
        "playing": ["PlayServer", "of_model"],
    }.items():
        text = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
        for name in names:
            assert re.search(rf'id="branchy_tf\.[\w.]*\b{name}"', text), (page, name)


def test_links_are_turned_into_the_sites(hooks):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="zoo/README.md"))

    def turned(text):
        return hooks.on_page_markdown(text, page, None, None)

    assert turned("[a](studies)") == "[a](studies/README.md)"
    assert turned("[a](studies/tuner.md#b)") == "[a](studies/tuner.md#b)"
    assert turned("[a](../serving/README.md)") == "[a](../production.md)"
    assert turned("[a](../serving)") == "[a](../production.md)"
    assert turned("[a](../docs/thresholds.md)") == "[a](../thresholds.md)"
    # Not in the site, but in the checkout; and nowhere.
    assert turned("[a](../pyproject.toml)") == "a"
    assert turned("[a](../nowhere.md)") == "[a](../nowhere.md)"
    assert turned("[a](https://keras.io)") == "[a](https://keras.io)"
    assert (
        turned("```\n[a](../pyproject.toml)\n```") == "```\n[a](../pyproject.toml)\n```"
    )


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_flags_in_guides_exist(guide):
    text = re.sub(r"\\\n\s*", "", guide.read_text(encoding="utf-8"))
    shared = (ROOT / "branchy_tf/command_line/defining.py").read_text(encoding="utf-8")
    shared += (ROOT / "branchy_tf/serving/options.py").read_text(encoding="utf-8")
    for line in re.findall(r"^python -m branchy_tf\..*$", text, re.MULTILINE):
        name = re.match(r"python -m branchy_tf\.(\w+)", line)[1]
        # A command is a module, or a package that has commands of its own.
        command = ROOT / "branchy_tf" / name
        paths = command.glob("*.py") if command.is_dir() else [command.with_suffix(".py")]
        source = shared + "".join(path.read_text(encoding="utf-8") for path in paths)
        for flag in re.findall(r"--(\w+)", line):
            defined = rf'"{flag}"|\b{flag}: '
            assert flag == "flagfile" or re.search(defined, source), (line, flag)

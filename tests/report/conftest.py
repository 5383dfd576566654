"""Opens reports in a browser."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def context(browser):
    """A browser without network."""
    found = browser.new_context(offline=True)
    yield found
    found.close()


@pytest.fixture
def opened(context):
    """`opened(path)`, a page from disk that fails the test on any error in its script."""
    errors, tabs = [], []

    def open_page(path, **emulated):
        tab = context.new_page()
        tabs.append(tab)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else
               errors.append(f"asked for {r.url}"))  # fmt: skip
        if emulated:
            tab.emulate_media(**emulated)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert not errors

"""A real browser for the tests of pages."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

# Debian's. Playwright's own download is used where it is installed.
_CHROMIUM = pathlib.Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A headless Chromium; skips the test where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install -e '.[browser]'"
    )
    with playwright.sync_playwright() as driver:
        own = pathlib.Path(driver.chromium.executable_path)
        found = next((path for path in (_CHROMIUM, own) if path.is_file()), None)
        if found is None:
            pytest.skip(f"there is no browser at {_CHROMIUM}; set CHROMIUM to its path")
        # Containers run as root, for whom Chromium refuses its sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(
            executable_path=found, args=[*arguments, "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


# The WCAG contrast of each text on the page with what lies behind it, smallest first.
_CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => {
      const c = v / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = node.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(channels(ink)), luminance(behind(node))].sort();
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, node.tagName + ": " + texts.currentNode.textContent.trim()]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


def contrasts(page: Any) -> list[tuple[float, str]]:
    """The contrast of each visible text with its background, smallest first.

    References:
        WCAG 2.1, relative luminance and contrast ratio; AA asks for 4.5.
    """
    return [tuple(found) for found in page.evaluate(_CONTRASTS)]


def unlabelled(page: Any) -> list[str]:
    """The inputs without a label or another accessible name."""
    return page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, canvas, button")]
          .filter((node) => !(node.labels?.length || node.getAttribute("aria-label")
            || (node.tagName === "BUTTON" && node.textContent.trim())))
          .map((node) => node.outerHTML)"""
    )


def is_too_wide(page: Any) -> bool:
    """Whether the page scrolls sideways."""
    return page.evaluate(
        """() => {
          const { scrollWidth, clientWidth } = document.documentElement;
          return scrollWidth > clientWidth;
        }"""
    )

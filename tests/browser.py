"""Debian's Chromium, driven by playwright, for the tests that look at pages.

Without it these tests are skipped, and say so. Where RAFT_DIFFUSION_BROWSER=required they fail instead.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE = "RAFT_DIFFUSION_AXE"
"""The environment variable that says where axe.min.js lies."""


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless browser; playwright's own API from here on."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        _missing("there is no Chromium; install Debian's package chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed; run `uv sync`")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, as whom containers run; the pages are ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def _missing(what: str) -> NoReturn:
    if os.environ.get("RAFT_DIFFUSION_BROWSER") == "required":
        pytest.fail(f"the browser tests must run here: {what}")
    pytest.skip(f"BROWSER TESTS DID NOT RUN: {what}")


def serious_faults(page: Any) -> list[str]:
    """What axe-core finds wrong with a page that people are kept out by, as "rule: the first element"."""
    place = os.environ.get(AXE, "")
    if not Path(place).is_file():
        pytest.skip(f"THE ACCESSIBILITY CHECK DID NOT RUN: set {AXE} to axe-core's axe.min.js, as .ci/run does")
    page.evaluate(Path(place).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {fault['nodes'][0]['html'][:200]}" for fault in serious]

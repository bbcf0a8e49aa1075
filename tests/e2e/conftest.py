"""A browser for the tests of what people see."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.prefect_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER_SECONDS = 30.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def ui_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server with its UI."""
    one = Server(tmp_path_factory.mktemp("home"), ui=True)
    one.start()
    yield one
    one.kill()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Of a headless Chromium, the system's."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        if os.environ.get("PREFECT_TPU_TESTS_NEED_BROWSER"):
            pytest.fail("no Chromium: apt-get install chromium")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        one = browser.new_page(viewport={"width": 1280, "height": 1000})
        one.set_default_timeout(BROWSER_SECONDS * 1000)
        yield one
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept."""
    kept = os.environ.get("PREFECT_TPU_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder

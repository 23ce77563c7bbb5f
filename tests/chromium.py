"""A real browser for tests. They are skipped where there is none.

pip install playwright && playwright install chromium       # or a Chromium of the system, on PATH
"""

import os
import shutil

import pytest

SLOW = 180_000  # milliseconds: the machine may be busy
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        if path is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("there is no Chromium: playwright install chromium, or one on PATH")
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=SLOW)
        yield opened
        opened.close()

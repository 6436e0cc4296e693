"""The built book in a real browser with the network off."""

import shutil

import pytest

from calib_utils import paths

HTML = paths.project_root() / "_build" / "_build" / "html"


def pytest_addoption(parser):
    parser.addoption("--browser-required", action="store_true", help="fail where it would skip")


@pytest.fixture(scope="session")
def pages(request):
    """Paths of the built pages. Built by `python -m calib_utils book`."""
    found = sorted(HTML.rglob("*.html"))
    found = [p for p in found if "_static" not in p.parts]
    # The first page only sends the reader on.
    found = [p for p in found if 'http-equiv="Refresh"' not in p.read_text(encoding="utf-8")]
    if not found:
        _lacking(request, "the book is not built: run make pages")
    return found


@pytest.fixture(scope="session")
def browser(request):
    """Headless Chromium of the system; playwright's own download is not used."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        _lacking(request, "no Chromium on this machine: install the package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()


def _lacking(request, reason):
    if request.config.getoption("--browser-required", default=False):
        pytest.fail(reason)
    pytest.skip(reason)

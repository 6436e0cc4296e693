"""The built book in a real browser with the network off."""

from contextlib import ExitStack

import pytest

from calib_utils import paths

LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 360)}
HTML = paths.project_root() / "_build" / "_build" / "html"


def pytest_addoption(parser):
    parser.addoption("--browser-required", action="store_true", help="fail where it would skip")


@pytest.fixture(scope="session")
def pages(request):
    """Paths of the built pages. Built by `python -m calib_utils book`."""
    found = sorted(HTML.rglob("*.html"))
    # The page for wrong addresses has absolute links, for a server: test_book.py serves it.
    found = [p for p in found if "_static" not in p.parts and p.name != "404.html"]
    # The first page only sends the reader on.
    found = [p for p in found if 'http-equiv="Refresh"' not in p.read_text(encoding="utf-8")]
    if not found:
        _lacking(request, "the book is not built: run make pages")
    return found


@pytest.fixture(scope="session")
def browser(request):
    """Headless Chromium of the system; playwright's own download is not used."""
    from playwright.sync_api import sync_playwright

    from calib_utils.book import build
    from calib_utils.errors import BookBuildError

    try:
        chromium = build.browser_path()
    except BookBuildError as error:
        _lacking(request, str(error))

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(build.FLAGS))
        yield running
        running.close()


def _lacking(request, reason):
    if request.config.getoption("--browser-required", default=False):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def watch():
    """Notes what goes wrong on a page: `watch(page, strict)` -> a list that grows.

    That is errors, what is missing, and requests that leave the book; strictly also warnings.
    """

    def listen(page, strict=False):
        wrong, levels = [], ("error", "warning") if strict else ("error",)
        own = ("file:", "data:") if strict else ("file:", "data:", "blob:")
        page.on("console", lambda m: m.type in levels and wrong.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: wrong.append(f"script: {e}"))
        page.on("requestfailed", lambda r: wrong.append(f"missing: {r.url}"))
        page.on("request", lambda r: r.url.startswith(own) or wrong.append(f"left {r.url}"))
        return wrong

    return listen


@pytest.fixture
def opened(browser, watch):
    """Opens a file, or a page of the book by its name, in a window of its own, network off.

    Whatever goes wrong on it fails the test at its end.
    """
    watched = []
    with ExitStack() as contexts:

        def get(page, width=1280, height=800, strict=False, **options):
            view = {"width": width, "height": height}
            context = browser.new_context(viewport=view, offline=True, **options)
            contexts.callback(context.close)
            found = context.new_page()
            watched.append(watch(found, strict))
            path = HTML / f"{page}.html" if isinstance(page, str) else page
            found.goto(path.as_uri(), wait_until="load")
            return found

        yield get
    faults = {fault for of_page in watched for fault in of_page}
    assert not faults, sorted(faults)


@pytest.fixture
def open_page(opened):
    """Opens a page with an explorer: `open_page(path, look)`."""

    def get(path, look="light", **options):
        scheme, width = LOOKS[look]
        page = opened(path, width, strict=True, color_scheme=scheme, **options)
        page.wait_for_selector(".cu-explorer .cu-chart .cu-bar")
        return page

    return get

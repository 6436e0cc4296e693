"""The book as one PDF: all pages in one, printed by the system's Chromium.

Knows the one-page build and the browser. The outline of the PDF comes from the headings.
"""

import shutil
from pathlib import Path

from calib_utils import book
from calib_utils.book import BookBuildError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_LOADING_S = 300  # of the whole book: all figures and formulas are set before it is printed
# In a page: whether every formula is set.
FORMULAS_SET = """() => document.querySelectorAll('.math.notranslate').length
    <= document.querySelectorAll('mjx-container').length"""
_FOOTER = """<div style="font-size:8px; width:100%; text-align:center">
    <span class="pageNumber"></span></div>"""
_MARGIN = {"top": "15mm", "bottom": "17mm", "left": "14mm", "right": "14mm"}


def write(target: Path, output: Path) -> Path:
    """Builds all pages as one below `output` and prints it to `target`, some minutes in all.

    Raises:
        BookBuildError: what Sphinx complained of, or no browser to print with.
    """
    browser_path()  # before the build, which takes a minute
    return print_page(book.build_single(output), target)


def browser_path() -> str:
    """Where the system's Chromium is.

    Raises:
        BookBuildError: where there is none.
    """
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise BookBuildError(f"no browser to print with, of {_BROWSERS}: install chromium")
    return found


def print_page(page_file: Path, target: Path) -> Path:
    """Prints one page of a built book to a tagged PDF (A4) with an outline, network off.

    Raises:
        BookBuildError: without playwright or Chromium.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BookBuildError("playwright is not installed: pip install -e '.[test]'") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        context = browser.new_context(offline=True, color_scheme="light")
        page = context.new_page()
        page.set_default_timeout(_LOADING_S * 1000)
        page.goto(page_file.resolve().as_uri(), wait_until="load")
        page.wait_for_function(FORMULAS_SET)
        page.pdf(
            path=target,
            format="A4",
            margin=_MARGIN,
            outline=True,
            tagged=True,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=_FOOTER,
        )
        browser.close()
    return target

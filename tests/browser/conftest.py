"""The built book in a real browser with the network off."""

import math
from contextlib import ExitStack

import numpy as np
import pytest

from calib_utils import paths

LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 360)}
# What is behind an explorer, and the shade of every text in it.
COLOURS = """() => { const root = document.querySelector('.cu-explorer');
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const shade = c => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = c;
        paint.fillRect(0, 0, 1, 1); const d = paint.getImageData(0, 0, 1, 1).data;
        return d[3] ? (d[0] + d[1] + d[2]) / 3 : null; };
    let e = root, back = null;
    while (e && back === null) { back = shade(getComputedStyle(e).backgroundColor);
        e = e.parentElement; }
    const scheme = matchMedia('(prefers-color-scheme: dark)').matches ? 0 : 255;
    const texts = root.querySelectorAll('dt, dd, .cu-said, .cu-chart .cu-good');
    return [back ?? scheme, ...[...texts]
        .map(n => shade(getComputedStyle(n)[n instanceof SVGElement ? 'fill' : 'color']))]; }"""
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


@pytest.fixture(scope="session")
def slide():
    """Moves a slider by keyboard: `slide(page, slider, wanted)`."""

    def move(page, slider, wanted):
        """Page keys until the slider has passed `wanted`, arrows until it says it."""

        def said():
            return float(slider.get_attribute("aria-valuetext").split()[-1])

        slider.focus()
        for down, up in (("PageDown", "PageUp"), ("ArrowLeft", "ArrowRight")):
            below = said() < wanted
            for _ in range(200):
                if said() == wanted:
                    return
                if (said() < wanted) != below:
                    break
                page.keyboard.press(up if below else down)
        raise AssertionError(f"the slider never says {wanted}")

    return move


@pytest.fixture(scope="session")
def numbers_of():
    """What a step's numbers should be, by ranking.py and rules.py on all logits."""
    import torch

    from calib_utils.core.ranking import Ranking

    def get(rule, temperature, logits, answers):
        """The five numbers, by ranking.py and rules.py on all logits."""
        tokens = list(answers)
        ranking = Ranking(logits, [len(tokens)])
        kept = int(rule.n_kept(ranking.at(temperature))[0])
        rank = ranking.rank(torch.tensor([tokens]))[0].numpy()
        gap = -np.sort(-logits[0].double().numpy())[:kept] - float(logits.max())
        mass = np.exp(gap / temperature).sum()
        inside = rank < kept
        weight = np.exp(ranking.gap(torch.tensor([tokens]))[0].numpy()[inside] / temperature)
        n = np.array(list(answers.values()), dtype=float)
        q, target = weight / weight.sum(), n[inside] / n.sum()
        return {
            "validity": weight.sum() / mass,
            "diversity": np.exp(-(q * np.log(q / target)).sum()) if inside.any() else math.nan,
            "kept": kept,
            "local_precision": inside.sum() / kept,
            "local_recall": n[inside].sum() / n.sum(),
        }

    return get


@pytest.fixture(scope="session")
def fits_and_can_be_read():
    """Fails where a page is too wide, a text too faint, or a control too small for a finger."""

    def check(page):
        excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(excess) <= 0
        background, *texts = page.evaluate(COLOURS)
        assert len(texts) > 10 and all(abs(text - background) > 100 for text in texts)
        for control in page.locator(".cu-explorer input:not(:disabled), .cu-explorer select").all():
            assert control.bounding_box()["height"] >= 32

    return check

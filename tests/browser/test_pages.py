"""What a reader meets: no network, no console error, nothing missing, nothing too wide."""

from urllib.parse import unquote, urlsplit

import pytest

from calib_utils import paths

HTML = paths.project_root() / "_build" / "_build" / "html"
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 360)}


def _open(browser, look):
    """A page with the network off that notes whatever goes wrong."""
    scheme, width = LOOKS[look]
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page, faults = context.new_page(), []
    page.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: faults.append(f"script: {e}"))
    page.on("requestfailed", lambda r: faults.append(f"missing: {r.url}"))
    page.on(
        "request",
        lambda r: r.url.startswith(("file:", "data:", "blob:")) or faults.append(f"left: {r.url}"),
    )
    return context, page, faults


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_opens_cleanly_offline(browser, pages, look):
    context, page, faults = _open(browser, look)
    wide, blank = [], []
    for path in pages:
        page.goto(path.as_uri(), wait_until="load")
        name = str(path.relative_to(HTML))
        excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        if page.evaluate(excess) > 0:
            wide.append(name)
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        if page.evaluate(broken):
            blank.append(name)
    context.close()
    assert not faults, sorted(set(faults))
    assert not wide, f"scrolls sideways at {LOOKS[look][1]} px: {wide}"
    assert not blank, f"images that do not load: {blank}"


def test_formulas_are_set_without_the_network(browser, pages):
    context, page, _ = _open(browser, "light")
    page.goto((HTML / "intro.html").as_uri())
    page.wait_for_selector("mjx-container mjx-math", timeout=15_000)
    assert page.locator(".math.notranslate").count() == page.locator("mjx-container").count()
    context.close()


def test_tables_follow_the_theme_in_the_dark(browser, pages):
    context, page, _ = _open(browser, "dark")
    page.goto(next(p for p in pages if p.stem == "02_controlled_tasks").as_uri())
    colours = """() => { const t = document.querySelector('table.numbers td');
        const shade = c => c.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
        let e = t, back = 'rgba(0, 0, 0, 0)';
        while (e && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
        if (e) back = getComputedStyle(e).backgroundColor;
        return [shade(getComputedStyle(t).color), shade(back)] }"""
    text, background = page.evaluate(colours)
    assert text > background + 80, f"text {text:.0f} on background {background:.0f}"
    context.close()


def test_links_inside_the_book_resolve(browser, pages):
    context, page, _ = _open(browser, "light")
    dead = []
    for path in pages:
        page.goto(path.as_uri())
        for href in page.evaluate("[...document.links].map(a => a.href)"):
            link = urlsplit(href)
            if link.scheme == "file" and not (HTML / unquote(link.path)).is_file():
                dead.append((path.name, href))
    context.close()
    assert not dead, dead

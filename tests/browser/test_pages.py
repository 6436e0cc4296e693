"""Every page of the book, opened once, seen wide and on a phone, network off; all asked of it."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from calib_utils import paths
from calib_utils.book import build
from calib_utils.models.registry import DEFAULT_MODEL

HTML = paths.project_root() / "_build" / "_build" / "html"
WIDTHS = {"screen": 1280, "phone": 360}
# Prose pages with parts of their own; the others are text and tables.
PROSE = ("intro", "verdicts", "explorer", "errata", "scale_out")
SMALLEST = "smollm2-135m-instruct"
# Whose markup stands for most of the book's: axe-core reads these on a push, nightly every page.
READ_ON_A_PUSH = ("explorer", "02_controlled_tasks", "prose")
PARTS = 4  # of the pages, each a test
GRAVE = ("serious", "critical")
# With `preload` axe-core would read style sheets again, which a page from a file may not.
AXE = {"resultTypes": ["violations"], "preload": False}
CONTRAST = {**AXE, "runOnly": ["color-contrast"]}
BUT_CONTRAST = {**AXE, "rules": {"color-contrast": {"enabled": False}}}
# axe-core needs a second for the contrast of 200 texts, and most texts of a page look alike: one is
# judged of those whose elements, up to the body, have the same tags, classes, styles and grounds.
ONE_OF_EACH_LOOK = """() => { const known = new Map(), seen = new Set();
    const own = e => [e.tagName, e.getAttribute('class'), e.getAttribute('style'),
        getComputedStyle(e).backgroundColor].join('|');
    const look = e => { if (!e) return '';
        if (!known.has(e)) known.set(e, look(e.parentElement) + '>' + own(e));
        return known.get(e); };
    for (const e of document.body.querySelectorAll('*')) {
        const says = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!says || !e.checkVisibility() || seen.has(look(e))) continue;
        seen.add(look(e)); e.dataset.look = ''; }
    return seen.size; }"""
EXCESS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# An image file's name is no description: docutils puts it where no other text is.
IMAGES = """[...document.images].filter(i => !i.complete || !i.naturalWidth
    || !i.alt.trim() || /\\.(png|svg|jpe?g)$/.test(i.alt)).map(i => `${i.alt} (${i.src})`)"""
# A formula that is cut scrolls, but nothing shows that it does.
CUT = """[...document.querySelectorAll('div.math mjx-container')]
    .filter(m => m.scrollWidth > m.clientWidth + 1).map(m => m.closest('div.math').id)"""
# Where scripts that follow the system's colours have been heard.
NEXT_FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# A cell in which words are broken letter by letter: more lines than its words need, at eight
# letters a line.
SQUEEZED = """[...document.querySelectorAll('article :is(th, td)')].filter(cell => {
    const range = document.createRange(); range.selectNodeContents(cell);
    const lines = new Set([...range.getClientRects()].map(r => Math.round(r.bottom))).size;
    const words = cell.innerText.trim().split(/\\s+/);
    return lines > 1 + words.reduce((n, w) => n + Math.ceil(w.length / 8), 0);
}).map(cell => cell.innerText.slice(0, 60))"""
# Text that runs out of its cell, over the next one.
OUTSIDE = """[...document.querySelectorAll('article :is(th, td)')].filter(cell => {
    const range = document.createRange(); range.selectNodeContents(cell);
    return cell.innerText.trim() && range.getBoundingClientRect().right >
        cell.getBoundingClientRect().right + 1;
}).map(cell => cell.innerText.slice(0, 60))"""
# Tables that scroll where the edge behind which they go on has no shadow of its own: covers that
# move with the table lie over shadows that do not, and no cell hides either.
NO_SHADOW = """[...document.querySelectorAll('article table')]
    .filter(t => t.checkVisibility()).map(t => { let e = t; while (e && e.tagName !== 'ARTICLE'
        && e.scrollWidth <= e.clientWidth + 1) e = e.parentElement; return [t, e]; })
    .filter(([t, e]) => e && e.tagName !== 'ARTICLE' &&
        !(/local.*scroll/.test(getComputedStyle(e).backgroundAttachment) &&
        [...t.querySelectorAll('*')].every(c => !/^T/.test(c.tagName) ||
            getComputedStyle(c).backgroundColor === 'rgba(0, 0, 0, 0)')))
    .map(([t]) => t.innerText.slice(0, 60))"""

LOOKED_FOR = {
    "formula cut": CUT,
    "squeezed": SQUEEZED,
    "outside its cell": OUTSIDE,
    "no shadow": NO_SHADOW,
}


@pytest.fixture
def visit(browser, watch):
    """Opens a file and tells what is wrong with it in either view: `visit(path)`.

    With `axe` also what axe-core finds: on a screen, in the light and in the dark, and `"phone"`.
    """
    wide = {"width": WIDTHS["screen"], "height": 800}
    context = browser.new_context(
        viewport=wide, color_scheme="light", offline=True, reduced_motion="reduce"
    )

    def get(path, axe=()):
        page = context.new_page()
        wrong = watch(page)
        page.goto(path.as_uri(), wait_until="load")
        page.wait_for_function(build.FORMULAS_SET)
        wrong += [f"image: {told}" for told in page.evaluate(IMAGES)]
        for view, width in WIDTHS.items():
            page.set_viewport_size(wide | {"width": width})
            page.evaluate(NEXT_FRAME)
            if (excess := page.evaluate(EXCESS)) > 0:
                wrong.append(f"{view} scrolls sideways by {excess} px")
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            for name, script in LOOKED_FOR.items():
                wrong += [f"{view}, {name}: {told}" for told in page.evaluate(script)]
            if view in axe:
                # The theme waits 300 ms after a resize before the keyboard reaches what scrolls.
                page.wait_for_timeout(500)
                wrong += _axe(page, BUT_CONTRAST)
            if view in axe and view == "screen":
                assert page.evaluate(ONE_OF_EACH_LOOK)
                wrong += _axe(page, CONTRAST, "[data-look]")
                page.emulate_media(color_scheme="dark")
                page.evaluate(NEXT_FRAME)
                wrong += [f"in the dark, {told}" for told in _axe(page, CONTRAST, "[data-look]")]
                page.emulate_media(color_scheme="light")
        page.close()
        return sorted(set(wrong))

    yield get
    context.close()


def _axe(page, options, context=None):
    found = Axe().run(page, context, options).response["violations"]
    return [
        f"{v['impact']} {v['id']}: {node['html'][:120]}"
        for v in found
        if v["impact"] in GRAVE
        for node in v["nodes"]
    ]


def kind(path):
    """Pages of one kind are laid out alike: one notebook's of all models, or plain prose."""
    return path.stem if path.stem[:2].isdigit() else path.stem if path.stem in PROSE else "prose"


def test_a_page_of_every_kind_is_whole_accessible_and_offline(visit, pages):
    one_of_each = {kind(path): path for path in sorted(pages, key=lambda p: SMALLEST in p.parts)}
    # The two views have the same elements.
    axe = {name: ("screen",) for name in READ_ON_A_PUSH}
    found = {name: visit(path, axe.get(name, ())) for name, path in one_of_each.items()}
    assert set(axe) <= set(found)
    assert len(found) > len(PROSE)
    assert not {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.full
@pytest.mark.parametrize("part", range(PARTS))
def test_every_page_is_whole_accessible_and_offline(visit, pages, part):
    # On a phone axe-core reads each notebook once: the other models' pages are laid out alike.
    def axe(path):
        once = path.parent.parent.name != "results" or DEFAULT_MODEL in path.parts
        return tuple(WIDTHS) if once else ("screen",)

    found = {str(path.relative_to(HTML)): visit(path, axe(path)) for path in pages[part::PARTS]}
    assert found
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_the_visit_sees_what_is_wrong(visit, tmp_path):
    """Each thing that it looks for, on a page that has it."""
    page = tmp_path / "wrong.html"
    page.write_text(
        """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>wrong</title>
        <meta name="viewport" content="width=device-width">
        <style>p { color: #888; background: #fff }
        @media (prefers-color-scheme: dark) { p { color: #333; background: #000 } }</style></head>
        <body><main><h1>Wrong</h1><p>Grey on white, then on black.</p>
        <div style="width: 2000px">wide</div>
        <article><table style="width: 9px; overflow-wrap: anywhere"><tr><td>narrowness</td></tr>
        </table><table><tr><td style="max-width: 9px">overflowing</td></tr></table>
        <div style="width: 50px; overflow: auto"><table><tr><td>goesonandon</td></tr></table></div>
        </article>
        <img src="none.png" alt="a figure">
        <img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="figure.png">
        <input><script>console.error("said"); fetch("https://example.org/")</script>
        <script>undefined.name</script></main></body></html>""",
        encoding="utf-8",
    )
    told = "\n".join(visit(page, axe=("screen",)))
    for each in (
        *("console: said", "script: ", "left https://example.org/", "missing: file:"),
        *("scrolls sideways", "image: a figure", "image: figure.png", "critical label"),
        *("squeezed: narrowness", "outside its cell: overflowing", "no shadow: goesonandon"),
        *("\nserious color-contrast", "in the dark, serious color-contrast"),
    ):
        assert each in f"\n{told}", each


def test_the_pages_follow_the_theme_of_the_system(opened, pages):
    """Without which nothing would be looked at in the dark."""
    chapter = next(p for p in pages if p.stem == "02_controlled_tasks")
    page = opened(chapter, color_scheme="light")
    shade = """() => [document.querySelector('table.numbers td'), document.body].map(e =>
        getComputedStyle(e)[e === document.body ? 'backgroundColor' : 'color']
        .match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)"""
    text, ground = page.evaluate(shade)
    assert text < ground - 80
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(([text, ground]) => text > ground + 80)(({shade})())")


def test_formulas_are_set_without_the_network(opened):
    page = opened("intro")
    page.wait_for_selector("mjx-container mjx-math")
    page.wait_for_function(build.FORMULAS_SET)
    assert page.locator(".math.notranslate").count() == page.locator("mjx-container").count()

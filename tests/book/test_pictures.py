"""Figures from notebook to page: two drawings in one file, the theme's colours, where they go."""

import base64
import re
from types import SimpleNamespace
from xml.dom import minidom

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from docutils import nodes

from calib_utils import errors, figures, paths
from calib_utils.book import build, pages
from calib_utils.models.registry import HEADLINE

pytestmark = pytest.mark.usefixtures("book_style")


@pytest.fixture
def figure():
    return draw()


def draw():
    drawn, axes = figures.panels(3, 3, 2.0, "validity", "diversity")
    for n, ax in enumerate(axes):
        ax.plot([0, 1], [n, 1], color=figures.VALID, label="a rule")
        ax.bar([0.5], [0.5], color=figures.INVALID, hatch="//")
        ax.set_title(f"panel {n}, with a title that is longer than it is wide")
    figures.legend_below(drawn)
    return figures.source_line(axes[0], "m.gguf <1>", "measured 2026-11-24").figure


@pytest.fixture(scope="module")
def svg():
    """The figure as pages store it."""
    with plt.rc_context():
        figures.use_style()
        stored = figures.as_svg(draw())
    plt.close("all")
    return stored


def drawings(svg):
    """What the wide and the narrow one say."""
    texts = [svg, pages._PARTS.search(svg)["narrow"]]
    roots = [minidom.parseString(text).documentElement for text in texts]
    return [
        [t.firstChild.nodeValue for t in root.getElementsByTagName("text") if t.firstChild]
        for root in roots
    ]


def test_a_figure_is_stored_twice_with_its_source_and_the_same_bytes_again(figure, svg):
    there = plt.get_fignums()
    assert figures.as_svg(figure) == svg
    assert figure.get_size_inches()[0] == 6.8 and plt.get_fignums() == there
    assert pages._PARTS.search(svg)["source"] == "m.gguf &lt;1&gt;; measured 2026-11-24"
    said = drawings(svg)
    assert [texts.count("diversity") for texts in said] == [1, 3]  # each panel has its own labels
    assert [texts.count("a rule") for texts in said] == [1, 1]
    assert "panel 2," in said[1] and "<text" in svg and "2026" not in svg.replace("2026-11-24", "")


def test_the_narrow_drawing_can_be_read_at_a_phones_width(svg):
    narrow = pages._PARTS.search(svg)["narrow"]
    width, box = pages._SIZE.match(narrow).groups()
    assert box.split()[2] == width and float(width) < 290
    smallest = min(map(float, re.findall(r"font(?:-size)?: ([\d.]+)px", narrow)))
    assert smallest * 358 / float(width) >= 11
    places = [
        float(text.getAttribute("y"))
        for text in minidom.parseString(narrow).getElementsByTagName("text")
        if text.firstChild and text.firstChild.nodeValue == "validity"
    ]
    assert np.diff(places).min() > 72  # one panel below the other


def test_dots_that_would_make_a_figure_heavy_are_a_picture():
    drawn, ax = plt.subplots()
    ax.scatter(*np.random.default_rng(0).random((2, 5000)))
    svg = figures.as_svg(drawn)
    assert len(svg) < 400_000 and "data:image/png" in svg


def test_in_a_page_colours_follow_the_theme_and_no_id_is_anothers(svg):
    page = pages.in_page(svg, 'A "rule" falls.', "f0", "cu-wide")
    assert "CDATA" not in page and "<style" not in page and "font-family" not in page
    assert re.search(r'role="img" aria-label="A &quot;rule&quot; falls."', page)
    assert not re.search(r"#[0-9a-f]{6}(?!\))", page)  # but as what a variable falls back to
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    named = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert all(name.startswith("f0-") for name in ids)
    assert {a or b for a, b in named} <= ids


COLOURS = [*figures.RULE_COLOURS.values(), *figures._OWN]


def test_rules_of_ones_own_have_colours_of_their_own():
    """Six of them before one comes again; none is the colour of a rule, a cause or a mark."""
    names = [f"mine {k}" for k in range(6)]
    colours = [figures.rule_style(name)["color"] for name in names]
    assert colours == [figures.rule_style(name)["color"] for name in names]
    causes = {colour for colour, _ in figures.CAUSES.values()}
    taken = {*figures.RULE_COLOURS.values(), *causes, figures.INK, figures.VALID, figures.INVALID}
    assert len(set(colours)) == 6 and not taken & set(colours)
    assert figures.rule_style("mine 0")["label"] == "mine 0"


@pytest.mark.parametrize("colour", [*COLOURS, *figures.shades(6)])
def test_in_the_dark_a_colour_stands_out(colour):
    dark = pages.in_the_dark(colour[1:])
    parts = [int(dark[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    assert (luminance + 0.05) / 0.056 > 4.4


def doctree(uri, caption):
    image = nodes.image(uri=uri)
    return nodes.container(
        "", nodes.figure("", image, *[nodes.caption("", caption)] * bool(caption))
    )


def test_an_svg_stands_in_the_page_and_its_source_below_the_caption(figure, svg, tmp_path):
    (tmp_path / "a.svg").write_text(svg, encoding="utf-8")
    (tmp_path / "other.svg").write_text("<svg/>")
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), srcdir=tmp_path)
    document = doctree("a.svg", "Val against Div.")
    pages._put_in_page(app, document, "page")
    assert not list(document.findall(nodes.image))
    drawn, source = (raw.astext() for raw in document.findall(nodes.raw))
    assert drawn.count('aria-label="Figure: Val against Div."') == 2
    assert "cu-wide" in drawn and "cu-narrow" in drawn
    assert source == '<span class="cu-source">m.gguf &lt;1&gt;; measured 2026-11-24</span>'
    figure.says = "Val < Div."
    (tmp_path / "a.svg").write_text(figures.as_svg(figure), encoding="utf-8")
    card = nodes.container("", nodes.image(uri="a.svg", alt="A card.", classes=["sd-card-img-top"]))
    pages._put_in_page(app, card, "page")
    (drawn,) = (raw.astext() for raw in card.findall(nodes.raw))
    assert 'aria-label="Val &lt; Div."' in drawn and drawn.count("<svg") == 1  # the narrow one
    assert "cu-figure sd-card-img-top" in drawn
    for uri in ("other.svg", "a.png"):
        document = doctree(uri, "Val against Div.")
        pages._put_in_page(app, document, "page")
        (image,) = document.findall(nodes.image)
        assert image["alt"] == "Figure: Val against Div."


def test_prose_pages_show_the_figures_of_executed_notebooks(write_page, tmp_path):
    png = base64.b64encode(b"png").decode()
    output = nbformat.v4.new_output(
        "display_data", data={"image/png": png, "image/svg+xml": "<svg/>"}
    )
    metadata = {"mystnb": {"figure": {"name": "fig-a"}}}
    cell = nbformat.v4.new_code_cell("", metadata=metadata, outputs=[output])
    write_page(paths.executed_dir(HEADLINE, tmp_path) / "02_x.ipynb", cell)
    (tmp_path / "page.md").write_text("```{figure} figures/fig-a.svg\n```\n")
    (written,) = build.write_figures(tmp_path)
    assert written == tmp_path / "figures" / "fig-a.svg" and written.read_bytes() == b"<svg/>"
    assert build.figure("fig-a", tmp_path, "png") == b"png"
    (tmp_path / "page.md").write_text("![](figures/fig-gone.svg)")
    with pytest.raises(errors.BookBuildError, match=r"fig-gone.*correct the name"):
        build.write_figures(tmp_path)


def test_the_figure_of_the_readme_is_that_of_the_book():
    content = build.figure("fig-val-div", kind="png")
    assert (paths.book_dir() / "assets" / "val-div.png").read_bytes() == content


@pytest.mark.models
def test_the_page_that_shows_how_prints_and_draws_what_it_shows(tmp_path, monkeypatch, capsys):
    """To renew both: the text by hand, and the figure by copying `drawn.svg`."""
    page, names = (paths.book_dir() / "bring_a_sampler.md").read_text(encoding="utf-8"), {}
    monkeypatch.chdir(tmp_path)
    *blocks, compared, last = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "cu.split" in compared
    # The page prints no number of the others, so a small task is enough to see that they run.
    small = [re.sub(r'"(us-states|rng-2)"', '"planet"', block) for block in (*blocks, last)]
    for block in (*small[:-1], compared, small[-1]):
        exec(compile(block, "bring_a_sampler.md", "exec"), names)
    (tmp_path / "drawn.svg").write_text(figures.as_svg(names["figure"]), encoding="utf-8")
    told = capsys.readouterr().out
    assert "two_nats" in told and "llama.cpp" in told
    (shown,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    head, *rows = (line.split() for line in shown.splitlines())
    printed = [line.split() for line in told.splitlines()]
    at = printed.index(head) + 1
    for row, again in zip(rows, printed[at : at + len(rows)], strict=True):
        assert row[:3] == again[:3]
        assert np.allclose(np.array(row[3:], float), np.array(again[3:], float), atol=0.011)
    # The same words in the figure that the book has.
    committed = paths.book_dir() / "assets" / "bring-a-sampler.svg"
    drawn, kept = (
        re.findall(r"<text[^>]*>([^<]+)<", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "drawn.svg", committed)
    )
    assert drawn == kept and "surprise=0, T=1.4" in kept

"""Figures of the book: out of executed notebooks for prose pages, and into pages as SVG.

A stored SVG holds a drawing for wide pages, one for phones, what it says in words, and where its
numbers come from (`figures.as_svg`). Here its colours follow the theme. Draws nothing; PNGs are
left as they are.
"""

import base64
import colorsys
import html
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from docutils import nodes

from calib_utils import files, paths
from calib_utils.book import notebooks
from calib_utils.errors import BookBuildError
from calib_utils.figures import luminance
from calib_utils.models.registry import HEADLINE

FOLDER = "figures"
_SHOWN = re.compile(rf"\b{FOLDER}/([\w-]+)\.svg\b")
_MIME = {"svg": "image/svg+xml", "png": "image/png"}
_PARTS = re.compile(
    r"<metadata><!\[CDATA\[(?P<narrow>.*?)\]\]></metadata>"
    r"(?:<title>(?P<said>.*?)</title>)?<desc>(?P<source>.*?)</desc>",
    re.DOTALL,
)
_NOT_DRAWN = re.compile(r"<(style|metadata|title|desc)\b.*?</\1>", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt"[^>]*?viewBox="([^"]+)"[^>]*>')
_COLOUR = re.compile(r"(?<=: )#([0-9a-f]{6})\b")
_VARIABLE = re.compile(r"--fig-([0-9a-f]{6})")
_DARK_GROUND, _CONTRAST = 0.006, 4.5  # relative luminance of a dark page; of a colour to it


def setup(app) -> dict:
    """Registers the steps; Sphinx calls it with the application."""
    app.connect("doctree-resolved", _put_in_page)
    app.connect("html-page-context", _colour_page)
    app.add_css_file("figures.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# Out of notebooks


def figure(name: str, book: Path | None = None, kind: str = "svg") -> bytes:
    """A figure by its label, as the headline model's notebooks or the panel's have it.

    Args:
        name: as in the notebook's source, without the model.
        kind: of file, svg or png.

    Raises:
        BookBuildError: no executed notebook has it.
    """
    labels = (name, notebooks.label_of(name, HEADLINE))
    for cell in _cells_of(book):
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") not in labels:
            continue
        for output in cell.outputs:
            if content := output.get("data", {}).get(_MIME[kind]):
                return content.encode() if kind == "svg" else base64.b64decode(content)
    raise BookBuildError(
        f"no executed notebook of {HEADLINE} has the figure {name!r}: correct the name in "
        f"the page, or run `python -m calib_utils run --model {HEADLINE}`"
    )


def _cells_of(book: Path | None) -> Iterator:
    """Cells of the headline model's notebooks, then of those about all models."""
    for folder in (paths.executed_dir(HEADLINE, book), paths.panel_dir(book)):
        for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            yield from nbformat.read(path, as_version=4).cells


def write_figures(book: Path | None = None) -> list[Path]:
    """Writes `book/figures/<name>.svg` for each that a prose page names."""
    book = Path(book or paths.book_dir())
    texts = [page.read_text("utf-8") for page in (*book.glob("*.md"), *book.glob("reference/*.md"))]
    names = sorted({name for text in texts for name in _SHOWN.findall(text)})
    return [files.keep(book / FOLDER / f"{name}.svg", figure(name, book)) for name in names]


def write_readme_figure() -> Path:
    """Takes the README's figure out of the headline model's executed notebook."""
    target = paths.book_dir() / "assets" / "val-div.png"
    content = figure("fig-val-div", kind="png")
    try:
        return files.keep(target, content)
    except OSError as error:
        raise BookBuildError(f"cannot write {target} ({error}): make it writable") from error


# Into pages


def _put_in_page(app, doctree: nodes.document, docname: str) -> None:
    """Figures get an alternative text, by default their caption; ours stand in the page as SVG."""
    for number, image in enumerate(list(doctree.findall(nodes.image))):
        within = image.parent if isinstance(image.parent, nodes.figure) else image
        caption = next(iter(within.findall(nodes.caption)), None)
        if caption is not None and not image.get("alt"):
            # Formulas as they are written.
            image["alt"] = f"Figure: {caption.astext()}"
        if app.builder.format != "html" or not image["uri"].endswith(".svg"):
            continue
        text = Path(app.srcdir, image["uri"]).read_text(encoding="utf-8")
        if (parts := _PARTS.search(text)) is None:
            continue  # of somebody else
        alt, own = html.unescape(parts["said"] or "") or image.get("alt", ""), f"f{number}"
        if classes := image["classes"]:  # a card's picture, as narrow as a phone's
            inside = in_page(parts["narrow"], alt, own, " ".join(classes))
        else:
            inside = in_page(text, alt, own, "cu-wide")
            inside += in_page(parts["narrow"], alt, f"{own}n", "cu-narrow")
        if parts["source"] and caption is not None:
            source = f'<span class="cu-source">{parts["source"]}</span>'
            caption.append(nodes.raw("", source, format="html"))
        image.replace_self(nodes.raw("", inside, format="html"))


def in_page(svg: str, alt: str, own: str, kind: str) -> str:
    """An SVG as it stands in a page, in the theme's colours and font.

    Args:
        own: what its ids begin with, no other figure's on the page.
        kind: its classes beside `cu-figure`.
    """
    svg = _NOT_DRAWN.sub("", svg[svg.index("<svg") :])
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{own}-", svg)
    svg = re.sub(r'font-family: [^;"]*(; )?', "", svg)
    svg = re.sub(r'\b(fill|stroke)="(#[0-9a-f]{6})"', r'style="\1: \2"', svg)
    svg = _COLOUR.sub(r"var(--fig-\1, #\1)", svg)
    width, box = _SIZE.match(svg).groups()
    tag = (
        f'<svg class="cu-figure {kind}" role="img" aria-label="{html.escape(alt)}" '
        f'viewBox="{box}" style="max-width: {float(width) / 12:.1f}rem">'
    )
    return _SIZE.sub(lambda _: tag, svg, count=1)


def _colour_page(app, pagename, templatename, context, doctree) -> None:
    """What the colours of a page's figures are in the dark."""
    if colours := sorted(set(_VARIABLE.findall(context.get("body") or ""))):
        dark = " ".join(f"--fig-{colour}: {in_the_dark(colour)};" for colour in colours)
        style = f'<style>@media screen {{ html[data-theme="dark"] {{ {dark} }} }}</style>'
        context["metatags"] = context.get("metatags", "") + style


def in_the_dark(colour: str) -> str:
    """The colour of six hex digits on a dark page, as CSS: greys change sides, hues get lighter.

    >>> in_the_dark("e69f00"), in_the_dark("0072b2"), in_the_dark("000000")
    ('#e69f00', '#0082cc', 'var(--pst-color-text-base)')
    """
    hue, light, vivid = colorsys.rgb_to_hls(*(int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)))
    if vivid < 0.05:
        if light < 0.2:
            return "var(--pst-color-text-base)"
        if light > 0.99:
            return "var(--pst-color-background)"
        light = 1 - 0.85 * light
    else:
        while light < 1 and (
            luminance(colorsys.hls_to_rgb(hue, light, vivid)) + 0.05
            < _CONTRAST * (_DARK_GROUND + 0.05)
        ):
            light += 0.01
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, vivid))
    return f"#{red:02x}{green:02x}{blue:02x}"

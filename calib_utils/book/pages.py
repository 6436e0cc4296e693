"""The Sphinx extension that `_config.yml` names: what a built page has beside what its file says.

Addresses, folded code, the box of a page, numbers by model, the way on; what prose pages take from
the executed notebooks; figures as SVG in the theme's colours. Changes no file and draws nothing.

A stored SVG holds a drawing for wide pages, one for phones, what it says in words, and where its
numbers come from (`figures.as_svg`).
"""

import colorsys
import json
import re
from collections import Counter
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from string import Template

from docutils import nodes
from sphinx.errors import ConfigError

from calib_utils.book import contents, notebooks, verdicts
from calib_utils.figures import luminance
from calib_utils.models.registry import HEADLINE, human_name
from calib_utils.studies.reporting import CLAIM, KINDS

_REPOSITORY = re.compile(r"https://(github|gitlab)\.com/([^/]+)/([^/]+?)(?:\.git)?/?")
_EXECUTED = re.compile(r"/book/(?:panel|results/[^/]+)/([^/]+)\.ipynb$")
_IMPORT = re.compile(r"(?m)^(?:import|from) ")
_OWN = "The page appears under this chapter, its rows in `data/results`."
_ALL = "All chapters run for it, and then this page, which is about every model with rows."
_EXECUTED_IN = ("results/", "panel/")
_PAGE = re.compile(rf'href="{verdicts.PAGE}([^"#]+)(#[^"]*|)"')
# docutils names the entries of a list by a role that ARIA 1.2 withdrew; a list needs list items.
_WITHDRAWN, _ITEM = 'role="doc-biblioentry"', 'role="listitem"'


def setup(app) -> dict:
    """Registers the steps; Sphinx calls it with the application."""
    # Before sphinx-notfound-page looks at its prefix.
    app.connect("config-inited", _addresses, priority=100)
    app.connect("source-read", _prepare_notebook)
    app.connect("source-read", _fill)
    app.connect("env-check-consistency", _number_by_model)
    app.connect("doctree-resolved", _put_in_page)
    app.connect("html-page-context", _colour_page)
    app.add_css_file("figures.css")
    # After the theme has added its buttons.
    app.connect("html-page-context", _mend_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def site_url(repository: str, given: str = "") -> str:
    """Where the pages of a repository are published, with a slash at its end.

    Args:
        repository: its address on GitHub or GitLab.
        given: the address, where the pages have one of their own (`html: baseurl:`).

    Raises:
        ConfigError: for another host, where the address cannot be derived.

    >>> site_url("https://github.com/owner/name")
    'https://owner.github.io/name/'
    """
    if given:
        return given.rstrip("/") + "/"
    parts = _REPOSITORY.fullmatch(repository)
    if parts is None:
        raise ConfigError(
            f"where are the pages of {repository!r} published? Name it in _config.yml as "
            "html: baseurl:"
        )
    host, owner, name = parts.groups()
    return f"https://{owner}.{host}.io/{name}/"


def _addresses(app, config) -> None:
    """The site's address for the card of a link, the canonical link and the page of a wrong one."""
    site = site_url(config.html_theme_options["repository_url"], config.html_baseurl)
    config.html_baseurl = config.ogp_site_url = site
    config.ogp_site_name = config.html_title
    config.notfound_urls_prefix = "/" + site.split("/", 3)[3]


def run_box(docname: str, repository: str, template: str) -> str | None:
    """The box of a page in MyST, or None for a page that is no executed notebook.

    Args:
        docname: of the page, as `results/<model>/<notebook>` or `panel/<notebook>`.
    """
    if not docname.startswith(_EXECUTED_IN):
        return None
    own = contents.model_of(docname) is not None
    return Template(template).substitute(
        repository=repository,
        folder=repository.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"),
        choice=f" --notebook {docname.rsplit('/', 1)[-1]}" if own else "",
        outcome=_OWN if own else _ALL,
    )


def _prepare_notebook(app, docname: str, content: list[str]) -> None:
    """What a built page has and the file itself, which readers download, has not.

    Its code is folded, its heading tells it from other models' pages, and its box is at its end.
    """
    template = Path(app.srcdir, "templates", "run_box.md").read_text(encoding="utf-8")
    box = run_box(docname, app.config.html_theme_options["repository_url"], template)
    if box is None:
        return
    notebook = json.loads(content[0])
    cells = notebook["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["metadata"]["tags"] = _folded(cell)
        else:
            cell["source"] = notebooks.as_roles("".join(cell["source"]))
    if (model := contents.model_of(docname)) not in (None, HEADLINE):
        heading, *rest = "".join(cells[0]["source"]).split("\n")
        cells[0]["source"] = "\n".join([f"{heading} ({human_name(model)})", *rest])
    cells.append({"cell_type": "markdown", "id": "run-this-page", "metadata": {}, "source": box})
    steps = (n for n, cell in enumerate(cells) if "cu-explorer" in str(cell.get("outputs")))
    if (place := next(steps, None)) is not None:  # a page has room for one
        source = f"Whole answers under the same cutoffs:\n\n{whole_answers(model)}"
        own = {"cell_type": "markdown", "id": "whole-answers", "metadata": {}, "source": source}
        cells.insert(place + 1, own)
    content[0] = json.dumps(notebook)


def whole_answers(model: str) -> str:
    """The part of the explorer about whole answers, this model's first, in MyST."""
    return f"""```{{raw}} html
<div class="cu-page" data-part="answer" data-model="{escape(model)}">
<noscript><p><strong>The sliders need JavaScript.</strong></p></noscript>
<p>Where this text stays, the sliders did not start; the page of the explorer has them too.</p>
</div>
```"""


def _folded(cell: dict) -> list[str]:
    """The tags of a code cell on a page: its code is behind a line to click.

    That line is left out where nobody looks for it: parameters, imports, cells that show nothing.
    """
    tags = cell["metadata"].get("tags", [])
    if {"remove-cell", "remove-input"} & set(tags):
        return tags
    kinds = [kind for output in cell["outputs"] for kind in output.get("data", ["text"])]
    shows = any(not kind.startswith("application/papermill") for kind in kinds)
    set_up = {"parameters", "injected-parameters"} & set(tags)
    set_up = set_up or _IMPORT.search("".join(cell["source"]))
    return [*dict.fromkeys([*tags, "hide-input", *(["quiet-code"] if set_up or not shows else [])])]


# What prose pages leave to the executed notebooks

# `$headline`: the folder of the model that the prose quotes; `thm-x-$headline`: a label there.
_LABELS = re.compile(r"([\w-]+)-\$headline")
_CHAPTER = re.compile(r"results/\$headline/(\d\d_\w+)")
_FILLED = {
    "headline": lambda: HEADLINE,
    "headline_name": lambda: human_name(HEADLINE),
    "models": contents.described_models,
    "tally": verdicts.tally,
    "explorer": lambda: whole_answers(HEADLINE),
    "glance": verdicts.at_a_glance,
    "legend": lambda: verdicts.legend([CLAIM]),
    "legend_others": lambda: verdicts.legend([kind for kind in KINDS if kind != CLAIM]),
    "claims": lambda: verdicts.in_words(measured=True),
    "others": lambda: verdicts.in_words(measured=False),
    "history": verdicts.history,
}
_TO_FILL = re.compile(rf"\$({'|'.join(_FILLED)})\b")


def _fill(app, docname: str, content: list[str]) -> None:
    if docname.startswith(_EXECUTED_IN):
        return
    text = _LABELS.sub(lambda found: notebooks.label_of(found[1], HEADLINE), content[0])
    first = {name: pages[0] for name, pages in contents.chapters().items()}
    # Of the headline model where it has the chapter, else of the next that has.
    text = _CHAPTER.sub(lambda found: first.get(found[1], found[0]), text)
    content[0] = _TO_FILL.sub(lambda found: _FILLED[found[1]](), text)


def _number_by_model(app, env) -> None:
    """Figures and formulas are numbered through the chapters of one model, as they are read.

    Sphinx counts in the order of the contents, where the other models' pages come between.
    """
    given, env.toc_fignumbers = env.toc_fignumbers, {}
    for model in (None, *contents.models_with_pages()):
        last: Counter = Counter()
        for page in contents.reading_order(model):
            numbers = {
                kind: {name: (last[kind] + i,) for i, name in enumerate(own, start=1)}
                for kind, own in given.get(page, {}).items()
            }
            last.update({kind: len(own) for kind, own in numbers.items()})
            env.toc_fignumbers.setdefault(page, numbers)


def _mend_page(app, pagename, templatename, context, doctree) -> None:
    """Roles that screen readers know, links to pages, the way on, and an edit button that leads to
    what people edit."""

    def address(page: str, place: str = "") -> str:
        found = app.builder.get_relative_uri(pagename, page)
        return found if "#" in found else found + place  # all pages in one have one place a page

    if body := context.get("body"):
        body = body.replace(_WITHDRAWN, _ITEM)
        body = _PAGE.sub(lambda found: f'href="{address(found[1], found[2])}"', body)
        context["body"] = body.replace("</h1>", f"</h1>{_bar(pagename, address)}", 1)
    if pages := context.get("generate_toctree_html"):
        context["generate_toctree_html"] = lambda **options: _named(pages(**options))
    order = contents.reading_order()
    if pagename not in order:
        order = contents.reading_order(contents.model_of(pagename))
    if pagename in order:
        here = order.index(pagename)
        for name, near in (("prev", order[:here][-1:]), ("next", order[here + 1 :][:1])):
            context[name] = None
            for page in near:
                title = escape(app.env.titles[page].astext())
                context[name] = {"link": address(page), "title": title}
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("label") == "source-edit-button":
                button["url"] = _EXECUTED.sub(r"/notebooks/\1.py", button["url"])


def _named(pages):
    """The list of pages, whose chevrons the theme leaves without a name."""
    for summary in pages.select("li > details > summary"):
        link = summary.find_parent("li").find("a")
        summary["aria-label"] = f"Pages below {link.get_text(strip=True)}"
    return pages


def _bar(pagename: str, address: Callable) -> str:
    """The same chapter of every other model, in a line below the heading of an executed notebook.

    The book's script adds the section that is read to its links, and a button that opens all code.
    """
    notebook = pagename.rpartition("/")[2]
    same = contents.chapters().get(notebook, [])
    if pagename not in same:
        return ""
    links = [
        f'<a href="{address(page)}"{" aria-current=page" * (page == pagename)}>'
        f"{escape(human_name(model))}</a>"
        for page in same
        if (model := contents.model_of(page))
    ]
    links += [
        f'<s title="{escape(why, quote=True)}">{escape(human_name(model))} (failed)</s>'
        for model, why in (contents.failures(notebook) if links else {}).items()
    ]
    shown = f'<span>Model</span><div class="cu-models">{"".join(links)}</div>' if links else ""
    return f'<nav class="cu-top" aria-label="This chapter of other models">{shown}</nav>'


# Figures

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
        alt, own = unescape(parts["said"] or "") or image.get("alt", ""), f"f{number}"
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
        f'<svg class="cu-figure {kind}" role="img" aria-label="{escape(alt)}" '
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

"""Figures for the prose pages and the README, taken out of the executed notebooks.

Knows which pages show which figures by reading them, and where executed notebooks are. Draws and
executes nothing.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from string import Template

import nbformat
from docutils import nodes
from sphinx.errors import ConfigError

from calib_utils import files, paths
from calib_utils.errors import BookBuildError, CalibUtilsError
from calib_utils.figures import explorer
from calib_utils.models.registry import DEFAULT_MODEL, EMBEDDED

FOLDER = "figures"
_SHOWN = re.compile(rf"\b{FOLDER}/([\w-]+)\.png\b")


class PageFigureError(CalibUtilsError, LookupError):
    """A prose page shows a figure that no executed notebook has."""


def figure(name: str, book: Path | None = None) -> bytes:
    """The PNG of a figure by its label, as the default model's notebooks or the panel's have it.

    Args:
        name: as in the notebook's source, without the model.

    Raises:
        PageFigureError: no executed notebook has it.
    """
    of_model = name + "-" + re.sub(r"[^\w-]+", "-", DEFAULT_MODEL)
    for folder in (paths.executed_dir(DEFAULT_MODEL, book), paths.panel_dir(book)):
        for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            for cell in nbformat.read(path, as_version=4).cells:
                label = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
                if label not in (name, of_model):
                    continue
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        return base64.b64decode(output.data["image/png"])
    raise PageFigureError(
        f"no executed notebook of {DEFAULT_MODEL} has the figure {name!r}: correct the name in "
        f"the page, or run `python -m calib_utils run --model {DEFAULT_MODEL}`"
    )


def write_figures(book: Path | None = None) -> list[Path]:
    """Writes `book/figures/<name>.png` for every such file that a prose page shows."""
    book = Path(book or paths.book_dir())
    pages = sorted([*book.glob("*.md"), *book.glob("reference/*.md")])
    texts = (page.read_text(encoding="utf-8") for page in pages)
    names = sorted({name for text in texts for name in _SHOWN.findall(text)})
    return [files.keep(book / FOLDER / f"{name}.png", figure(name, book)) for name in names]


def write_readme_figure() -> Path:
    """Takes the README's figure out of the default model's executed notebook."""
    target = paths.book_dir() / "assets" / "val-div.png"
    try:
        return files.keep(target, figure("fig-val-div"))
    except OSError as error:
        raise BookBuildError(f"cannot write {target} ({error}): make it writable") from error


# A Sphinx extension: what every built page gets that its notebook does not have.
#
# Addresses from the one repository setting of `_config.yml`, the box with the command that runs a
# page, and texts for those who cannot see a figure. Knows Sphinx; changes no source file.

_BOX = "run_box.md"
_REPOSITORY = re.compile(r"https://(github|gitlab)\.com/([^/]+)/([^/]+?)(?:\.git)?/?")
_EXECUTED = re.compile(r"/book/(?:panel|results/[^/]+)/([^/]+)\.ipynb$")
_OWN = "The page appears in a part of that model's own, its rows in `data/results`."
_ALL = "All chapters run for it, and then this page, which is about every model with rows."
# docutils names the entries of a list by a role that ARIA 1.2 withdrew; a list needs list items.
_WITHDRAWN, _ITEM = 'role="doc-biblioentry"', 'role="listitem"'


def setup(app) -> dict:
    """Registers the steps; Sphinx calls it with the application."""
    # Before sphinx-notfound-page looks at its prefix.
    app.connect("config-inited", _addresses, priority=100)
    app.connect("source-read", _add_run_box)
    app.connect("doctree-resolved", _describe_figures)
    app.connect("html-page-context", _name_list_items)
    # After the theme has added its buttons.
    app.connect("html-page-context", _point_to_the_source, priority=900)
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
    part, _, rest = docname.partition("/")
    if part not in ("results", "panel") or not rest:
        return None
    own = part == "results"
    return Template(template).substitute(
        repository=repository,
        folder=repository.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"),
        choice=f" --notebook {docname.rsplit('/', 1)[-1]}" if own else "",
        outcome=_OWN if own else _ALL,
    )


def _add_run_box(app, docname: str, content: list[str]) -> None:
    """Puts the box below the page's opening; the file itself, which readers download, has none."""
    template = Path(app.srcdir, "templates", _BOX).read_text(encoding="utf-8")
    box = run_box(docname, app.config.html_theme_options["repository_url"], template)
    if box is None:
        return
    notebook = json.loads(content[0])
    cell = {"cell_type": "markdown", "metadata": {}, "source": box}
    if notebook["nbformat_minor"] >= 5:
        cell["id"] = "run-this-page"
    notebook["cells"].insert(1, cell)
    content[0] = json.dumps(notebook)


def _describe_figures(app, doctree: nodes.document, docname: str) -> None:
    """A figure without an alternative text gets its caption's, its formulas as they are written."""
    for figure in doctree.findall(nodes.figure):
        captions = [child for child in figure.children if isinstance(child, nodes.caption)]
        for image in figure.findall(nodes.image) if captions else ():
            if not image.get("alt"):
                image["alt"] = f"Figure: {captions[0].astext()}"


def _name_list_items(app, pagename, templatename, context, doctree) -> None:
    if body := context.get("body"):
        context["body"] = body.replace(_WITHDRAWN, _ITEM)


def _point_to_the_source(app, pagename, templatename, context, doctree) -> None:
    """The edit button of an executed notebook leads to what people edit, not to the copy."""
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("label") == "source-edit-button":
                button["url"] = _EXECUTED.sub(r"/notebooks/\1.py", button["url"])


# The book: its table of contents from the executed notebooks at hand, and its build.
#
# Knows the folder of executed notebooks and jupyter-book. Executes nothing.

_PLAIN = re.compile(r"(?i)(?!(?:null|true|false|yes|no|on|off)$)[a-z][\w.@-]+")
_CHAPTERS_END = [
    "reference/glossary",
    "reference/faults",
    "reference/benchmarks",
    "reference/mutation",
    "reference/licences",
    "reference/bibliography",
    "reference/cite",
]


def models_with_pages(book: Path | None = None) -> list[str]:
    """Keys of the models that have executed notebooks; the default first, then the embedded."""
    folders = (Path(book or paths.book_dir()) / "results").glob("*/[0-9][0-9]_*.ipynb")
    order = [DEFAULT_MODEL, *EMBEDDED]
    keys = {path.parent.name for path in folders}
    return sorted(keys, key=lambda key: (order.index(key) if key in order else len(order), key))


def table_of_contents(book: Path | None = None) -> str:
    """The text of `_toc.yml`: prose, chapters about all models, a part per model.

    Args:
        book: the folder with `results/`; by default this checkout's.
    """
    lines = [
        "# Written by `python -m calib_utils toc` from the executed notebooks; do not edit.",
        "format: jb-book",
        "root: intro",
        "parts:",
        "- caption: Start",
        "  chapters:",
        "  - file: summary",
        "  - file: how_to_read",
        "  - file: explorer",
        "  - file: bring_a_sampler",
        "  - file: add_your_model",
        "  - file: scale_out",
        "  - file: status",
        "  - file: errata",
    ]
    panel = sorted(path.stem for path in paths.panel_dir(book).glob("[0-9][0-9]_*.ipynb"))
    if panel:
        lines += ["- caption: All models", "  chapters:"]
        lines += [f"  - file: panel/{name}" for name in panel]
    for key in models_with_pages(book):
        # A folder may be called 007 or null, which YAML would not read as text.
        caption = key if _PLAIN.fullmatch(key) else json.dumps(key)
        lines += [f"- caption: {caption}", "  chapters:"]
        pages = paths.executed_dir(key, book).glob("[0-9][0-9]_*.ipynb")
        names = sorted(path.stem for path in pages)
        entries = (f"results/{key}/{name}" for name in names)
        lines += [f"  - file: {at if caption == key else json.dumps(at)}" for at in entries]
    lines += ["- caption: Reference", "  chapters:"]
    lines += [f"  - file: {page}" for page in _CHAPTERS_END]
    return "\n".join(lines) + "\n"


def write_table_of_contents(book: Path | None = None) -> Path:
    """Writes the book's `_toc.yml` where it differs, as a whole: two runs may end together."""
    target = Path(book or paths.book_dir()) / "_toc.yml"
    try:
        return files.keep(target, table_of_contents(book).encode())
    except OSError as error:
        raise BookBuildError(f"cannot write {target} ({error}): make it writable") from error


def build(output: Path | None = None, results_dir: Path | None = None) -> Path:
    """Builds the pages with warnings as errors and returns the first one.

    The book that is there stays until the new one is whole; a second build waits for the first.

    Args:
        results_dir: what the explorer page shows; by default the committed results.

    Raises:
        BookBuildError: with the lines that Sphinx complained in.
        PageFigureError: a prose page shows a figure that no executed notebook has.
    """
    output = Path(output or paths.project_root() / "_build")
    target = output / "_build"
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_figures()
        with files.alone(output, "build of this book") as held:
            for left in output.glob("._build-*") if held else ():  # of killed builds
                shutil.rmtree(left, ignore_errors=True)
            # Never into the old one: an incremental build misses changed styles, removed pages.
            draft = output / f"._build-{uuid.uuid4().hex}"
            try:
                _build(draft, Path(results_dir or paths.default_results_dir()))
                if target.exists():
                    os.replace(target, draft / "old")
                os.replace(draft / "_build", target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise BookBuildError(
            f"cannot write the book to {output} ({error}): choose a writable --output with space"
        ) from error
    return target / "html" / "index.html"


def _build(output: Path, results_dir: Path) -> None:
    first = _jupyter_book(output, "html", "index.html")
    pages = first.parent / "_static" / explorer.PAGE_FOLDER
    for row in explorer.write(results_dir, pages).itertuples():
        print(f"explorer page, left out: {row.folder}: {row.why}", file=sys.stderr)


def build_single(output: Path) -> Path:
    """Builds all pages as one below `output`, to be printed, and returns it.

    Raises:
        BookBuildError, PageFigureError: as `build`.
    """
    write_figures()
    return _jupyter_book(output, "singlehtml", "intro.html")


def _jupyter_book(output: Path, builder: str, page: str) -> Path:
    """Builds and returns one page."""
    tool = Path(sys.executable).with_name("jupyter-book")
    command = [str(tool), "build", str(paths.book_dir()), "-W", "-n", "--keep-going"]
    command += ["--path-output", str(output), "--builder", builder]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONIOENCODING": "utf-8"}
    options = {"encoding": "utf-8", "errors": "replace", "env": environment}
    done = subprocess.run(command, capture_output=True, **options)
    first = output / "_build" / builder / page
    if done.returncode or not first.is_file():
        lines = (done.stdout + done.stderr).splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-20:]
        raise BookBuildError("the book does not build cleanly:\n" + "\n".join(told))
    return first


# The book as one PDF: all pages in one, printed by the system's Chromium.
#
# Knows the one-page build and the browser. The outline of the PDF comes from the headings.

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_LOADING_S = 300  # of the whole book: all figures and formulas are set before it is printed
# In a page: whether every formula is set.
FORMULAS_SET = """() => document.querySelectorAll('.math.notranslate').length
    <= document.querySelectorAll('mjx-container').length"""
_FOOTER = """<div style="font-size:8px; width:100%; text-align:center">
    <span class="pageNumber"></span></div>"""
_MARGIN = {"top": "15mm", "bottom": "17mm", "left": "14mm", "right": "14mm"}


def write_pdf(target: Path, output: Path) -> Path:
    """Builds all pages as one below `output` and prints it to `target`, some minutes in all.

    Raises:
        BookBuildError: what Sphinx complained of, or no browser to print with.
    """
    browser_path()  # before the build, which takes a minute
    return print_page(build_single(output), target)


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

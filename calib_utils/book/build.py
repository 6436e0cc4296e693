"""The book: pages, a PDF, and a chapter computed here and now.

Also the Sphinx extension that `_config.yml` names. Knows executed notebooks, jupyter-book and the
browser that prints; draws nothing and changes no executed notebook.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from html import escape
from pathlib import Path
from string import Template

import nbformat
import pandas as pd
from sphinx.errors import ConfigError

from calib_utils import files, paths
from calib_utils.book import contents, notebooks, pictures, verdicts
from calib_utils.errors import (
    BookBuildError,
    CalibUtilsError,
    NotReproducedError,
    UnknownNameError,
)
from calib_utils.figures import explorer
from calib_utils.models.loading import load_model
from calib_utils.models.registry import EMBEDDED, HEADLINE, human_name
from calib_utils.openended import precision_recall
from calib_utils.results import storage
from calib_utils.results.storage import KEY
from calib_utils.studies.reporting import CLAIM, KINDS

# One chapter, computed on this machine

LIVE, LIVE_TASK = "00_quickstart", "rng-2"
# The last cell of the copy that is executed: the chapter's own tables, and what they are of.
_LIVE_CELL = """\
import pandas as pd
pd.concat([table, cutoffs]).assign(
    end=page.end, weights_sha256=page.model.weights_sha256
).to_csv(f"{results_dir}/rows.csv", index=False)
"""


def compute_live(model: str) -> str:
    """Executes the quickstart here, with no stored row to reuse, and compares its rows.

    The executed copy is dropped. The file of the embedded model is fetched if it is not here.

    Returns:
        One sentence: what was computed here, and how far it is from the stored rows.

    Raises:
        UnknownNameError: not an embedded model.
        NotReproducedError: a number differs by more than `storage.tolerance_of` the stored rows,
            the chapter failed, or there is nothing to compare with.
        BookBuildError: no space to execute it in.
    """
    if model not in EMBEDDED:
        raise UnknownNameError("embedded model", model, EMBEDDED)
    load_model(model)
    try:
        rows, seconds = _executed_here(model)
    except OSError as error:
        raise BookBuildError(
            f"{LIVE} cannot be executed in {tempfile.gettempdir()} ({error}): make room there, or "
            "set TMPDIR to a folder with space"
        ) from error
    gap = largest_difference(rows, paths.default_results_dir(), model)
    return (
        f"Computed here: {len(rows)} settings of {LIVE_TASK} with {model} (4-bit file "
        f"{rows.weights_sha256.iloc[0][:12]}…) in {seconds:.0f} s; largest difference from the "
        f"stored rows {gap:.1e} nats (tolerance {storage.TOLERANCE['float32']:.0e})."
    )


def _executed_here(model: str) -> tuple[pd.DataFrame, float]:
    """The rows of the live chapter, and the seconds that they took."""
    from papermill.exceptions import PapermillExecutionError

    with tempfile.TemporaryDirectory() as scratch:
        page = nbformat.read(paths.notebooks_dir() / f"{LIVE}.ipynb", as_version=4)
        page.cells.append(nbformat.v4.new_code_cell(_LIVE_CELL))
        source, target = (Path(scratch) / name for name in ("source.ipynb", "executed.ipynb"))
        nbformat.write(page, source)
        began = time.perf_counter()
        try:
            notebooks.execute_file(source, target, {"model": model, "results_dir": scratch})
        except PapermillExecutionError as error:
            why = f"{error.ename}: {error.evalue}"
            raise NotReproducedError(f"{LIVE} failed on this machine ({why})") from error
        except RuntimeError as error:  # the kernel did not start, or was ended
            raise NotReproducedError(f"{LIVE} did not end on this machine ({error})") from error
        seconds = time.perf_counter() - began
        return pd.read_csv(Path(scratch) / "rows.csv").drop_duplicates(KEY), seconds


def largest_difference(rows: pd.DataFrame, results_dir: Path, model: str) -> float:
    """Of any number in `rows` from the stored one of the same setting, in nats, if they agree.

    Args:
        rows: settings with their numbers, and columns `end` and `weights_sha256`.

    Raises:
        NotReproducedError: it is more, or rows of these settings and weights are not stored.
    """
    end, sha256 = rows.iloc[0][["end", "weights_sha256"]]
    folder = storage.folder_of(results_dir, model, LIVE_TASK, "" if end == "eos" else f"@end={end}")
    remedy = "restore it with git, or recompute it: python -m calib_utils reproduce --update"
    stored = storage.read(folder)
    if stored is None or stored.record["weights_sha256"] != sha256:
        raise NotReproducedError(f"{folder} has no rows of these weights ({sha256}): {remedy}")
    columns = [*KEY, *storage.NUMBERS]
    here, then = rows[columns], stored.settings[columns]
    both = here.merge(then[KEY], on=KEY, how="left", indicator=True)
    missing = both[both._merge != "both"]
    if len(missing):
        named = missing[KEY].astype(str).agg(" ".join, axis=1).tolist()
        raise NotReproducedError(f"{folder} has no row for {', '.join(named)}: {remedy}")
    gaps = storage.differences(here, then.merge(here[KEY], on=KEY), KEY)
    name, most = max(gaps, key=gaps.get), storage.tolerance_of(stored.record)
    if gaps[name] > most:
        raise NotReproducedError(
            f"{name} of {model} on {LIVE_TASK} is {gaps[name]:.2g} nats from that in {folder} on "
            f"this machine, more than {most:.0e}: compare the versions in its provenance.json with "
            "`pip list`; the stored pages are built by `make pages`"
        )
    return gaps[name]


# Sphinx extension: addresses, the box of a page, texts for those who cannot see a figure

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
    pictures.setup(app)
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
            found = [{"link": address(page), "title": _title(app, page)} for page in near]
            context[name] = found[0] if found else None
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


def _title(app, page: str) -> str:
    return escape(app.env.titles[page].astext())


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


# Pages and PDF


def build(output: Path | None = None) -> Path:
    """Builds the pages with warnings as errors and returns the first one.

    The book that is there stays until the new one is whole; a second build waits for the first.

    Raises:
        BookBuildError: the lines that Sphinx complained in, or a figure that no notebook has.
    """
    output = Path(output or paths.project_root() / "_build")
    target = output / "_build"
    try:
        output.mkdir(parents=True, exist_ok=True)
        pictures.write_figures()
        with files.alone(output, "build of this book") as held:
            for left in output.glob("._build-*") if held else ():  # of killed builds
                shutil.rmtree(left, ignore_errors=True)
            # Never into the old one: an incremental build misses changed styles, removed pages.
            draft = output / f"._build-{uuid.uuid4().hex}"
            try:
                _build(draft)
                if target.exists():
                    files.replace(target, draft / "old")
                files.replace(draft / "_build", target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except CalibUtilsError:
        raise
    except OSError as error:
        raise BookBuildError(
            f"cannot write the book to {output} ({error}): choose a writable --output with space"
        ) from error
    return target / "html" / "index.html"


def _build(output: Path) -> None:
    first = _jupyter_book(output, "html", "index.html")
    pages = first.parent / "_static" / explorer.PAGE_FOLDER
    for row in explorer.write(paths.default_results_dir(), pages).itertuples():
        print(f"explorer page, left out: {row.folder}: {row.why}", file=sys.stderr)
    curves = precision_recall.published_points().groupby(["model", "prefix"], sort=False)
    points = [
        {
            "name": name,
            "points": own[["recall_unweighted", "precision"]].round(4).to_numpy().tolist(),
        }
        for name, own in curves
    ]
    text = f"window.calibPublishedPoints = {json.dumps(points)};\n"
    files.keep(first.parent / "_static" / "noise-points.js", text.encode())


_COMPLAINT = re.compile("WARNING|ERROR|ExtensionError")


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
        told = [line for line in lines if _COMPLAINT.search(line)] or lines[-20:]
        raise BookBuildError("the book does not build cleanly:\n" + "\n".join(told))
    return first


_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_LOADING_S = 300  # of the whole book: all figures and formulas are set before it is printed
# Whether a page has set every formula.
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
    return print_page(_jupyter_book(output, "singlehtml", "intro.html"), target)


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
    with browser() as context:
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
    return target


@contextmanager
def browser():
    """A context of the system's Chromium, network off; a BookBuildError as `print_page`."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BookBuildError("playwright is not installed: pip install -e '.[test]'") from error
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        yield chromium.new_context(offline=True, color_scheme="light")
        chromium.close()

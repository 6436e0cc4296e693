"""The book: contents, pages, a PDF, and a chapter computed here and now.

Also the Sphinx extension that `_config.yml` names. Knows executed notebooks, jupyter-book and the
browser that prints; draws nothing and changes no executed notebook.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from string import Template

import nbformat
import pandas as pd
import yaml
from sphinx.errors import ConfigError

from calib_utils import files, paths
from calib_utils.book import notebooks, pictures
from calib_utils.errors import (
    BookBuildError,
    CalibUtilsError,
    NotReproducedError,
    UnknownNameError,
)
from calib_utils.figures import explorer
from calib_utils.models.loading import load_model
from calib_utils.models.registry import EMBEDDED, HEADLINE, book_order
from calib_utils.openended import precision_recall
from calib_utils.results import storage
from calib_utils.results.storage import KEY

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


def _keep(target: Path, content: bytes) -> Path:
    try:
        return files.keep(target, content)
    except OSError as error:
        raise BookBuildError(f"cannot write {target} ({error}): make it writable") from error


# Sphinx extension: addresses, the box of a page, texts for those who cannot see a figure

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
    app.connect("source-read", _fill_tables)
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
    template = Path(app.srcdir, "templates", "run_box.md").read_text(encoding="utf-8")
    box = run_box(docname, app.config.html_theme_options["repository_url"], template)
    if box is not None:
        notebook = json.loads(content[0])
        cell = {"cell_type": "markdown", "id": "run-this-page", "metadata": {}, "source": box}
        notebook["cells"].insert(1, cell)
        content[0] = json.dumps(notebook)


# Rows of tables that prose pages leave to the executed notebooks

# `$rows 02_controlled_tasks claims reproduced`: a row per model, its name and what it glued;
# `$headline`: the folder of the model that the prose quotes; `thm-x-$headline`: a label there.
_LABELS = re.compile(r"([\w-]+)-\$headline")
_ROWS = re.compile(r"(?m)^\$rows (\S+) (.+)$")
_VERDICTS = "$verdicts"
_CHANGES = "verdict_changes.csv"


def _fill_tables(app, docname: str, content: list[str]) -> None:
    content[0] = _LABELS.sub(lambda found: notebooks.label_of(found[1], HEADLINE), content[0])
    content[0] = content[0].replace("$headline", HEADLINE)
    if _ROWS.search(content[0]):
        content[0] = _ROWS.sub(lambda found: model_rows(found[1], found[2].split()), content[0])
    if _VERDICTS in content[0]:
        content[0] = content[0].replace(_VERDICTS, verdict_rows())


def model_rows(notebook: str, keys: list[str], book: Path | None = None) -> str:
    """Rows of a Markdown table: each model with that executed notebook, and what it glued."""
    rows = []
    for model in models_with_pages(book):
        page = f"results/{model}/{notebook}.ipynb"
        if (Path(book or paths.book_dir()) / page).is_file():
            cells = [f"[{model}]({page})", *(f"{{glue:text}}`{page}::{key}:s`" for key in keys)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def verdicts(book: Path | None = None) -> pd.DataFrame:
    """Every statement of the executed notebooks: chapter, model, claim, kind, verdict."""
    book, rows = Path(book or paths.book_dir()), []
    folders = {key: paths.executed_dir(key, book) for key in models_with_pages(book)}
    for model, folder in (folders | {"all models": paths.panel_dir(book)}).items():
        for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            cells = nbformat.read(path, as_version=4).cells
            for output in (output for cell in cells for output in cell.get("outputs", ())):
                if output.get("metadata", {}).get("scrapbook", {}).get("name") == "verdicts":
                    said = json.loads(ast.literal_eval(next(iter(output.data.values()))))
                    rows += [{"chapter": path.stem, "model": model, **one} for one in said]
    return pd.DataFrame(rows, columns=["chapter", "model", "claim", "kind", "verdict"])


def verdict_rows(book: Path | None = None) -> str:
    """Rows of a Markdown table: every claim with its verdicts before and now, and the reason.

    What was said before, and why it changed, is kept in a table beside the pages; what is said now
    is read from the executed notebooks. A statement that is in the notebooks alone is new.
    """
    book = Path(book or paths.book_dir())
    old, now = pd.read_csv(book / _CHANGES, keep_default_na=False), verdicts(book)
    models = [name for name in old.columns if name not in ("chapter", "before", "now", "reason")]
    rows, told = [], set()
    for row in old.to_dict("records"):
        before = {model: row[model] for model in models if row[model]}
        told.add((row["chapter"], row["now"]))
        own = now[(now.chapter == row["chapter"]) & (now.claim == row["now"])]
        rows.append(
            (
                row["chapter"],
                row["before"],
                _by_verdict(before),
                *_now(row["now"], own),
                row["reason"],
            )
        )
    for (chapter, claim), own in now.groupby(["chapter", "claim"], sort=False):
        if (chapter, claim) not in told:
            rows.append((chapter, "–", "–", *_now(claim, own), "new"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _now(claim: str, own: pd.DataFrame) -> tuple[str, str]:
    if not claim:
        return "dropped", "–"
    kind = f" *({own.kind.iloc[0]})*" if len(own) else ""
    return claim + kind, _by_verdict(dict(zip(own.model, own.verdict, strict=True))) or "not run"


def _by_verdict(said: dict[str, str]) -> str:
    """Verdicts with the models that have each."""
    models: dict[str, list[str]] = {}
    for model, verdict in said.items():
        models.setdefault(verdict, []).append(model)
    return "; ".join(f"**{verdict}** {', '.join(own)}" for verdict, own in models.items())


def _mend_page(app, pagename, templatename, context, doctree) -> None:
    """Roles that screen readers know, and an edit button that leads to what people edit."""
    if body := context.get("body"):
        context["body"] = body.replace(_WITHDRAWN, _ITEM)
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("label") == "source-edit-button":
                button["url"] = _EXECUTED.sub(r"/notebooks/\1.py", button["url"])


# Contents, pages and PDF

_START = (
    *("summary", "how_to_read", "explorer", "noise_floor", "bring_a_sampler", "add_your_model"),
    *("scale_out", "status", "verdicts", "errata"),
)
_REFERENCE = "glossary faults benchmarks mutation licences bibliography cite"


def models_with_pages(book: Path | None = None) -> list[str]:
    """Keys of the models that have executed notebooks, by `book_order`."""
    folders = (Path(book or paths.book_dir()) / "results").glob("*/[0-9][0-9]_*.ipynb")
    return sorted({path.parent.name for path in folders}, key=book_order)


def table_of_contents(book: Path | None = None) -> str:
    """The text of `_toc.yml`: prose, chapters about all models, a part per model."""
    parts, book = {"Start": list(_START)}, Path(book or paths.book_dir())
    folders = {"All models": paths.panel_dir(book)}
    folders |= {key: paths.executed_dir(key, book) for key in models_with_pages(book)}
    for caption, folder in folders.items():
        pages = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
        parts[caption] = [page.relative_to(book).with_suffix("").as_posix() for page in pages]
    parts["Reference"] = [f"reference/{page}" for page in _REFERENCE.split()]
    contents = {
        "format": "jb-book",
        "root": "intro",
        "parts": [
            {"caption": caption, "chapters": [{"file": page} for page in pages]}
            for caption, pages in parts.items()
            if pages
        ],
    }
    head = "# Written by `python -m calib_utils toc` from the executed notebooks; do not edit.\n"
    return head + yaml.safe_dump(contents, sort_keys=False, allow_unicode=True, width=1000)


def write_table_of_contents(book: Path | None = None) -> Path:
    """Writes the book's `_toc.yml` where it differs, as a whole: two runs may end together."""
    return _keep(Path(book or paths.book_dir()) / "_toc.yml", table_of_contents(book).encode())


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

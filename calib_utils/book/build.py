"""The book made: a chapter computed now, what notebooks drew as files, pages, a PDF.

Knows executed notebooks, jupyter-book and the browser that prints; computes and draws nothing anew
but that one chapter, and changes no executed notebook. What a page looks like is in `pages`.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas as pd
from lxml import html

from calib_utils import files, paths
from calib_utils.book import notebooks
from calib_utils.errors import (
    BookBuildError,
    CalibUtilsError,
    NotReproducedError,
    UnknownNameError,
)
from calib_utils.figures import explorer
from calib_utils.models.loading import load_model
from calib_utils.models.registry import EMBEDDED, HEADLINE
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


# Figures and tables out of executed notebooks

FOLDER = "figures"
_SHOWN = re.compile(rf"\b{FOLDER}/([\w-]+)\.svg\b")
_MIME = {"svg": "image/svg+xml", "png": "image/png"}
INDEX = "index.csv"
_FOR_PHONES = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"')


def figure(name: str, book: Path | None = None, kind: str = "svg") -> bytes:
    """A figure by its label, as the headline model's notebooks or the panel's have it.

    Args:
        name: as in the notebook's source, without the model.
        kind: of file, svg or png.

    Raises:
        BookBuildError: no executed notebook has it.
    """
    labels = (name, notebooks.label_of(name, HEADLINE))
    for path in _executed(HEADLINE, book):
        for cell in nbformat.read(path, as_version=4).cells:
            if notebooks.figure_of(cell).get("name") not in labels:
                continue
            for output in cell.outputs:
                if content := output.get("data", {}).get(_MIME[kind]):
                    return content.encode() if kind == "svg" else base64.b64decode(content)
    raise BookBuildError(
        f"no executed notebook of {HEADLINE} has the figure {name!r}: correct the name in "
        f"the page, or run `python -m calib_utils run --model {HEADLINE}`"
    )


def _executed(model: str, book: Path | None) -> list[Path]:
    """A model's executed notebooks, then those about all models."""
    folders = (paths.executed_dir(model, book), paths.panel_dir(book))
    return [path for folder in folders for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


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


def export(folder: Path, model: str, pdf: bool = True, book: Path | None = None) -> pd.DataFrame:
    """Writes every table and figure of one model's pages, and of those about all models.

    Args:
        model: the name of its folder in `book/results`.
        pdf: figures as PDF as well, printed by Chromium.

    Returns:
        A row per file: file, page, what (its caption or title). It is also written as `INDEX`.

    Raises:
        UnknownNameError: no pages of this model.
        BookBuildError: no Chromium, or no playwright to drive it.
    """
    place = paths.executed_dir(model, book)
    if not list(place.glob("*.ipynb")):
        known = sorted(path.name for path in place.parent.glob("[!.]*") if path.is_dir())
        hint = "Run it first: python -m calib_utils run --model NAME"
        raise UnknownNameError("model with pages", model, known, hint)
    if pdf:
        browser_path()
    rows, drawn = [], []
    for path in _executed(model, book):
        n_tables = n_figures = 0
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                if "<table" in data.get("text/html", ""):
                    n_tables += 1
                    name = f"{path.stem}-table-{n_tables:02d}"
                    title = _write_table(folder / name, data["text/html"])
                    rows += [(f"{name}.{kind}", path.stem, title) for kind in ("csv", "tex")]
                elif svg := data.get("image/svg+xml"):
                    n_figures += 1
                    own = notebooks.figure_of(cell)
                    label = str(own.get("name", "")).removesuffix(notebooks.label_of("", model))
                    name = f"{path.stem}-{label or f'figure-{n_figures:02d}'}"
                    drawing = _FOR_PHONES.sub("", svg)
                    drawn.append(files.keep(folder / f"{name}.svg", drawing.encode()))
                    title = own.get("caption", "")
                    kinds = ("svg", "pdf") if pdf else ("svg",)
                    rows += [(f"{name}.{kind}", path.stem, title) for kind in kinds]
    if pdf:
        _print(drawn)
    index = pd.DataFrame(rows, columns=["file", "page", "what"])
    files.keep(folder / INDEX, index.to_csv(index=False, lineterminator="\n").encode())
    return index


def _write_table(path: Path, text: str) -> str:
    """A table as it is shown, cell by cell; returns its title, if it has one."""
    root = html.fromstring(text)
    head, *body = [[cell.text_content().strip() for cell in row] for row in root.iter("tr")]
    # A heading of a group of rows is one wide cell.
    body = [[*row, *[""] * (len(head) - len(row))] for row in body]
    table = pd.DataFrame(body, columns=head)
    csv = table.to_csv(index=False, lineterminator="\n")
    files.keep(path.with_suffix(".csv"), csv.encode())
    files.keep(path.with_suffix(".tex"), table.to_latex(index=False, escape=True).encode())
    return next((one.text_content() for one in root.iter("summary")), "")


def _print(drawings: list[Path]) -> None:
    """Each SVG as a PDF beside it, in its own size, one page."""
    with browser() as context:
        page = context.new_page()
        for path in drawings:
            svg = path.read_text(encoding="utf-8")
            width, height = (f"{float(points) / 72:.3f}in" for points in _SIZE.search(svg).groups())
            style = f"@page {{ size: {width} {height}; margin: 0 }} body {{ margin: 0 }}"
            style += "svg { display: block }"
            page.set_content(f"<!DOCTYPE html><style>{style}</style>{svg}", wait_until="load")
            size = {"width": width, "height": height, "page_ranges": "1"}
            page.pdf(path=path.with_suffix(".pdf"), print_background=True, **size)


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
        write_figures()
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

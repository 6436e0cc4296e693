"""The book: its table of contents from the executed notebooks at hand, and its build.

Knows the folder of executed notebooks and jupyter-book. Executes nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from calib_utils import explorer_page, files, page_figures, paths
from calib_utils.errors import BookBuildError
from calib_utils.registry import DEFAULT_MODEL, EMBEDDED

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
        page_figures.write()
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
    pages = first.parent / "_static" / explorer_page.FOLDER
    for row in explorer_page.write(results_dir, pages).itertuples():
        print(f"explorer page, left out: {row.folder}: {row.why}", file=sys.stderr)


def build_single(output: Path) -> Path:
    """Builds all pages as one below `output`, to be printed, and returns it.

    Raises:
        BookBuildError, PageFigureError: as `build`.
    """
    page_figures.write()
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

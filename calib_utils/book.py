"""The book: its table of contents from the executed notebooks at hand, and its build.

Knows the folder of executed notebooks and jupyter-book. Executes nothing.
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

import nbformat

from calib_utils import explorer_page, paths
from calib_utils.errors import CalibUtilsError
from calib_utils.registry import DEFAULT_MODEL, EMBEDDED

_PLAIN = re.compile(r"(?i)(?!(?:null|true|false|yes|no|on|off)$)[a-z][\w.@-]+")
_CHAPTERS_END = [
    *("reference/glossary", "reference/benchmarks", "reference/mutation", "reference/licences"),
    "reference/bibliography",
]


class BookBuildError(CalibUtilsError, RuntimeError):
    """Sphinx reported an error or a warning."""


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
        files = (f"results/{key}/{name}" for name in names)
        lines += [f"  - file: {file if caption == key else json.dumps(file)}" for file in files]
    lines += ["- caption: Reference", "  chapters:"]
    lines += [f"  - file: {page}" for page in _CHAPTERS_END]
    return "\n".join(lines) + "\n"


def write_table_of_contents(book: Path | None = None) -> Path:
    """Writes the book's `_toc.yml` where it differs, as a whole: two runs may end together."""
    target = Path(book or paths.book_dir()) / "_toc.yml"
    text = table_of_contents(book)
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        draft = target.with_name(f".{uuid.uuid4().hex}.yml")
        try:
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    return target


def write_readme_figure() -> Path:
    """Takes the README's figure out of the default model's executed notebook."""
    notebook = nbformat.read(paths.executed_dir(DEFAULT_MODEL) / "02_controlled_tasks.ipynb", 4)
    cells = (c for c in notebook.cells if "val-div" in str(c.metadata.get("mystnb", "")))
    outputs = next(cells).outputs
    image = next(o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    target = paths.book_dir() / "assets" / "val-div.png"
    content = base64.b64decode(image)
    if not target.is_file() or target.read_bytes() != content:
        target.write_bytes(content)
    return target


def build(output: Path | None = None, results_dir: Path | None = None) -> Path:
    """Builds the pages with warnings as errors and returns the first one.

    Args:
        results_dir: what the explorer page shows; by default the committed results.

    Raises:
        BookBuildError: with the lines that Sphinx complained in.
    """
    output = output or paths.project_root() / "_build"
    # An incremental build misses changed stylesheets and removed pages.
    shutil.rmtree(output / "_build", ignore_errors=True)
    tool = Path(sys.executable).with_name("jupyter-book")
    command = [str(tool), "build", str(paths.book_dir()), "-W", "-n", "--keep-going"]
    command += ["--path-output", str(output)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    first = output / "_build" / "html" / "index.html"
    if done.returncode or not first.is_file():
        lines = (done.stdout + done.stderr).splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-20:]
        raise BookBuildError("the book does not build cleanly:\n" + "\n".join(told))
    left_out = explorer_page.write(
        results_dir or paths.default_results_dir(), first.parent / "_static" / explorer_page.FOLDER
    )
    for row in left_out.itertuples():
        print(f"explorer page, left out: {row.folder}: {row.why}", file=sys.stderr)
    return first

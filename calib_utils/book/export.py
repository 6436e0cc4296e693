"""The tables and figures of executed pages as files for a paper: CSV and LaTeX, SVG and PDF.

Knows executed notebooks. Computes and draws nothing anew: files hold what the pages show.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
from lxml import html

from calib_utils import files, paths
from calib_utils.book import build, notebooks
from calib_utils.errors import UnknownNameError

INDEX = "index.csv"
_NARROW = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"')


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
    places = [paths.executed_dir(model, book), paths.panel_dir(book)]
    if not list(places[0].glob("*.ipynb")):
        known = sorted(path.name for path in places[0].parent.glob("[!.]*") if path.is_dir())
        hint = "Run it first: python -m calib_utils run --model NAME"
        raise UnknownNameError("model with pages", model, known, hint)
    if pdf:
        build.browser_path()
    rows, drawn = [], []
    for path in (path for place in places for path in sorted(place.glob("[0-9][0-9]_*.ipynb"))):
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
                    own = cell.metadata.get("mystnb", {}).get("figure", {})
                    label = str(own.get("name", "")).removesuffix(notebooks.label_of("", model))
                    name = f"{path.stem}-{label or f'figure-{n_figures:02d}'}"
                    drawing = _NARROW.sub("", svg)  # what a phone shows
                    drawn.append(files.keep(folder / f"{name}.svg", drawing.encode()))
                    kinds = ("svg", "pdf") if pdf else ("svg",)
                    rows += [
                        (f"{name}.{kind}", path.stem, own.get("caption", "")) for kind in kinds
                    ]
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
    with TemporaryDirectory() as scratch, build.browser() as context:
        page = context.new_page()
        for path in drawings:
            svg = path.read_text(encoding="utf-8")
            width, height = (f"{float(points) / 72:.3f}in" for points in _SIZE.search(svg).groups())
            style = f"@page {{ size: {width} {height}; margin: 0 }} body {{ margin: 0 }}"
            style += "svg { display: block }"
            shown = Path(scratch) / "figure.html"
            shown.write_text(f"<meta charset=utf-8><style>{style}</style>{svg}", encoding="utf-8")
            page.goto(shown.as_uri(), wait_until="load")
            page.pdf(
                path=path.with_suffix(".pdf"),
                width=width,
                height=height,
                page_ranges="1",
                print_background=True,
            )

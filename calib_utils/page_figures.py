"""Figures for the prose pages and the README, taken out of the executed notebooks.

Knows which pages show which figures by reading them, and where executed notebooks are. Draws and
executes nothing.
"""

import base64
import re
from pathlib import Path

import nbformat

from calib_utils import files, paths
from calib_utils.errors import BookBuildError, CalibUtilsError
from calib_utils.registry import DEFAULT_MODEL

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


def write(book: Path | None = None) -> list[Path]:
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

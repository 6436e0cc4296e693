"""Where things are. The only module that knows the folder layout or an environment variable."""

import os
from functools import cache
from pathlib import Path

from calib_utils.errors import NoCheckoutError

_MARKER = "_config.yml"
READ_LOG = "CALIB_UTILS_READ_LOG"


@cache
def project_root() -> Path:
    """The checkout this package belongs to: the first parent folder that holds `_config.yml`.

    Looked for from this file first (editable install), then from the working directory.

    Raises:
        NoCheckoutError: outside a checkout, where notebooks and results have no home.
    """
    for start in (Path(__file__).resolve().parent, Path.cwd().resolve()):
        for folder in (start, *start.parents):
            if (folder / _MARKER).is_file() and (folder / "calib_utils").is_dir():
                return folder
    raise NoCheckoutError(
        f"no folder with {_MARKER} above {Path.cwd()}: notebooks, the book and stored results need "
        "a clone of the project; run inside one, or give the folder"
    )


def cache_dir() -> Path:
    """Model files live here; `CALIB_UTILS_CACHE` moves it (default `~/.cache/calib-utils`)."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calib-utils"
    return Path(os.environ.get("CALIB_UTILS_CACHE") or default).expanduser()


def secret(variable: str) -> str | None:
    """The value of an environment variable that holds a key, or None where it is unset or empty."""
    return os.environ.get(variable) or None


def package_data(*parts: str, noted: bool = True) -> Path:
    """A file or folder of `data/`, for somebody who will read it (`note_read`, unless not `noted`).

    It lies beside this module where installed from a wheel, else in the checkout.
    """
    installed = Path(__file__).parent / "data"
    path = (installed if installed.is_dir() else project_root() / "data").joinpath(*parts)
    if noted:
        note_read(path)
    return path


def default_results_dir() -> Path:
    """The committed result tables."""
    return project_root() / "data" / "results"


def note_read(path: str | Path) -> None:
    """Tells whoever executes a page what it reads: a line in the file `CALIB_UTILS_READ_LOG` names.

    Every reader of stored numbers and of `data/` calls this, also for what it does not find.
    """
    if log := os.environ.get(READ_LOG):
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{Path(path).absolute()}\n")


def notebooks_dir() -> Path:
    """The notebooks that people edit (percent scripts and their unexecuted pairs)."""
    return project_root() / "notebooks"


def book_dir() -> Path:
    """The book's sources."""
    return project_root() / "book"


def executed_dir(model_key: str, book: Path | None = None) -> Path:
    """The executed notebooks of one model, rendered by the book (by default this checkout's)."""
    return Path(book or book_dir()) / "results" / model_key


def panel_dir(book: Path | None = None) -> Path:
    """The executed notebooks about all models with results (by default this checkout's)."""
    return Path(book or book_dir()) / "panel"

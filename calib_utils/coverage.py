"""Which models have results here, and the command that would measure the others.

Knows the panel's table and folder names. Reads no numbers: a row says that there are tables, not
what is in them.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from calib_utils import paths
from calib_utils.checkpoints import Checkpoint, checkpoints, find
from calib_utils.errors import NoCheckoutError
from calib_utils.registry import DEFAULT_MODEL
from calib_utils.results import RECORD
from calib_utils.sizes import size_of_checkpoint

COLUMNS = [
    *("name", "hub", "panel", "family", "stage", "base", "licence", "gated", "dtype"),
    *("parameters", "active", "bfloat16_gb", "float32_gb", "sizes"),
    *("tables", "texts", "pages", "measured", "command"),
]


def coverage(results_dir: str | Path | None = None, book: str | Path | None = None) -> pd.DataFrame:
    """The paper's 21 checkpoints, the embedded models, and whatever else has results.

    Args:
        results_dir, book: by default this checkout's; nothing where there is none.

    Returns:
        One row per model, columns `COLUMNS`: sizes of the loaded weights in 10^9 bytes, how many
        tables, folders of texts and executed notebooks there are, and what would measure it. Of a
        model outside the panel only its folder's name is known.
    """
    results_dir = _folder(results_dir, paths.default_results_dir)
    pages = _folder(book, paths.book_dir) / "results"
    keys = {path.parent.parent.name for path in results_dir.glob(f"*/*/{RECORD}")}
    keys |= {path.parent.name for path in pages.glob("*/[0-9][0-9]_*.ipynb")}
    rows = [_known(one, keys, results_dir, pages) for one in checkpoints()]
    for key in sorted(key for key in keys if find(key) is None):
        counts = _counts([key], results_dir, pages)
        rows.append({"name": key, "panel": "other", **counts})
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["parameters", "active", "tables", "texts", "pages"]
    return table.astype(dict.fromkeys(numbers, "Int64"))


def _folder(given: str | Path | None, default: Callable[[], Path]) -> Path:
    try:
        return Path(given or default())
    except NoCheckoutError:
        return Path(os.devnull)


def _known(one: Checkpoint, keys: set[str], results_dir: Path, pages: Path) -> dict:
    size = size_of_checkpoint(one)
    own = [key for key in keys if find(key) is one]
    return {
        **{name: getattr(one, name) for name in COLUMNS[:11]},
        "bfloat16_gb": round(size.weight_bytes("bfloat16") / 1e9, 2),
        "float32_gb": round(size.weight_bytes("float32") / 1e9, 2),
        "sizes": one.sizes,
        **_counts(own, results_dir, pages),
        "command": f"make run MODEL={one.load_name}",
    }


def _counts(keys: list[str], results_dir: Path, pages: Path) -> dict:
    tables = sum(len(list((results_dir / key).glob(f"*/{RECORD}"))) for key in keys)
    return {
        "tables": tables,
        "texts": sum(len(list((results_dir / key).glob(f"texts/*/{RECORD}"))) for key in keys),
        "pages": sum(len(list((pages / key).glob("[0-9][0-9]_*.ipynb"))) for key in keys),
        "measured": tables > 0,
    }


def as_text(table: pd.DataFrame) -> str:
    """The table of `coverage` for a terminal: names, sizes, licences, what is stored."""
    shown = pd.DataFrame(
        {
            "model": table.hub.where(table.hub.fillna("") != "", table.name).fillna(table.name),
            "family": table.family,
            "stage": table.stage,
            "parameters": [_billions(row) for row in table.itertuples()],
            "GB bf16": table.bfloat16_gb.map("{:.1f}".format),
            "GB f32": table.float32_gb.map("{:.1f}".format),
            "licence": table.licence + table.gated.map({True: ", gated"}).fillna(""),
            "measured": [_stored(row) for row in table.itertuples()],
        }
    )
    shown.model += (table.name == DEFAULT_MODEL).map({True: " (default)", False: ""})
    notes = (
        "~ sizes inferred, see data/panel/README.md. GB: weights alone, in memory.\n"
        "A model that is not measured: make run MODEL=owner/name; first what it takes: "
        "python -m calib_utils forecast --model owner/name"
    )
    return f"{shown.fillna('?').replace('nan', '?').to_string(index=False)}\n\n{notes}"


def as_page(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `coverage` for the book: what is measured first, then the paper's others."""
    shown = pd.DataFrame(
        {
            "model": table.name,
            "measured": [_stored(row) for row in table.itertuples()],
            "command": table.command,
            "in the paper": (table.panel == "paper").map({True: "yes", False: "no"}),
            "family": table.family,
            "stage": table.stage,
            "parameters": [_billions(row) for row in table.itertuples()],
            "GB in bfloat16": table.bfloat16_gb.map("{:.1f}".format),
            "licence": table.licence,
        }
    )
    shown = shown.fillna("?").replace("nan", "?")
    return shown.loc[table.measured.sort_values(ascending=False, kind="stable").index]


def _billions(row) -> str:
    if pd.isna(row.parameters):
        return "?"
    active = f", {row.active / 1e9:.3g} active" if row.active < row.parameters else ""
    return f"{'~' if row.sizes == 'inferred' else ''}{row.parameters / 1e9:.3g} B{active}"


def _stored(row) -> str:
    if not row.tables and not row.texts and not row.pages:
        return "no"
    counts = {"tables": row.tables, "texts": row.texts, "pages": row.pages}
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)

"""Which models have results here, and the command that would measure the others.

Knows the panel's table and folder names. Reads no numbers: a row says that there are tables, not
what is in them.
"""

from pathlib import Path

import pandas as pd

from calib_utils import paths
from calib_utils.checkpoints import Checkpoint, checkpoints, find
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
        results_dir, book: by default this checkout's.

    Returns:
        One row per model, columns `COLUMNS`: sizes of the loaded weights in 10^9 bytes, how many
        tables, folders of texts and executed notebooks there are, and what would measure it. Of a
        model outside the panel only its folder's name is known.
    """
    results_dir = Path(results_dir or paths.default_results_dir())
    pages = Path(book or paths.book_dir()) / "results"
    keys = {path.parent.parent.name for path in results_dir.glob(f"*/*/{RECORD}")}
    keys |= {path.parent.name for path in pages.glob("*/[0-9][0-9]_*.ipynb")}
    rows = [_known(one, keys, results_dir, pages) for one in checkpoints()]
    for key in sorted(key for key in keys if find(key) is None):
        counts = _counts([key], results_dir, pages)
        rows.append({"name": key, "panel": "other", **counts})
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["parameters", "active", "tables", "texts", "pages"]
    return table.astype(dict.fromkeys(numbers, "Int64"))


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

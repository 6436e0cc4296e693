"""When, under which convention and at what cost stored numbers were measured: a line for figures.

Knows the records that lie beside them. Looks at no clock, so that a page that is executed again
from the same rows shows the same line.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from pyarrow import parquet

from calib_utils import completions, results
from calib_utils.models import Model
from calib_utils.prompts import Policies


def of_tasks(results_dir: str | Path, model: Model, tasks: Iterable[str], end: str = "eos") -> str:
    """Of some tasks' rows; the seconds are those of the last pass over each, added up.

    Args:
        end: the policy the rows were measured under.
    """
    dtype = "" if model.dtype == "float32" else f"@dtype={model.dtype}"
    suffix = Policies(end=end).suffix + dtype
    folders = (results.folder_of(results_dir, model.key, task, suffix) for task in tasks)
    return _told(_records(folders), "measured")


def of_texts(results_dir: str | Path | None, model: Model, names: Iterable[str]) -> str:
    """Of stored texts. Their records hold no seconds, so the cost is how many there are."""
    if results_dir is None:
        return live()
    folders = [completions.folder_of(results_dir, model.key, name) for name in names]
    files = (file for folder in folders for file in folder.glob("[!.]*.parquet"))
    n_texts = sum(parquet.read_metadata(file).num_rows for file in files)
    return _told(_records(folders), f"{n_texts:,} texts, written")


def of_records(records: Iterable[dict]) -> str:
    """Of what some records describe, such as those of `framework_study.Study`; seconds added up."""
    return _told(list(records), "measured")


def of_all(results_dir: str | Path) -> str:
    """Of every stored row of every model."""
    return _told(_records(Path(results_dir).glob("*/[!.]*")), "measured")


def live() -> str:
    """Of what is computed when a page runs, and stored nowhere."""
    return "computed when this page ran"


def _records(folders: Iterable[Path]) -> list[dict]:
    files = (folder / results.RECORD for folder in folders)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def _told(records: list[dict], verb: str) -> str:
    if not records:
        return live()
    dates = sorted({record["environment"]["date"] for record in records})
    seconds = sum(record.get("seconds", 0.0) for record in records)
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    cost = f" in {math.ceil(seconds):,} s" if seconds else ""
    under = sorted({str(record["convention"]) for record in records})
    return f"{verb} {when}{cost}, convention {', '.join(under)}"

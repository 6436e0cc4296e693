"""One table in one file, with the record of what it is of inside: for what is kept beside rows.

Knows Parquet, and which parts of a record say whose a table is. Knows nothing of the columns.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import completions, provenance
from calib_utils.errors import ResultsError
from calib_utils.models import Model

# What must be equal for something kept to be of one model.
IDENTITY = ("model", "weights_sha256", "dtype")
_KEY = b"calib_utils"


def of_model(model: Model) -> dict:
    """The part of a record that says which model it was, and by what code."""
    return {
        "model": model.name,
        "revision": model.revision,
        "weights_sha256": model.weights_sha256,
        "dtype": model.dtype,
        "code_version": provenance.code_version(),
    }


def require_same(path: Path, old: dict, new: dict, names: Iterable[str] = IDENTITY) -> None:
    """Keeps one model's file from taking the place of another's.

    Raises:
        ResultsError: the records differ in one of these parts.
    """
    differs = [name for name in names if old[name] != new[name]]
    if differs:
        raise ResultsError(
            f"{path} is of another model or question (differs in {', '.join(differs)}): use "
            "another results_dir, or delete it"
        )


def write(path: Path, table: pd.DataFrame, record: dict) -> None:
    """Stores both as one file, which appears whole.

    Raises:
        ResultsError: the place cannot be written.
    """
    found = pa.Table.from_pandas(table, preserve_index=False)
    known = found.schema.metadata or {}
    text = json.dumps(record, sort_keys=True)
    found = found.replace_schema_metadata({**known, _KEY: text.encode()})
    completions.write_table(path, found, parents=True)


def read(path: Path, needed: Iterable[str], what: str, remedy: str) -> tuple[pd.DataFrame, dict]:
    """The table and its record.

    Args:
        needed: what the record must name.
        what, remedy: for the message, as in "holds no labels: delete it".

    Raises:
        ResultsError: not such a file.
    """
    try:
        table = pq.read_table(path)
        record = json.loads(table.schema.metadata[_KEY])
        missing = sorted(set(needed) - set(record))
        frame = table.to_pandas()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise ResultsError(f"{path} holds no {what} ({type(error).__name__}): {remedy}") from error
    if missing:
        raise ResultsError(f"{path} holds no {what} (its record lacks {missing}): {remedy}")
    return frame, record

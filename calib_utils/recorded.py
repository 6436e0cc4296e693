"""The record of everything that is stored, and tables that carry theirs in one Parquet file.

Knows where records lie: `provenance.json` in the folders of rows and of texts, the metadata of a
Parquet file, the first line of a file of steps. Knows nothing of the numbers.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import conventions, files, paths
from calib_utils.errors import ResultsError

FILE = "provenance.json"
_KEY = b"calib_utils"


def of_model(model) -> dict:
    """The part of a record that says which loaded `models.Model` it was."""
    return {
        "model": model.name,
        "revision": model.revision,
        "weights_sha256": model.weights_sha256,
        "dtype": model.dtype,
    }


def kind_of(path: Path) -> str:
    """The kind of what is stored at a path below a model's folder, by the folder it lies in."""
    return path.parent.name if path.parent.name in conventions.FOLDERS else conventions.ROWS


def identity_of(path: Path) -> str | None:
    """The digest of the identity of what is stored at a path; of a folder of models, their names.

    None where nothing is stored that stands now: nothing at all, something unreadable, or numbers
    of an older convention.
    """
    try:
        if path.is_dir() and not (path / FILE).exists():
            names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            return conventions.digest([name for name in names if not name.startswith(".")])
        kind = kind_of(path)
        if path.suffix == ".parquet":
            record = json.loads(pq.read_schema(path).metadata[_KEY])
        elif path.suffix == ".json":
            record = json.loads(path.read_text(encoding="utf-8"))["record"]
        else:
            record = json.loads((path / FILE).read_text(encoding="utf-8"))
        return conventions.identity(kind, record) if conventions.is_current(kind, record) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # reading it says what is wrong


def write_table(path: Path, table: pa.Table) -> None:
    """A Parquet file that appears whole, or not at all.

    Raises:
        ResultsError: the place cannot be written.
    """
    try:
        with files.whole(path, parents=True) as draft:
            pq.write_table(table, draft, compression="zstd")
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ResultsError:
    """What to raise where the file system refuses to write."""
    return ResultsError(f"cannot write {path} ({error}): choose a writable results_dir with space")


def write(path: Path, table: pd.DataFrame, record: dict) -> None:
    """Stores a table and its record as one file, which appears whole.

    Raises:
        ResultsError: the place cannot be written.
    """
    found = pa.Table.from_pandas(table, preserve_index=False)
    known = found.schema.metadata or {}
    text = json.dumps(record, sort_keys=True)
    write_table(path, found.replace_schema_metadata({**known, _KEY: text.encode()}))


def read(path: Path, kind: str, needed: Iterable[str], remedy: str) -> tuple[pd.DataFrame, dict]:
    """A table that `write` stored, and its record.

    Args:
        needed: what the record must name beside the identity of its kind.
        remedy: for the message, as in "delete it".

    Raises:
        ResultsError: not such a file.
    """
    paths.note_read(path)
    try:
        table = pq.read_table(path)
        record = json.loads(table.schema.metadata[_KEY])
        missing = sorted({*conventions.IDENTITY[kind], *needed} - set(record))
        frame = table.to_pandas()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise ResultsError(f"{path} holds no {kind} ({type(error).__name__}): {remedy}") from error
    if missing:
        raise ResultsError(f"{path} holds no {kind} (its record lacks {missing}): {remedy}")
    return frame, record

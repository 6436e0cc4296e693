"""Completions of sweeps on disk: a Parquet file per tree, and the record of how they came about.

Knows columns and files. A file appears whole, by renaming; what is there is never written again,
so a sweep that was killed goes on where it was. Runs no model.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import conventions, files, paths, recorded
from calib_utils.errors import ResultsError
from calib_utils.files import sha256_of_file

# One row per completion. Natural logarithms, at temperature 1; ranks from 0.
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("seed", pa.int64()),
        ("position", pa.int64()),  # tokens written before the tree starts
        ("prefix", pa.string()),  # their text
        ("depth", pa.int64()),  # forced tokens: the sweep's depth, or fewer where one was an end
        ("path_ranks", pa.list_(pa.int64())),
        ("path_ids", pa.list_(pa.int64())),
        ("path_log_p", pa.list_(pa.float64())),
        ("sample", pa.int64()),  # 0 where greedy
        ("text", pa.string()),  # prefix, forced tokens and completion, without the end token
        ("token_ids", pa.list_(pa.int64())),  # forced tokens and completion, with the end token
        ("log_p", pa.float64()),  # of the completion alone
        ("ended", pa.bool_()),
    ]
)
COLUMNS = SCHEMA.names
_FORMAT = 1
_RECORD = recorded.FILE
_STALE_SECONDS = 600  # a draft that old was left by a killed run: writing one takes a second


def folder_of(results_dir: str | Path | None, model_key: str, name: str) -> Path | None:
    """Where texts of a model are kept: below its results, a level deeper than measured tables."""
    return None if results_dir is None else Path(results_dir) / model_key / "texts" / name


def chunk_name(prompt_id: str, seed: int) -> str:
    """The file of one tree."""
    return f"{prompt_id}@{seed}.parquet"


def open_folder(folder: Path, record: dict) -> None:
    """Makes `folder` the place of a sweep, or checks that it is.

    Texts of an older convention are removed, so that they are written anew.

    Args:
        record: the identity of the texts (`conventions`), and what else people want to know.

    Raises:
        ResultsError: completions of another sweep hold the place, or it cannot be written.
    """
    paths.note_read(folder)
    record = {"format": _FORMAT, "convention": conventions.CURRENT[conventions.TEXTS], **record}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_stale(folder, _STALE_SECONDS)
        fresh = not (folder / _RECORD).exists() and not any(folder.glob("*.parquet"))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"cannot write to {str(folder)!r} ({error}): choose a writable results_dir"
        ) from error
    if fresh:
        _write_record(folder, record)
    stored = read_record(folder)
    conventions.require_same(folder, conventions.TEXTS, stored, record)
    if not conventions.is_current(conventions.TEXTS, stored):
        (folder / _RECORD).unlink()
        for path in folder.glob("*.parquet"):
            path.unlink()
        _write_record(folder, record)


def write_chunk(path: Path, rows: Iterable[dict]) -> None:
    """Stores one tree as a whole.

    Raises:
        ResultsError: the place cannot be written.
    """
    recorded.write_table(path, pa.Table.from_pylist(list(rows), schema=SCHEMA))


def close_folder(folder: Path, names: Iterable[str]) -> None:
    """Marks a sweep complete: its files and their SHA-256 go into the record, once."""
    record = read_record(folder)
    if "files" not in record:
        try:
            hashes = {name: sha256_of_file(folder / name) for name in names}
        except OSError as error:
            raise ResultsError(
                f"{folder} lost a file while it was written ({error}): run the same request again"
            ) from error
        _write_record(folder, {**record, "files": hashes})


def read_record(folder: Path) -> dict:
    """The record of a sweep's folder.

    Raises:
        ResultsError: none, or not one of a sweep.
    """
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ResultsError(
                f"{folder}: completions in format {record['format']}, this version reads "
                f"{_FORMAT}: delete it and sweep again"
            )
        names = record.get("files")
        if names is not None and not (
            isinstance(names, dict) and all(map(files.PLAIN_NAME.fullmatch, names))
        ):
            raise ValueError("a name among its files that is none")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(
            f"{folder / _RECORD} is unreadable ({type(error).__name__}: {error}): restore it, or "
            "delete the folder and sweep again"
        ) from error
    return record


def read_completions(folder: str | Path, schema: pa.Schema | None = SCHEMA) -> pd.DataFrame:
    """Complete texts as they are stored; needs neither model nor prompts.

    Args:
        schema: what each file must hold, a sweep's by default; None takes whatever is recorded.

    Raises:
        ResultsError: nothing there, unfinished, or a file that is not the one recorded.
    """
    folder = Path(folder)
    paths.note_read(folder)
    hashes = read_record(folder).get("files")
    if hashes is None:
        raise ResultsError(f"{folder} is unfinished: run the same request again, it will go on")
    if not hashes:
        raise ResultsError(f"{folder} records no file: delete it and run the same request again")
    tables = []
    for name, digest in hashes.items():
        path = folder / name
        if not path.is_file() or sha256_of_file(path) != digest:
            raise ResultsError(
                f"{path} is not the file that {_RECORD} describes (SHA-256 differs): restore it, "
                f"or delete {folder} and run the same request again"
            )
        try:
            table = pq.read_table(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ResultsError(f"{path} is unreadable ({error}): delete {folder}") from error
        if schema is not None and not table.schema.equals(schema):
            raise ResultsError(f"{path} has other columns than this version: delete {folder}")
        tables.append(table.to_pandas())
    return pd.concat(tables, ignore_index=True)


def _write_record(folder: Path, record: dict) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    try:
        with files.whole(folder / _RECORD) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise recorded.unwritable(folder / _RECORD, error) from error

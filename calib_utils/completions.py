"""Completions of sweeps on disk: a Parquet file per tree, and the record of how they came about.

Knows columns and files. A file appears whole, by renaming; what is there is never written again,
so a sweep that was killed goes on where it was. Runs no model.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import files
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
# What must be equal for stored completions to belong to a sweep. Only those of another engine than
# transformers name one.
IDENTITY = ("weights_sha256", "dtype", "prompts_sha256", "sweep_sha256", "code_version", "engine")
_FORMAT = 1
_RECORD = "provenance.json"
_STALE_SECONDS = 600  # a draft that old was left by a killed run: writing one takes a second


def folder_of(results_dir: str | Path | None, model_key: str, name: str) -> Path | None:
    """Where texts of a model are kept: below its results, a level deeper than measured tables."""
    return None if results_dir is None else Path(results_dir) / model_key / "texts" / name


def chunk_name(prompt_id: str, seed: int) -> str:
    """The file of one tree."""
    return f"{prompt_id}@{seed}.parquet"


def open_folder(folder: Path, record: dict) -> None:
    """Makes `folder` the place of a sweep, or checks that it is.

    Args:
        record: the values of `IDENTITY`, and what else people want to know.

    Raises:
        ResultsError: completions of another sweep hold the place, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_stale(folder, _STALE_SECONDS)
        fresh = not (folder / _RECORD).exists() and not any(folder.glob("*.parquet"))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"cannot write to {str(folder)!r} ({error}): choose a writable results_dir"
        ) from error
    if fresh:
        _write_record(folder, {"format": _FORMAT, **record})
    stored = read_record(folder)
    differs = [name for name in IDENTITY if stored.get(name) != record.get(name)]
    if differs:
        raise ResultsError(
            f"{folder} holds completions of another sweep (differs in {', '.join(differs)}): use "
            "another name or results_dir, or delete it"
        )


def write_chunk(path: Path, rows: Iterable[dict]) -> None:
    """Stores one tree as a whole.

    Raises:
        ResultsError: the place cannot be written.
    """
    write_table(path, pa.Table.from_pylist(list(rows), schema=SCHEMA))


def write_table(path: Path, table: pa.Table, parents: bool = False) -> None:
    """A Parquet file that appears whole, or not at all.

    Args:
        parents: makes the folder where it is missing.

    Raises:
        ResultsError: the place cannot be written.
    """
    with whole_file(path, parents) as draft:
        pq.write_table(table, draft, compression="zstd")


@contextmanager
def whole_file(path: Path, parents: bool = False) -> Iterator[Path]:
    """A draft that becomes the stored file `path` as a whole, or not at all; see `files.whole`.

    Raises:
        ResultsError: the place cannot be written.
    """
    try:
        with files.whole(path, parents) as draft:
            yield draft
    except OSError as error:
        raise ResultsError(
            f"cannot write {path} ({error}): choose a writable results_dir with space"
        ) from error


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


def read_completions(folder: str | Path) -> pd.DataFrame:
    """A complete sweep as it is stored, columns `COLUMNS`; needs neither model nor prompts.

    Raises:
        ResultsError: nothing there, unfinished, or a file that is not the one recorded.
    """
    folder = Path(folder)
    hashes = read_record(folder).get("files")
    if hashes is None:
        raise ResultsError(f"the sweep in {folder} is unfinished: run it again, it will go on")
    for name, digest in hashes.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest:
            raise ResultsError(
                f"{folder / name} is not the file that {_RECORD} describes (SHA-256 differs): "
                f"restore it, or delete {folder} and sweep again"
            )
    if not hashes:
        raise ResultsError(f"{folder} records no file: delete it and sweep again")
    return pd.concat([_read_chunk(folder / name) for name in hashes], ignore_index=True)


def _read_chunk(path: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(path)
        if not table.schema.equals(SCHEMA):
            raise ResultsError(f"{path} has other columns than this version: delete it")
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{path} is unreadable ({error}): delete it and sweep again") from error
    return table.to_pandas()


def _write_record(folder: Path, record: dict) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    with whole_file(folder / _RECORD) as draft:
        draft.write_text(text + "\n", encoding="utf-8")

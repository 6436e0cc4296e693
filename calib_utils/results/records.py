"""The record of everything that is stored, and tables that carry theirs in one Parquet file.

Knows where records lie: `provenance.json` in the folders of rows and of texts, the metadata of a
Parquet file, the first line of a file of steps. Knows nothing of the numbers.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import files, paths
from calib_utils.errors import ResultsError
from calib_utils.files import sha256_of_file
from calib_utils.models.loading import Model
from calib_utils.results import conventions

FILE = "provenance.json"
_KEY = b"calib_utils"


def of_model(model) -> dict:
    """The part of a record that says which loaded `loading.Model` it was."""
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


# Completions of sweeps on disk: a Parquet file per tree, and the record of how they came about.
#
# Knows columns and files. A file appears whole, by renaming; what is there is never written
# again, so a sweep that was killed goes on where it was. Runs no model.

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
_RECORD = FILE
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
    write_table(path, pa.Table.from_pylist(list(rows), schema=SCHEMA))


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
        raise unwritable(folder / _RECORD, error) from error


# Sorted logits kept beside a model's tables, so that all models can be shown without loading one.
#
# Knows one file a model and what it stands for. Logits are computed anew whenever their chapter
# runs; the file changes only when they do, by more than machines differ in float32.

FOLDER = conventions.LOGITS
_AGAIN = "delete it and run 06_logit_shape"
_ROUNDING = 0.01  # in logits: what float32 kernels of two machines differ by, with room


def logits_path(results_dir: str | Path, model_key: str, name: str) -> Path:
    """Where a model's sorted logits of the study `name` are kept."""
    return Path(results_dir) / model_key / FOLDER / f"{name}.parquet"


def keep_logits(curves: pd.DataFrame, model: Model, path: Path) -> None:
    """Keeps sorted logits, if they are not kept already.

    Args:
        curves: a column per query, rows by rank from 1; float32 holds them, being logits.

    Raises:
        ResultsError: logits of other weights hold the place, or it cannot be written.
    """
    record = {**of_model(model), "convention": conventions.CURRENT[FOLDER]}
    if path.exists():
        kept, old = read_logits(path)
        conventions.require_same(path, FOLDER, old, record)
        same = old == record and list(kept) == list(curves) and len(kept) == len(curves)
        if same and np.abs(kept.to_numpy() - curves.to_numpy()).max() <= _ROUNDING:
            return
    write(path, curves.astype(np.float32), record)


def read_logits(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept logits as `logit_shape.logit_curves` gives them, and the record of what they are of.

    Raises:
        ResultsError: not such a file, or one that cannot be: logits that rise, or are not finite.
    """
    curves, record = read(path, FOLDER, ("model", "revision"), _AGAIN)
    try:
        values = curves.to_numpy(dtype=float)
        possible = (
            values.size and np.isfinite(values).all() and (np.diff(values, axis=0) <= 0).all()
        )
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise ResultsError(f"{path} is no table of sorted logits: {_AGAIN}")
    rank = pd.RangeIndex(1, len(curves) + 1, name="rank")
    return curves.astype(float).set_index(rank), record

"""The record of everything that is stored; tables that carry theirs; completions; sorted logits.

Knows where records lie: `provenance.json` in the folders of rows and of texts, the metadata of a
Parquet file, the first line of a file of steps. A file appears whole, by renaming. Runs no model.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import files, paths
from calib_utils.errors import InvalidRequestError, ResultsError
from calib_utils.models.loading import Model
from calib_utils.results import conventions
from calib_utils.results.conventions import LOGITS, ROWS, TEXTS

FILE = "provenance.json"
_KEY = b"calib_utils"
# What a folder's record calls its layout, the layout of this version, and how to get it anew.
_LAYOUT = {ROWS: ("schema", 2, "measure again"), TEXTS: ("format", 1, "run the same request again")}


def of_model(model: Model) -> dict:
    """The part of a record that says which model it was."""
    names = ["revision", "weights_sha256", "dtype", *(["chat"] if model.chat is not None else [])]
    return {"model": model.name, **{name: getattr(model, name) for name in names}}


def identity_of(path: Path, rows: bool = False) -> str | None:
    """The digest of the identity of what is stored at a path; of a folder of models, their names.

    With `rows`, of a folder of rows, also of which settings and tables it holds. None where nothing
    stands now: nothing stored, something unreadable, or numbers of an older convention.
    """
    try:
        if path.is_dir() and not (path / FILE).exists():
            names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            return conventions.digest([name for name in names if not name.startswith(".")])
        kind = path.parent.name if path.parent.name in conventions.FOLDERS else ROWS
        if path.suffix == ".parquet":
            record = json.loads(pq.read_schema(path).metadata[_KEY])
        elif path.suffix == ".json":
            record = files.json_of(path)["record"]
        else:
            record = files.json_of(path / FILE)
        if not conventions.is_current(kind, record):
            return None
        found = conventions.identity(kind, record)
        if not rows or kind != ROWS:
            return found
        keys = pd.read_csv(path / "settings.csv", usecols=[2, 3, 4], dtype=str)
        names = sorted(keys.fillna("").agg(" ".join, axis=1))
        return conventions.digest([found, names, sorted(record["files"])])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # reading it says what is wrong


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises a ResultsError where the file system refuses to write."""
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"cannot write {path} ({error}): choose a writable results_dir with space"
        ) from error


# Folders: tables, and beside them the record that vouches for their bytes.


def text_of(kind: str, record: Mapping) -> str:
    """The text of a folder's record, layout included."""
    layout, version, _ = _LAYOUT[kind]
    content = {**record, layout: version}
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read_record(folder: Path, kind: str = TEXTS) -> dict:
    """The record of a folder of rows or texts; no name among its files leads out of the folder.

    Raises:
        ResultsError: none, or not one of that kind; only texts may lack the list of their files.
    """
    layout, version, again = _LAYOUT[kind]
    try:
        record = files.json_of(folder / FILE)
        found, names = record[layout], record["files"] if kind == ROWS else record.get("files", {})
        if not isinstance(names, dict) or not all(map(files.PLAIN_NAME.fullmatch, names)):
            raise ValueError("a name among its files is none, or may lead out of the folder")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultsError(
            f"{folder / FILE} is missing or unreadable ({type(error).__name__}: {error}): restore "
            f"it, or delete the folder and {again}"
        ) from error
    if found != version:
        raise ResultsError(
            f"{folder}: {layout} {found}, this version reads {version}: delete it and {again}"
        )
    return record


def require_unchanged(folder: Path, hashes: Mapping[str, str], kind: str) -> None:
    """Raises a ResultsError where a file is missing, or has another SHA-256 than recorded."""
    for name, digest in hashes.items():
        path = folder / name
        if not path.is_file() or files.sha256_of_file(files.regular(path)) != digest:
            raise ResultsError(
                f"{path} is not the file that {FILE} describes (SHA-256 differs): restore it, or "
                f"delete {folder} and {_LAYOUT[kind][2]}"
            )


# Tables. The largest stored has 34,221 rows; a file of a few bytes may claim a billion.

_MOST_ROWS, _MOST_BYTES = 2_000_000, 1 << 28
# What readers of Parquet files make of a spoilt one, whose metadata may hold anything.
BROKEN = (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException)
_IS_KIND = {
    str: lambda column: all(isinstance(value, str) for value in column),
    int: pd.api.types.is_integer_dtype,
    bool: pd.api.types.is_bool_dtype,
    float: lambda column: pd.api.types.is_numeric_dtype(column) and column.dtype != bool,
}


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file; raises OSError where it is none, or more than a study could have written."""
    with pq.ParquetFile(files.regular(path)) as file:
        found = file.metadata
        parts = (found.row_group(number) for number in range(found.num_row_groups))
        n_bytes = sum(part.total_byte_size for part in parts)
        if found.num_rows > _MOST_ROWS or n_bytes > _MOST_BYTES:
            raise OSError(f"{path} has {found.num_rows:,} rows and {n_bytes:,} bytes, too many")
        return file.read()


def wrong_columns(table: pd.DataFrame, kinds: Mapping[str, type]) -> str:
    """What is wrong with the columns of a table, in words; empty where nothing is.

    Args:
        kinds: name -> str, int, float or bool, in order. Only floats may be missing (NaN).
    """
    if list(table) != list(kinds):
        return f"columns are {list(table)}, expected {list(kinds)}"
    wrong = [name for name, kind in kinds.items() if not _IS_KIND[kind](table[name])]
    named = ", ".join(
        f"{name} ({table[name].dtype}) is no {kinds[name].__name__}" for name in wrong
    )
    return f"columns of another type: {named}" if wrong and len(table) else ""


# Tables that carry their record in one Parquet file.


def write_table(path: Path, table: pa.Table) -> None:
    """A Parquet file that appears whole, or not at all: then it raises a ResultsError."""
    with writing(path), files.whole(path, parents=True) as draft:
        pq.write_table(table, draft, compression="zstd")


def write(path: Path, table: pd.DataFrame, record: dict) -> None:
    """Stores a table and its record as one file; raises as `write_table` does."""
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
        table = read_parquet(path)
        record = json.loads(table.schema.metadata[_KEY])
        if missing := sorted({*conventions.IDENTITY[kind], *needed} - set(record)):
            raise ValueError(f"its record lacks {missing}")
        return table.to_pandas(), record
    except BROKEN as error:
        why = f"{type(error).__name__}: {error}"
        raise ResultsError(f"{path} holds no {kind} ({why}): {remedy}") from error


# Texts: a folder with a Parquet file per tree of a sweep, or per prompt. What is there is never
# written again, so a run that was killed goes on where it was.

# Of a sweep, one row per completion. Natural logarithms, at temperature 1; ranks from 0.
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
_STALE_SECONDS = 600  # a draft that old was left by a killed run: writing one takes a second


def folder_of(results_dir: str | Path | None, model_key: str, name: str) -> Path | None:
    """Where texts of a model are kept: below its results, a level deeper than measured tables."""
    return None if results_dir is None else Path(results_dir) / model_key / TEXTS / name


def kept(
    folder: Path | None, record: dict, names: Collection[str], make: Callable[[str], pd.DataFrame]
) -> pd.DataFrame:
    """The tables of `make` for every name, one after another; those in `folder` are not made again.

    Each is written whole as soon as it is made. Without a folder nothing is kept; one of another
    `record` is a ResultsError.
    """
    if folder is None:
        return pd.concat(map(make, names), ignore_index=True)
    open_folder(folder, record)
    for name in names:
        if not (path := folder / f"{name}.parquet").exists():
            schema = SCHEMA if "sweep" in record else None  # replies may have any columns
            write_table(path, pa.Table.from_pandas(make(name), schema, preserve_index=False))
    stored = read_record(folder)
    if "files" not in stored:  # now it is complete
        with writing(folder):
            parts = [f"{name}.parquet" for name in names]
            hashes = {part: files.sha256_of_file(folder / part) for part in parts}
        _write_record(folder, {**stored, "files": hashes})
    return read_completions(folder)


def open_folder(folder: Path, record: dict) -> None:
    """Makes `folder` the place of a sweep with that record; texts of an older convention go.

    Raises:
        ResultsError: completions of another sweep hold the place, or it cannot be written.
    """
    paths.note_read(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_stale(folder, _STALE_SECONDS)
        fresh = not (folder / FILE).exists() and not any(folder.glob("*.parquet"))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"cannot write to {str(folder)!r} ({error}): choose a writable results_dir"
        ) from error
    if not fresh:
        stored = read_record(folder)
        conventions.require_same(folder, TEXTS, stored, record)
        if conventions.is_current(TEXTS, stored):
            return
        for path in folder.glob("*.parquet"):
            path.unlink()
    _write_record(folder, {"convention": conventions.CURRENT[TEXTS], **record})


def read_completions(folder: str | Path) -> pd.DataFrame:
    """Complete texts as they are stored; needs neither model nor prompts.

    Raises:
        ResultsError: nothing there, unfinished, or a file that is not the one recorded.
    """
    folder = Path(folder)
    paths.note_read(folder)
    record = read_record(folder)
    hashes = record.get("files")
    if not hashes:
        what = "is unfinished" if hashes is None else "records no file: delete it"
        raise ResultsError(f"{folder} {what}: run the same request again, it will go on")
    try:
        require_unchanged(folder, hashes, TEXTS)
        tables = [read_parquet(folder / name) for name in hashes]
        if "sweep" in record and not all(table.schema.equals(SCHEMA) for table in tables):
            raise ValueError("it has other columns than this version")
        return pd.concat([table.to_pandas() for table in tables], ignore_index=True)
    except ResultsError:
        raise
    except BROKEN as error:
        raise ResultsError(f"{folder} is unreadable ({error}): delete it") from error


def _write_record(folder: Path, record: dict) -> None:
    with writing(folder / FILE):
        files.keep(folder / FILE, text_of(TEXTS, record).encode())


# Sorted logits beside a model's tables, so that all models can be shown without loading one.

_AGAIN = "delete it and run 06_logit_shape"
_ROUNDING = 0.01  # in logits: what float32 kernels of two machines differ by, with room


def logits_path(results_dir: str | Path, model_key: str, name: str) -> Path:
    """Where a model's sorted logits of the study `name` are kept."""
    return Path(results_dir) / model_key / LOGITS / f"{name}.parquet"


def keep_logits(curves: pd.DataFrame, model: Model, path: Path) -> None:
    """Keeps sorted logits, where those kept differ by more than machines do in float32.

    Raises:
        ResultsError: logits of other weights hold the place, or it cannot be written.
    """
    record = {**of_model(model), "convention": conventions.CURRENT[LOGITS]}
    if path.exists():
        kept, old = read_logits(path)
        conventions.require_same(path, LOGITS, old, record)
        same = old == record and list(kept) == list(curves) and len(kept) == len(curves)
        if same and np.abs(kept.to_numpy() - curves.to_numpy()).max() <= _ROUNDING:
            return
    write(path, curves.astype(np.float32), record)


def read_logits(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept logits as `logit_shape.logit_curves` gives them, and the record of what they are of.

    Raises:
        ResultsError: not such a file, or one that cannot be: logits that rise, or are not finite.
    """
    curves, record = read(path, LOGITS, ("model", "revision"), _AGAIN)
    values = curves.to_numpy()
    wrong = wrong_columns(curves, dict.fromkeys(curves, float)) or not values.size
    if wrong or not np.isfinite(values).all() or (np.diff(values, axis=0) > 0).any():
        raise ResultsError(f"{path} is no table of sorted logits: {_AGAIN}")
    rank = pd.RangeIndex(1, len(curves) + 1, name="rank")
    return curves.astype(float).set_index(rank), record


OWN_MODELS = "models.yml"
_SAID = {"family": str, "stage": str, "parameters": (int, float), "licence": str, "base": str}


def own_models(results_dir: str | Path) -> dict[str, dict]:
    """What `models.yml` in a folder of results says of a user's own models, by their folder.

    Any of `family`, `stage` ("base" or "post-trained"), `parameters` (a number), `licence` and
    `base`, the folder of the model that it was trained from; empty where there is no such file.

    Raises:
        InvalidRequestError: the file cannot be read, or has another key or value.
    """
    path = Path(results_dir) / OWN_MODELS
    if not path.is_file():
        return {}
    paths.note_read(path)
    try:
        found = files.written_by_hand(path) or {}
        rows = [(key, name, own[name]) for key, own in found.items() for name in own]
    except (OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise InvalidRequestError(
            f"{path} cannot be read ({error}): give a model's folder, and below it lines such as "
            "'family: Mine'"
        ) from error
    for key, name, value in rows:
        if name not in _SAID:
            raise InvalidRequestError(f"{path}, {key}: no {name!r}; there is {', '.join(_SAID)}")
        if not isinstance(value, _SAID[name]) or isinstance(value, bool):
            kind = "a number such as 1.2e+9" if name == "parameters" else "text"
            raise InvalidRequestError(f"{path}, {key}: {name} = {value!r} is not {kind}")
        if name == "stage" and value not in ("base", "post-trained"):
            raise InvalidRequestError(f"{path}, {key}: stage {value!r} is not base or post-trained")
    return found

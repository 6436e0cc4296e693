"""What a stored measurement holds, and the invariants every table of it must satisfy.

Knows tables. Knows nothing of files or models.
"""

import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files, paths
from calib_utils.core.split import REPAIRS
from calib_utils.errors import ResultsError
from calib_utils.files import sha256_of_file
from calib_utils.results import records

SCHEMA = 2
KEY = ["rule", "parameter", "temperature"]
COLUMNS = [
    "model",
    "task",
    *KEY,
    "validity",
    "diversity",
    "sequence_precision",
    "sequence_recall",
    "n_answers",
    "n_nodes",
]
ANSWER_COLUMNS = ["answer", "temperature", "log_p"]
LOSS_COLUMNS = [*KEY, "repair", "step", "validity_loss", "diversity_loss"]
FRONTIER_COLUMNS = ["sequence_precision", "sequence_recall"]
TABLE_COLUMNS = {
    "settings": COLUMNS,
    "answers": ANSWER_COLUMNS,
    "losses": LOSS_COLUMNS,
    "frontier": FRONTIER_COLUMNS,
}
_SLACK = 1e-9


@dataclass(frozen=True)
class Tables:
    """A measurement of one model on one task. All but `settings` may be empty.

    `settings`: a row per rule and temperature. `answers`: ln p of every answer under temperature
    alone, at chosen temperatures. `losses`: nats lost at each step, of validity and of diversity,
    per setting and repair (`split.REPAIRS`). `frontier`: supported points of the precision-recall
    frontier over all adaptive rank cutoffs.
    """

    settings: pd.DataFrame
    answers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ANSWER_COLUMNS))
    losses: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=LOSS_COLUMNS))
    frontier: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=FRONTIER_COLUMNS))

    def check(self, where: str) -> None:
        """The invariants, checked on every read and write.

        Args:
            where: what the tables are of, for messages.

        Raises:
            ResultsError: naming the first row at fault.
        """
        for name, columns in TABLE_COLUMNS.items():
            table = getattr(self, name)
            if list(table.columns) != columns:
                raise ResultsError(
                    f"{where}: columns of {name} are {list(table.columns)}, expected {columns}"
                )
        if self.settings.empty:
            raise ResultsError(f"{where}: the settings table is empty")
        self._check_settings(where)
        self._check_answers(where)
        self._check_losses(where)
        self._check_frontier(where)

    def _check_settings(self, where: str) -> None:
        table = self.settings
        _require(table, ~table.duplicated(KEY), f"{where}: a setting occurs twice")
        _require(table, table.temperature > 0, f"{where}: temperature must be above 0")
        for column in ("validity", "sequence_precision", "sequence_recall"):
            inside = table[column].between(-_SLACK, 1 + _SLACK)
            _require(table, inside, f"{where}: {column} must lie in [0, 1]")
        in_range = table.diversity.between(1 / table.n_answers - _SLACK, 1 + _SLACK)
        _require(
            table,
            np.where(table.validity > 0, in_range, table.diversity.isna()),
            f"{where}: diversity must lie in [1/|V|, 1] where validity is above 0, and be NaN "
            "elsewhere",
        )
        # Looser cutoffs keep a superset, so more answers stay reachable.
        for name, loosens in (("top_k", True), ("top_p", True), ("min_p", False)):
            for _, group in table[table.rule == name].groupby("temperature"):
                recall = group.sort_values("parameter", ascending=loosens).sequence_recall
                if (recall.diff() < -_SLACK).any():
                    raise ResultsError(f"{where}: recall falls as {name} loosens")

    def _check_answers(self, where: str) -> None:
        answers, settings = self.answers, self.settings
        if (answers.groupby("temperature").size() != settings.n_answers.iloc[0]).any():
            raise ResultsError(f"{where}: answers are missing at some temperature")
        if (answers.log_p > _SLACK).any():
            raise ResultsError(f"{where}: a log-probability of an answer is above 0")
        mass = np.exp(answers.log_p.astype(float)).groupby(answers.temperature).sum()
        plain = settings[settings.rule == "none"].set_index("temperature").validity
        both = mass.index.intersection(plain.index)
        if not _same(mass[both], plain[both]):
            raise ResultsError(f"{where}: the answers' probabilities do not add up to the validity")

    def _check_losses(self, where: str) -> None:
        losses = self.losses
        if losses.empty:
            return
        if unknown := set(losses.repair) - set(REPAIRS):
            raise ResultsError(f"{where}: unknown repairs {sorted(unknown)} among the losses")
        below = losses[["validity_loss", "diversity_loss"]].min(axis=1) < -1e-7
        _require(losses, ~below, f"{where}: a loss, which is a divergence, is negative")
        own = losses[losses.repair == "none"].groupby(KEY, dropna=False, as_index=False)
        total = own[["validity_loss", "diversity_loss"]].sum(min_count=1)
        both = total.merge(self.settings, on=KEY)
        for loss, column in (("validity_loss", "validity"), ("diversity_loss", "diversity")):
            # A validity that underflows is 0 with no diversity, where its logarithm still has one.
            defined = both[loss].notna() & both[column].notna()
            if not _same(np.exp(-both[loss][defined]), both[column][defined]):
                raise ResultsError(f"{where}: the steps' losses do not add up to -ln {column}")
        if len(both) < len(total):
            raise ResultsError(f"{where}: there are losses of settings that have no row")

    def _check_frontier(self, where: str) -> None:
        points = self.frontier.astype(float)
        inside = points.apply(lambda column: column.between(-_SLACK, 1 + _SLACK)).all(axis=1)
        _require(points, inside, f"{where}: a frontier point lies outside [0, 1]")
        steps = points.diff().dropna()
        if (steps.sequence_precision > _SLACK).any() or (steps.sequence_recall < -_SLACK).any():
            raise ResultsError(f"{where}: the frontier is not ordered by falling precision")


def _same(one: pd.Series, other: pd.Series) -> bool:
    """Whether probabilities are the same, the smallest ones too, but for two passes' rounding."""
    return np.allclose(one, other, atol=1e-6) and np.allclose(one, other, 1e-2, atol=1e-300)


def _require(table: pd.DataFrame, good, what: str) -> None:
    good = np.asarray(good, dtype=bool)
    if not good.all():
        raise ResultsError(f"{what}; first at fault: {table[~good].iloc[0].to_dict()}")


# Result tables on disk: one folder per model and task, with its provenance. The only writer.
#
# A folder holds a file per table of `storage.Tables` that has rows, and `provenance.json`. It
# appears and changes as a whole, by renaming a finished folder into place. Knows files; runs no
# model.

# The file of each table. Settings as text, for people and for diffs; the rest in bulk.
FILES = {
    "settings": "settings.csv",
    "answers": "answers.parquet",
    "losses": "losses.parquet",
    "frontier": "frontier.parquet",
}
RECORD = records.FILE
_PATIENCE = 3


@dataclass(frozen=True)
class Stored(Tables):
    """One stored measurement: its tables and the record of how they came about."""

    record: dict = field(default_factory=dict)


def folder_of(results_dir: Path, model_key: str, task_name: str, suffix: str = "") -> Path:
    """Where a model's rows for a task live; `suffix` marks policies other than the defaults."""
    return Path(results_dir) / model_key / f"{task_name}{suffix}"


def read(folder: Path) -> Stored | None:
    """The measurement in `folder`, or None where there is none.

    Raises:
        ResultsError: incomplete, changed by hand, of another schema, or breaking an invariant.
    """
    paths.note_read(folder)
    for _ in range(_PATIENCE):
        if not _exists(folder):
            return None
        seen = _record_text(folder)
        try:
            found = _read_once(folder)
        except ResultsError:
            # Another run may have put a new folder in place between two of these reads.
            if _record_text(folder) == seen:
                raise
            continue
        found.check(str(folder))
        return found
    raise ResultsError(f"{folder} keeps changing while it is read: let the other run finish")


def _exists(folder: Path) -> bool:
    """Whether there is such a folder, perhaps only after one that a killed run moved away is back.

    Raises:
        ResultsError: no folder can have this name.
    """
    try:
        os.lstat(folder)
        return True
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{str(folder)!r} cannot be read ({error}): choose another results_dir or name"
        ) from error
    if not _left_behind(folder):
        return False
    with files.alone(folder.parent) as held:
        if held:
            _recover(folder)
    return folder.exists()


def _left_behind(folder: Path) -> list[Path]:
    """Drafts and moved folders of writers that are at work or were killed, the moved ones first."""
    own = re.compile(re.escape(f".{folder.name}-") + "[0-9a-f]{32}(-old)?")
    found = folder.parent.glob(f".{glob.escape(folder.name)}-*")
    drafts = [path for path in found if own.fullmatch(path.name)]
    return sorted(drafts, key=lambda path: not path.name.endswith("-old"))


def _recover(folder: Path) -> None:
    """Does what a writer that was killed had no time for; only where no other is at work."""
    for path in _left_behind(folder):
        if path.name.endswith("-old") and not folder.exists():
            with suppress(OSError):
                os.replace(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _record_text(folder: Path) -> str | None:
    try:
        return (folder / RECORD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _read_once(folder: Path) -> Stored:
    record_path = folder / RECORD
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ResultsError(
                f"{record_path}: schema {record['schema']}, this version reads {SCHEMA}: delete "
                f"{folder} and measure again"
            )
        hashes = record["files"]
        _require_complete(folder, hashes)
        names = [name for name in FILES if FILES[name] in hashes]
        for file in (FILES[name] for name in names):
            if sha256_of_file(folder / file) != hashes[file]:
                raise ResultsError(
                    f"{folder / file} is not the file that {RECORD} describes (SHA-256 differs): "
                    f"restore it, or delete {folder} and measure again"
                )
        tables = {name: _read_table(folder / FILES[name]) for name in names}
    except ResultsError:
        raise
    except Exception as error:
        raise ResultsError(
            f"{folder} is unreadable ({type(error).__name__}: {error}): restore it, or delete it "
            "and measure again"
        ) from error
    return Stored(**tables, record=record)


def _require_complete(folder: Path, hashes: dict) -> None:
    """Lets no table pass for one that was never measured: the record names what is there.

    Raises:
        ResultsError: it does not.
    """
    known = set(FILES.values())
    wrong = {*hashes} - known | {file for file in known - {*hashes} if (folder / file).exists()}
    if wrong or FILES["settings"] not in hashes:
        raise ResultsError(
            f"{RECORD} of {folder} does not name its tables ({', '.join(sorted(wrong)) or 'none'} "
            f"differs): restore it, or delete {folder} and measure again"
        )


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(("model", "task", "rule"), str),
        keep_default_na=False,  # a model called "null" is a name
        na_values={name: [""] for name in COLUMNS[3:]},
    )


def require_writable(folder: Path) -> None:
    """Fails before minutes of work where `write` would fail after them.

    Raises:
        ResultsError: the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder.parent, os.W_OK)
    except (OSError, ValueError):
        writable = False
    if not writable:
        raise ResultsError(f"cannot write to {str(folder.parent)!r}: choose a writable results_dir")


def write(folder: Path, tables: Tables, record: dict) -> None:
    """Stores a measurement as a whole: a reader sees the old one, none, or the new one.

    Raises:
        ResultsError: the tables break an invariant, or the place cannot be written.
    """
    update(folder, lambda: tables, record)


def update(folder: Path, make: Callable[[], Tables], record: dict) -> None:
    """Stores what `make` gives, which sees what is stored while no other writer changes it.

    Raises:
        ResultsError: as `write` does.
    """
    with suppress(OSError):  # writing says what is wrong
        folder.parent.mkdir(parents=True, exist_ok=True)
    with files.alone(folder.parent) as held:
        if held:
            _recover(folder)
        _write(folder, make(), record)


def _write(folder: Path, tables: Tables, record: dict) -> None:
    tables.check(str(folder))
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    old = draft.with_name(f"{draft.name}-old")
    try:
        draft.mkdir(parents=True)
        hashes = {}
        for name, file in FILES.items():
            table = getattr(tables, name)
            if table.empty and name != "settings":
                continue
            if file.endswith(".csv"):
                table.to_csv(draft / file, index=False, lineterminator="\n")
            else:
                table.to_parquet(draft / file, index=False, compression="zstd")
            hashes[file] = sha256_of_file(draft / file)
        record = {"schema": SCHEMA, **record, "files": hashes}
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
        (draft / RECORD).write_text(text + "\n", encoding="utf-8")
        with suppress(FileNotFoundError):  # none is replaced
            os.replace(folder, old)
        os.replace(draft, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise ResultsError(
            f"cannot write results to {folder} ({error}): choose a writable results_dir with space"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

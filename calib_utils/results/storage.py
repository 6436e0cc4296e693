"""What a stored measurement holds, the invariants of its tables, and its folder on disk.

A folder holds a file per table that has rows, and the record that vouches for them. It appears and
changes as a whole, by renaming a finished folder into place. The only writer; runs no model.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files, paths
from calib_utils.core.split import REPAIRS
from calib_utils.errors import ResultsError
from calib_utils.results import records
from calib_utils.results.conventions import ROWS

RECORD = records.FILE
KEY = ["rule", "parameter", "temperature"]
COLUMNS = [
    *("model", "task", *KEY, "validity", "diversity", "sequence_precision", "sequence_recall"),
    *("n_answers", "n_nodes"),
]
ANSWER_COLUMNS = ["answer", "temperature", "log_p"]
LOSS_COLUMNS = [*KEY, "repair", "step", "validity_loss", "diversity_loss"]
FRONTIER_COLUMNS = ["sequence_precision", "sequence_recall"]
_COLUMNS_OF = {
    "settings": COLUMNS,
    "answers": ANSWER_COLUMNS,
    "losses": LOSS_COLUMNS,
    "frontier": FRONTIER_COLUMNS,
}
# The file of each table. Settings as text, for people and for diffs; the rest in bulk.
FILES = {name: f"{name}.{'csv' if name == 'settings' else 'parquet'}" for name in _COLUMNS_OF}
_SLACK = 1e-9


@dataclass(frozen=True)
class Tables:
    """A measurement of one model on one task. All but `settings` may be empty where stored.

    `settings`: a row per rule and temperature. `answers`: ln p of every answer under temperature
    alone, at chosen temperatures. `losses`: nats lost at each step, of validity and of diversity,
    per setting and repair (`split.REPAIRS`). `frontier`: supported points of the precision-recall
    frontier over all adaptive rank cutoffs.
    """

    settings: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=COLUMNS))
    answers: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=ANSWER_COLUMNS))
    losses: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=LOSS_COLUMNS))
    frontier: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=FRONTIER_COLUMNS))

    def check(self, where: str) -> None:
        """Raises a ResultsError that names `where` and the first row that breaks an invariant."""
        for fault in self._faults():
            raise ResultsError(f"{where}: {fault}")

    def _faults(self) -> Iterator[str]:
        for name, columns in _COLUMNS_OF.items():
            if list(found := getattr(self, name).columns) != columns:
                yield f"columns of {name} are {list(found)}, expected {columns}"
        if self.settings.empty:
            yield "the settings table is empty"
        yield from self._setting_faults()
        yield from self._answer_faults()
        if not self.losses.empty:
            yield from self._loss_faults()
        points = self.frontier.astype(float)
        inside = points.apply(_is_share).all(axis=1)
        yield from _first(points, inside, "a frontier point lies outside [0, 1]")
        steps = points.diff().dropna()
        if (steps.sequence_precision > _SLACK).any() or (steps.sequence_recall < -_SLACK).any():
            yield "the frontier is not ordered by falling precision"

    def _setting_faults(self) -> Iterator[str]:
        table = self.settings
        yield from _first(table, ~table.duplicated(KEY), "a setting occurs twice")
        yield from _first(table, table.temperature > 0, "temperature must be above 0")
        for column in ("validity", "sequence_precision", "sequence_recall"):
            yield from _first(table, _is_share(table[column]), f"{column} must lie in [0, 1]")
        in_range = table.diversity.between(1 / table.n_answers - _SLACK, 1 + _SLACK)
        good = np.where(table.validity > 0, in_range, table.diversity.isna())
        what = "diversity must lie in [1/|V|, 1] where validity is above 0, and be NaN elsewhere"
        yield from _first(table, good, what)
        # Looser cutoffs keep a superset, so more answers stay reachable.
        for name, loosens in (("top_k", True), ("top_p", True), ("min_p", False)):
            for _, group in table[table.rule == name].groupby("temperature"):
                recall = group.sort_values("parameter", ascending=loosens).sequence_recall
                if (recall.diff() < -_SLACK).any():
                    yield f"recall falls as {name} loosens"

    def _answer_faults(self) -> Iterator[str]:
        answers, settings = self.answers, self.settings
        if (answers.groupby("temperature").size() != settings.n_answers.iloc[0]).any():
            yield "answers are missing at some temperature"
        if (answers.log_p > _SLACK).any():
            yield "a log-probability of an answer is above 0"
        mass = np.exp(answers.log_p.astype(float)).groupby(answers.temperature).sum()
        plain = settings[settings.rule == "none"].set_index("temperature").validity
        both = mass.index.intersection(plain.index)
        if not _same(mass[both], plain[both]):
            yield "the answers' probabilities do not add up to the validity"

    def _loss_faults(self) -> Iterator[str]:
        losses = self.losses
        if unknown := set(losses.repair) - set(REPAIRS):
            yield f"unknown repairs {sorted(unknown)} among the losses"
        below = losses[["validity_loss", "diversity_loss"]].min(axis=1) < -1e-7
        yield from _first(losses, ~below, "a loss, which is a divergence, is negative")
        measured = losses[losses.repair == "none"].groupby(KEY, dropna=False, as_index=False)
        total = measured[["validity_loss", "diversity_loss"]].sum(min_count=1)
        both = total.merge(self.settings, on=KEY)
        for loss, column in (("validity_loss", "validity"), ("diversity_loss", "diversity")):
            # A validity that underflows is 0 with no diversity, where its logarithm still has one.
            defined = both[loss].notna() & both[column].notna()
            if not _same(np.exp(-both[loss][defined]), both[column][defined]):
                yield f"the steps' losses do not add up to -ln {column}"
        if len(both) < len(total):
            yield "there are losses of settings that have no row"


def _is_share(values: pd.Series) -> pd.Series:
    return values.between(-_SLACK, 1 + _SLACK)


def _same(one: pd.Series, other: pd.Series) -> bool:
    """Whether probabilities are the same, the smallest ones too, but for two passes' rounding."""
    return np.allclose(one, other, atol=1e-6) and np.allclose(one, other, 1e-2, atol=1e-300)


def _first(table: pd.DataFrame, good, what: str) -> Iterator[str]:
    """What is wrong, with the first row that is not good."""
    bad = table[~np.asarray(good, dtype=bool)]
    if len(bad):
        yield f"{what}; first at fault: {bad.iloc[0].to_dict()}"


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
    for attempts_left in (2, 1, 0):
        try:
            if not _exists(folder):
                return None
            found = _read_once(folder)
            found.check(f"{folder} (restore it, or delete it and measure again)")
            return found
        except ResultsError:
            # Another run may have put a new folder in place between two of these reads.
            if not attempts_left:
                raise


def _exists(folder: Path) -> bool:
    """Whether there is such a folder, perhaps only after one that a killed run moved is back."""
    try:
        os.lstat(folder)
        return True
    except (FileNotFoundError, NotADirectoryError):
        if not _beside(folder, "old").exists():
            return False
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{str(folder)!r} cannot be read ({error}): choose another results_dir or name"
        ) from error
    with files.alone(folder.parent) as held:
        if held:
            _recover(folder)
    return folder.exists()


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _recover(folder: Path) -> None:
    """Does what a writer that was killed had no time for; only where no other is at work."""
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        with suppress(OSError):
            files.replace(old, folder)
    for left in (old, _beside(folder, "draft")):
        shutil.rmtree(left, ignore_errors=True)


def _read_once(folder: Path) -> Stored:
    record = records.read_record(folder, ROWS)
    hashes = record["files"]
    # No table may pass for one that was never measured.
    there = {file for file in FILES.values() if (folder / file).exists()}
    if wrong := {*hashes} - {*FILES.values()} | there - {*hashes} | {FILES["settings"]} - {*hashes}:
        raise ResultsError(
            f"{RECORD} of {folder} does not name its tables ({', '.join(sorted(wrong))} differs): "
            f"restore it, or delete {folder} and measure again"
        )
    try:
        records.require_unchanged(folder, hashes, ROWS)
        tables = {n: _read_table(folder / file) for n, file in FILES.items() if file in hashes}
    except ResultsError:
        raise
    except Exception as error:
        raise ResultsError(
            f"{folder} is unreadable ({type(error).__name__}: {error}): restore it, or delete it "
            "and measure again"
        ) from error
    return Stored(**tables, record=record)


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
    """Raises before minutes of work the ResultsError that `write` would raise after them."""
    with suppress(OSError, ValueError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if os.access(folder.parent, os.W_OK):
            return
    raise ResultsError(f"cannot write to {str(folder.parent)!r}: choose a writable results_dir")


def write(folder: Path, tables: Tables | Callable[[], Tables], record: dict) -> None:
    """Stores a measurement as a whole: a reader sees the old one, none, or the new one.

    Args:
        tables: or what makes them, called while no other writer changes what is stored.

    Raises:
        ResultsError: the tables break an invariant, or the place cannot be written.
    """
    with suppress(OSError):  # writing says what is wrong
        folder.parent.mkdir(parents=True, exist_ok=True)
    with files.alone(folder.parent) as held:
        if held:
            _recover(folder)
        # Where nothing can be locked, no two writers may share a draft.
        mark = "" if held else f"{uuid.uuid4().hex}."
        draft, old = (_beside(folder, f"{mark}{what}") for what in ("draft", "old"))
        tables = tables() if callable(tables) else tables
        tables.check(str(folder))
        try:
            draft.mkdir(parents=True)
            hashes = {}
            for name, file in FILES.items():
                table = getattr(tables, name)
                if table.empty:
                    continue
                if file.endswith(".csv"):
                    table.to_csv(draft / file, index=False, lineterminator="\n")
                else:
                    table.to_parquet(draft / file, index=False, compression="zstd")
                hashes[file] = files.sha256_of_file(draft / file)
            text = records.text_of(ROWS, {**record, "files": hashes})
            (draft / RECORD).write_text(text, encoding="utf-8")
            with suppress(FileNotFoundError):  # none is replaced
                files.replace(folder, old)
            files.replace(draft, folder)
        except OSError as error:
            if old.exists() and not folder.exists():
                files.replace(old, folder)
            raise ResultsError(
                f"cannot write results to {folder} ({error}): choose a writable results_dir with "
                "space"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

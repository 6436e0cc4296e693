"""What a stored measurement holds, the invariants of its tables, and its folder on disk.

A folder holds a file per table that has rows, and the record that vouches for them. It appears and
changes as a whole, by renaming a finished folder into place. The only writer; runs no model.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files, paths
from calib_utils.core import metrics
from calib_utils.core.prompts import Policies
from calib_utils.core.split import REPAIRS
from calib_utils.errors import ResultsError
from calib_utils.results import records
from calib_utils.results.conventions import ROWS

RECORD = records.FILE
KEY = ["rule", "parameter", "temperature"]
NUMBERS = ["validity", "diversity", "sequence_precision", "sequence_recall"]
_KEY_KINDS = {"rule": str, "parameter": float, "temperature": float}
_KINDS = {
    "settings": {
        **{"model": str, "task": str, **_KEY_KINDS, **dict.fromkeys(NUMBERS, float)},
        **{"n_answers": int, "n_nodes": int},
    },
    "answers": {"answer": str, "temperature": float, "log_p": float},
    "losses": {
        **{**_KEY_KINDS, "repair": str, "step": int},
        **{"validity_loss": float, "diversity_loss": float},
    },
    "frontier": {"sequence_precision": float, "sequence_recall": float},
}
COLUMNS, ANSWER_COLUMNS, LOSS_COLUMNS, FRONTIER_COLUMNS = map(list, _KINDS.values())
# What names a row of each table; points of the frontier have an order alone.
ROW_KEYS = {
    "settings": KEY,
    "answers": ["answer", "temperature"],
    "losses": [*KEY, "repair", "step"],
    "frontier": [],
}
# The file of each table. Settings as text, for people and for diffs; the rest in bulk.
FILES = {name: f"{name}.{'csv' if name == 'settings' else 'parquet'}" for name in _KINDS}
_SLACK = 1e-9
# Nats, at temperature 1 and above, by which the numbers of the same weights lie apart between
# machines. In float32 2e-4 was seen without a cutoff, and 1e-2 where one ends among nearly equal
# tokens. bfloat16 has eight bits, and kernels round apart: .25 was seen without a cutoff, and 2.8
# where a cutoff keeps few tokens.
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
_LONG = 60  # steps after which a share of 262,144 tokens a step may be less than any double
_LEAST = 1e-300  # the logarithm of a probability below is rounding
# A cutoff by probability that ends among thousands of unlikely tokens keeps some more or less by
# the last digits: 9e-4 was seen, so a tenth of a difference counts.
_BY_COUNT = {"sequence_precision": 0.1}
_LOGARITHMS = ("log_p", "validity_loss", "diversity_loss", "gap", "sorted_gap")


def tolerance_of(record: Mapping) -> float:
    """`TOLERANCE` of the number format in a record; of an unknown one, the least."""
    return TOLERANCE.get(str(record.get("dtype")), TOLERANCE["float32"])


def differences(one: pd.DataFrame, other: pd.DataFrame, key: list[str]) -> dict[str, float]:
    """How far two tables of the same columns lie apart: the largest difference by column, in nats.

    Probabilities are compared by their logarithms, so that a small one counts as much as a large
    one. Below temperature 1 a difference counts times the temperature, by which logits, and their
    rounding, are divided; of a sequence precision a tenth counts. Infinite where a row or a value
    is in one table alone.

    Args:
        key: the columns that name a row; none, where rows have an order alone.
    """
    return row_differences(one, other, key).max().fillna(0.0).to_dict()


def row_differences(one: pd.DataFrame, other: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """`differences` of every row, by its key."""
    if not key:
        key, one, other = ["index"], one.reset_index(), other.reset_index()
    both = one.merge(other, how="outer", on=key, suffixes=("", "_other"), indicator=True)
    scale = both.temperature.astype(float).clip(upper=1) if "temperature" in both else 1.0
    alone, found = both._merge != "both", both[key].copy()
    possible = True
    for name in (name for name in one if name not in (*key, "model", "task")):
        here, there = (both[f"{name}{suffix}"].astype(float) for suffix in ("", "_other"))
        if name == "rank":  # nearly equal logits change places
            gap = np.log1p(((here - there).abs() - 1).clip(lower=0) / (1 + here))
        else:
            if name not in _LOGARITHMS:
                here, there = (np.log(column.clip(lower=_LEAST)) for column in (here, there))
            gap = (here - there).abs() * scale * _BY_COUNT.get(name, 1.0)
            gap = gap.mask((here == there) | (here.isna() & there.isna()), 0.0)
        if name == "validity":  # where it underflows, a diversity means nothing
            possible = ~((here <= np.log(_LEAST)) & (there <= np.log(_LEAST)))
        elif name == "diversity":
            gap = gap.where(possible, 0.0)
        found[name] = gap.fillna(np.inf).mask(alone, np.inf)
    return found.set_index(key)


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

    def check(self, where: str, record: Mapping | None = None) -> None:
        """Raises a ResultsError that names `where` and the first row that breaks an invariant."""
        for fault in self._faults(record or {}):
            raise ResultsError(f"{where}: {fault}")

    def _faults(self, record: Mapping) -> Iterator[str]:
        tolerance = tolerance_of(record)
        for name, kinds in _KINDS.items():
            if wrong := records.wrong_columns(table := getattr(self, name), kinds):
                yield f"of the {name}, {wrong}"
            if key := ROW_KEYS[name]:
                yield from _first(table, ~table.duplicated(key), f"a row of {name} occurs twice")
        if self.settings.empty:
            yield "the settings table is empty"
        yield from setting_faults(self.settings, record)
        yield from self._answer_faults(tolerance)
        yield from self._loss_faults(tolerance)
        points = self.frontier.astype(float)
        inside = points.apply(_is_share).all(axis=1)
        yield from _first(points, inside, "a frontier point lies outside [0, 1]")
        steps = points.diff().dropna()
        if (steps.sequence_precision > _SLACK).any() or (steps.sequence_recall < -_SLACK).any():
            yield "the frontier is not ordered by falling precision"

    def _answer_faults(self, tolerance: float) -> Iterator[str]:
        answers, plain = self.answers, self.settings[self.settings.rule == "none"]
        if (answers.groupby("temperature").size() != self.settings.n_answers.iloc[0]).any():
            yield "answers are missing at some temperature"
        yield from _first(answers, answers.log_p <= _SLACK, "an answer's log_p is above 0 or none")
        ordered = answers.sort_values("temperature", kind="stable")
        # [answer, temperature]: every temperature has as many answers, as was checked above.
        log_p = ordered.log_p.to_numpy(dtype=float).reshape(-1, self.settings.n_answers.iloc[0]).T
        numbers = {"validity": metrics.validity(log_p), "diversity": metrics.diversity(log_p)}
        found = pd.DataFrame({"temperature": ordered.temperature.unique(), **numbers}, dtype=float)
        stored = plain[plain.temperature.isin(found.temperature)][list(found)]
        for name, gap in differences(found, stored, ["temperature"]).items():
            if not gap <= tolerance:
                yield f"the answers' probabilities do not add up to the {name}, {gap:.2g} nats off"

    def _loss_faults(self, tolerance: float) -> Iterator[str]:
        losses, names = self.losses, ["validity_loss", "diversity_loss"]
        if unknown := set(losses.repair) - set(REPAIRS):
            yield f"unknown repairs {sorted(unknown)} among the losses"
        # A step that no valid sequence reaches has neither.
        undefined = losses[names].isna()
        both = undefined.any(axis=1) == undefined.all(axis=1)
        fine = both & ~(losses[names].min(axis=1) < -1e-7)
        yield from _first(losses, fine, "a loss, which is a divergence, is negative or missing")
        if losses.groupby(KEY, dropna=False).size().nunique() > 1:
            yield "steps or repairs are missing among the losses"
        measured = losses[losses.repair == "none"].groupby(KEY, dropna=False, as_index=False)
        total = measured[names].sum(min_count=1)
        both = total.merge(self.settings, on=KEY)
        for loss, column in zip(names, ("validity", "diversity"), strict=True):
            gap = (both[loss] + np.log(both[column].astype(float).clip(lower=_LEAST))).abs()
            # A validity that underflows is 0 with no diversity, where its logarithm still has one.
            gap = gap[both.validity > _LEAST] * both.temperature.clip(upper=1)
            if (gap > tolerance).any():
                yield f"the steps' losses do not add up to -ln {column}"
        if len(both) < len(total):
            yield "there are losses of settings that have no row"


def setting_faults(table: pd.DataFrame, record: Mapping) -> Iterator[str]:
    """What cannot be in the numbers of settings (`NUMBERS`, by `KEY`), each with the first row.

    Args:
        table: whose `n_answers` says how many answers the task has.
    """
    yield from _first(table, table.temperature > 0, "temperature must be above 0")
    yield from _first(table, table.n_answers > 0, "there must be answers")
    for column in ("validity", "sequence_precision", "sequence_recall"):
        yield from _first(table, _is_share(table[column]), f"{column} must lie in [0, 1]")
    in_range = table.diversity.between(1 / table.n_answers - _SLACK, 1 + _SLACK)
    good = np.where(table.validity > 0, in_range, table.diversity.isna())
    what = "diversity must lie in [1/|V|, 1] where validity is above 0, and be NaN elsewhere"
    yield from _first(table, good, what)
    n_reached = table.sequence_recall * table.n_answers
    good = (n_reached - n_reached.round()).abs() < 1e-6
    yield from _first(table, good, "sequence_recall must be a share of whole answers")
    # Both are products over steps: of few, they do not underflow.
    nothing = (table[["sequence_precision", "validity"]] == 0).all(axis=1)
    long = "n_nodes" in table and table.n_nodes >= _LONG  # studies without it are of few
    good = np.where(table.sequence_recall > 0, (table.sequence_precision > 0) | long, nothing)
    yield from _first(table, good, "what is valid with some probability must be reachable")
    good = ~(table.diversity > table.sequence_recall + _SLACK)
    yield from _first(table, good, "diversity is above the share of answers that are reachable")
    # What a cutoff keeps can only become more probable.
    plain = table[table.rule == "none"].set_index("temperature").validity
    least = np.log(table.temperature.map(plain).clip(lower=_LEAST))
    lost = (least - np.log(table.validity.clip(lower=_LEAST))) * table.temperature.clip(upper=1)
    good = ~((table.sequence_recall > 1 - _SLACK) & (lost > tolerance_of(record)))
    good |= not _one_way(record)
    yield from _first(table, good, "a cutoff that keeps every answer lowers validity")
    # Looser cutoffs keep a superset, so more answers stay reachable.
    for name, loosens in (("top_k", True), ("top_p", True), ("min_p", False)):
        own = table[table.rule == name].sort_values("parameter", ascending=loosens)
        if (own.groupby("temperature").sequence_recall.diff() < -_SLACK).any():
            yield f"recall falls as {name} loosens"


def _one_way(record: Mapping) -> bool:
    """Whether an answer has one token sequence: of several, a cutoff may drop some and keep it."""
    policies = {"end": record.get("end"), **record.get("policies", {})}
    defaults = {"tokenizations": Policies.tokenizations, "surface": Policies.surface}
    usual = (policies.get(name, own) == own for name, own in defaults.items())
    return policies["end"] != "line" and all(usual) and "aliases" not in record


def _is_share(values: pd.Series) -> pd.Series:
    return values.between(-_SLACK, 1 + _SLACK)


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
            if not files.folder_exists(folder):
                return None
            found = _read_once(folder)
            found.check(f"{folder} (restore it, or delete it and measure again)", found.record)
            return found
        except ResultsError:
            # Another run may have put a new folder in place between two of these reads.
            if not attempts_left:
                raise
        except Exception as error:  # whatever a reader of tables makes of a spoilt one
            if attempts_left and isinstance(error, FileNotFoundError):
                continue
            raise ResultsError(
                f"{str(folder)!r} cannot be read ({type(error).__name__}: {error}): restore it, "
                "delete it and measure again, or choose another results_dir or name"
            ) from error


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
    records.require_unchanged(folder, hashes, ROWS)
    tables = {n: _read_table(folder / file) for n, file in FILES.items() if file in hashes}
    return Stored(**tables, record=record)


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return records.read_parquet(path).to_pandas()
    return pd.read_csv(
        files.regular(path),
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
    with records.writing(folder), files.whole_folder(folder) as draft:
        tables = tables() if callable(tables) else tables
        tables.check(str(folder), record)
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

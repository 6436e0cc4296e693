"""Result tables on disk: one folder per model and task, with its provenance. The only writer.

A folder holds `settings.csv` (one row per rule and temperature, for people), `answers.parquet`
(ln p of every answer at chosen temperatures) and `provenance.json`. It appears and changes as a
whole, by renaming a finished folder into place. Knows files; runs no model.
"""

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.errors import ResultsError
from calib_utils.weights import sha256_of_file

SCHEMA = 1
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
# What must be equal for stored rows to stand for a computation.
IDENTITY = ("weights_sha256", "prompt_sha256", "sequences_sha256", "dtype", "code_version")
_TABLE, _ANSWERS, _RECORD = "settings.csv", "answers.parquet", "provenance.json"
_SLACK = 1e-9
_PATIENCE = 3


@dataclass(frozen=True)
class Stored:
    """One stored measurement: the settings table, the answers' ln p, and the record."""

    settings: pd.DataFrame
    answers: pd.DataFrame
    record: dict

    def stale(self, identity: dict) -> list[str]:
        """The parts of `identity` in which this differs, so that it may not be reused."""
        return [name for name in IDENTITY if self.record.get(name) != identity[name]]


def folder_of(results_dir: Path, model_key: str, task_name: str, suffix: str = "") -> Path:
    """Where a model's rows for a task live; `suffix` marks policies other than the defaults."""
    return Path(results_dir) / model_key / f"{task_name}{suffix}"


def read(folder: Path) -> Stored | None:
    """The measurement in `folder`, or None where there is none.

    Raises:
        ResultsError: incomplete, changed by hand, of another schema, or breaking an invariant.
    """
    for _ in range(_PATIENCE):
        if not folder.exists():
            return None
        seen = _record_text(folder)
        try:
            found = _read_once(folder)
        except ResultsError:
            # Another run may have put a new folder in place between two of these reads.
            if _record_text(folder) == seen:
                raise
            continue
        check(found.settings, found.answers, str(folder))
        return found
    raise ResultsError(f"{folder} keeps changing while it is read: let the other run finish")


def _record_text(folder: Path) -> str | None:
    try:
        return (folder / _RECORD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _read_once(folder: Path) -> Stored:
    record_path = folder / _RECORD
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ResultsError(
                f"{record_path}: schema {record['schema']}, this version reads {SCHEMA}: delete "
                f"{folder} and measure again"
            )
        for name in (_TABLE, _ANSWERS):
            if sha256_of_file(folder / name) != record["files"][name]:
                raise ResultsError(
                    f"{folder / name} is not the file that {_RECORD} describes (SHA-256 differs): "
                    f"restore it, or delete {folder} and measure again"
                )
        settings = pd.read_csv(
            folder / _TABLE,
            dtype=dict.fromkeys(("model", "task", "rule"), str),
            keep_default_na=False,  # a model called "null" is a name
            na_values={name: [""] for name in COLUMNS[3:]},
        )
        answers = pd.read_parquet(folder / _ANSWERS)
    except ResultsError:
        raise
    except Exception as error:
        raise ResultsError(
            f"{folder} is unreadable ({type(error).__name__}: {error}): restore it, or delete it "
            "and measure again"
        ) from error
    return Stored(settings, answers, record)


def require_writable(folder: Path) -> None:
    """Fails before minutes of work where `write` would fail after them.

    Raises:
        ResultsError: the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ResultsError(f"cannot write to {folder.parent}: choose a writable results_dir")


def write(folder: Path, settings: pd.DataFrame, answers: pd.DataFrame, record: dict) -> None:
    """Stores a measurement as a whole: a reader sees the old one, none, or the new one.

    Raises:
        ResultsError: the tables break an invariant, or the place cannot be written.
    """
    check(settings, answers, str(folder))
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    old = draft.with_name(f"{draft.name}-old")
    try:
        draft.mkdir(parents=True)
        settings.to_csv(draft / _TABLE, index=False, lineterminator="\n")
        answers.to_parquet(draft / _ANSWERS, index=False, compression="zstd")
        files = {name: sha256_of_file(draft / name) for name in (_TABLE, _ANSWERS)}
        record = {"schema": SCHEMA, **record, "files": files}
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
        (draft / _RECORD).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
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


def check(settings: pd.DataFrame, answers: pd.DataFrame, where: str) -> None:
    """The invariants of a measurement, checked on every read and write.

    Raises:
        ResultsError: naming the first row at fault.
    """

    def require(good, what: str) -> None:
        good = np.asarray(good)
        if not good.all():
            row = settings[~good].iloc[0].to_dict() if good.shape == (len(settings),) else ""
            raise ResultsError(f"{where}: {what}; first at fault: {row}")

    if list(settings.columns) != COLUMNS or list(answers.columns) != ANSWER_COLUMNS:
        raise ResultsError(
            f"{where}: columns are {list(settings.columns)} and {list(answers.columns)}, expected "
            f"{COLUMNS} and {ANSWER_COLUMNS}"
        )
    if settings.empty:
        raise ResultsError(f"{where}: the settings table is empty")
    require(~settings.duplicated(KEY), "a setting occurs twice")
    require(settings.temperature > 0, "temperature must be above 0")
    for column in ("validity", "sequence_precision", "sequence_recall"):
        require(settings[column].between(-_SLACK, 1 + _SLACK), f"{column} must lie in [0, 1]")
    lowest = 1 / settings.n_answers - _SLACK
    in_range = settings.diversity.between(lowest, 1 + _SLACK)
    require(
        np.where(settings.validity > 0, in_range, settings.diversity.isna()),
        "diversity must lie in [1/|V|, 1] where validity is above 0, and be NaN elsewhere",
    )
    # Looser cutoffs keep a superset, so more answers stay reachable.
    for name, loosens in (("top_k", True), ("top_p", True), ("min_p", False)):
        for _, group in settings[settings.rule == name].groupby("temperature"):
            recall = group.sort_values("parameter", ascending=loosens).sequence_recall
            if (recall.diff() < -_SLACK).any():
                raise ResultsError(f"{where}: recall falls as {name} loosens")
    if (answers.groupby("temperature").size() != settings.n_answers.iloc[0]).any():
        raise ResultsError(f"{where}: answers are missing at some temperature")
    if (answers.log_p > _SLACK).any():
        raise ResultsError(f"{where}: a log-probability of an answer is above 0")
    mass = np.exp(answers.log_p).groupby(answers.temperature).sum()
    plain = settings[settings.rule == "none"].set_index("temperature").validity
    both = mass.index.intersection(plain.index)
    if not np.allclose(mass[both], plain[both], atol=1e-6):
        raise ResultsError(f"{where}: the answers' probabilities do not add up to the validity")

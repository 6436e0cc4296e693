"""Recomputing stored rows from the weights, and what differs from the committed ones.

Knows stored results and how to ask for them again. Writes only when told to.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files, framework_study, results
from calib_utils.errors import ResultsError
from calib_utils.evaluation import request_for
from calib_utils.models import Model, load_model
from calib_utils.parsing import parse_rule
from calib_utils.prompts import Policies
from calib_utils.schema import KEY
from calib_utils.tasks import Task, get_task

# Float32 forward passes differ in the fifth digit between machines and batch sizes.
TOLERANCE = 1e-4
_NUMBERS = list(framework_study.NUMBERS)


def stored_folders(results_dir: Path, model: str | None = None) -> list[Path]:
    """Every stored measurement, or one model's."""
    found = sorted(path.parent for path in Path(results_dir).glob("*/*/provenance.json"))
    return [folder for folder in found if model in (None, folder.parent.name)]


def recompute(folder: Path, update: bool = False) -> pd.DataFrame:
    """Measures a stored folder's settings again from the weights.

    Args:
        update: replace the stored rows by the new ones.

    Returns:
        One row: model, task, settings, largest absolute difference per number, `same` within
        `TOLERANCE`, and whether the stored code version is today's.
    """
    stored = results.read(folder)
    record = stored.record
    model, task, policies = _asked(folder, record)
    settings = _settings_of(stored.settings)
    with tempfile.TemporaryDirectory(
        prefix=".again-", dir=folder.parent if update else None
    ) as scratch:
        request = request_for(model, task, policies, results_dir=scratch)
        request.tables(
            settings,
            list(dict.fromkeys(stored.answers.temperature)),
            losses=not stored.losses.empty,
            frontier=not stored.frontier.empty,
        )
        again = results.read(request.folder)
        gaps = _gaps(stored.settings, again.settings, KEY, _NUMBERS)
        gaps |= _gaps(stored.losses, again.losses, [*KEY, "repair", "step"], ["diversity_loss"])
        if update:
            results.write(folder, again, again.record)
    return _row(folder.name, record, again.record, len(stored.settings), gaps)


def stored_studies(results_dir: Path, model: str | None = None) -> list[Path]:
    """The kept studies of the formal framework, or one model's, by their tables of settings."""
    found = sorted(Path(results_dir).glob(f"*/{framework_study.FOLDER}/[!.]*.settings.parquet"))
    return [path for path in found if model in (None, path.parent.parent.name)]


def recompute_study(path: Path, update: bool = False) -> pd.DataFrame:
    """Measures a kept study again from the weights.

    Args:
        path: one of `stored_studies`.
        update: replace the kept study by the new one.

    Returns:
        One row, as of `recompute`; a study holds no losses.
    """
    stored, record = framework_study.read(path)
    model = load_model(record["model"], revision=record["revision"], dtype=record["dtype"])
    task = get_task(record["task"])
    with tempfile.TemporaryDirectory() as scratch:
        again = framework_study.study(model, task, record["end"], scratch)
        if update:
            for new in (Path(scratch) / model.key / framework_study.FOLDER).iterdir():
                files.keep(path.with_name(new.name), new.read_bytes())
    gaps = _gaps(stored, again.numbers, KEY, _NUMBERS) | {"diversity_loss": np.nan}
    name = f"{framework_study.FOLDER}/{path.name.removesuffix('.settings.parquet')}"
    return _row(name, record, again.record, len(stored), gaps)


def _gaps(old: pd.DataFrame, new: pd.DataFrame, key: list[str], names: list[str]) -> dict:
    """`_largest_gap` of some columns between the rows of `old` and those of the same key."""
    both = old.merge(new, how="left", on=key, suffixes=("", "_new"))
    return {name: _largest_gap(both[name], both[f"{name}_new"]) for name in names}


def _row(task: str, then: dict, now: dict, settings: int, gaps: dict) -> pd.DataFrame:
    row = {
        "model": then["model"],
        "task": task,
        "settings": settings,
        **{f"max |Δ| {name}": value for name, value in gaps.items()},
        "same": np.nanmax(list(gaps.values())) <= TOLERANCE,
        "code is current": then["code_version"] == now["code_version"],
    }
    return pd.DataFrame([row])


def recompute_rows(folder: Path, rows: pd.DataFrame) -> tuple[list[str], float]:
    """Measures some rows of a stored folder again; writes nothing.

    Args:
        rows: of its settings table.

    Returns:
        What of the record's identity differs now (`results.IDENTITY`, but for the code version,
        which can be read without a model), and the largest absolute difference of a number.
    """
    record = results.read(folder).record
    model, task, policies = _asked(folder, record)
    with tempfile.TemporaryDirectory() as scratch:
        request = request_for(model, task, policies, results_dir=scratch)
        again = request.tables(_settings_of(rows)).settings
        new = results.read(request.folder).record
    differs = [n for n in results.IDENTITY if n != "code_version" and record[n] != new[n]]
    both = rows.reset_index(drop=True)
    return differs, max(_largest_gap(both[name], again[name]) for name in _NUMBERS)


def _asked(folder: Path, record: dict) -> tuple[Model, Task, Policies]:
    """The model, task and conventions that a record names."""
    try:
        name, task, policies = record["model"], record["task"], Policies(**record["policies"])
        settings = {"revision": record["revision"], "dtype": record["dtype"]}
    except (KeyError, TypeError) as error:
        raise ResultsError(
            f"{folder}: its record does not say what was measured ({error!r}): restore it, or "
            "delete the folder and measure again"
        ) from error
    return load_model(name, **settings), get_task(task), policies


def _settings_of(table: pd.DataFrame) -> list:
    """The rules and temperatures of a settings table, in its order."""
    return [
        (parse_rule(name if np.isnan(number) else f"{name}={number!r}"), temperature)
        for name, number, temperature in table[KEY].itertuples(index=False)
    ]


def _largest_gap(old: pd.Series, new: pd.Series) -> float:
    """Largest absolute difference; infinite where only one of the two is undefined."""
    gap = (old - new).astype(float).abs().fillna(np.inf)
    return float(gap.where(~(old.isna() & new.isna()), 0.0).max()) if len(gap) else 0.0

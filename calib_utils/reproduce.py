"""Recomputing stored rows from the weights, and what differs from the committed ones.

Knows stored results and how to ask for them again. Writes only when told to.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import results
from calib_utils.evaluation import evaluate
from calib_utils.models import load_model
from calib_utils.parsing import parse_rule
from calib_utils.tasks import get_task

# Float32 forward passes differ in the fifth digit between machines and batch sizes.
TOLERANCE = 1e-4
_NUMBERS = ["validity", "diversity", "sequence_precision", "sequence_recall"]


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
    model = load_model(record["model"], revision=record["revision"], dtype=record["dtype"])
    pairs = stored.settings[["rule", "parameter"]].drop_duplicates().itertuples(index=False)
    rules = [parse_rule(name if np.isnan(p) else f"{name}={p!r}") for name, p in pairs]
    temperatures = list(dict.fromkeys(stored.answers.temperature))
    with tempfile.TemporaryDirectory(dir=folder.parent if update else None) as scratch:
        fresh = evaluate(
            model,
            get_task(record["task"]),
            rules=rules,
            temperatures=list(stored.settings.temperature.unique()),
            answer_temperatures=temperatures,
            results_dir=scratch,
            **record["policies"],
        )
        made = next(Path(scratch).glob("*/*"))
        again = results.read(made)
        both = stored.settings.merge(fresh, how="left", on=results.KEY, suffixes=("", "_new"))
        gap = {name: _largest_gap(both[name], both[f"{name}_new"]) for name in _NUMBERS}
        if update:
            rows = again.settings.merge(stored.settings[results.KEY], on=results.KEY)
            results.write(folder, rows, again.answers, again.record)
    row = {
        "model": record["model"],
        "task": folder.name,
        "settings": len(stored.settings),
        **{f"max |Δ| {name}": value for name, value in gap.items()},
        "same": max(gap.values()) <= TOLERANCE,
        "code is current": record["code_version"] == again.record["code_version"],
    }
    return pd.DataFrame([row])


def _largest_gap(old: pd.Series, new: pd.Series) -> float:
    """Largest absolute difference; infinite where only one of the two is undefined."""
    gap = (old - new).abs().fillna(np.inf)
    return float(gap.where(~(old.isna() & new.isna()), 0.0).max())

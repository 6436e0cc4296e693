"""Sorted logits kept beside a model's tables, so that all models can be shown without loading one.

Knows one file a model and what it stands for. Logits are computed anew whenever their chapter runs;
the file changes only when they do, by more than machines differ in float32.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import conventions, recorded
from calib_utils.errors import ResultsError
from calib_utils.models import Model

FOLDER = conventions.LOGITS
_AGAIN = "delete it and run 06_logit_shape"
_ROUNDING = 0.01  # in logits: what float32 kernels of two machines differ by, with room


def path_of(results_dir: str | Path, model_key: str, name: str) -> Path:
    """Where a model's sorted logits of the study `name` are kept."""
    return Path(results_dir) / model_key / FOLDER / f"{name}.parquet"


def keep(curves: pd.DataFrame, model: Model, path: Path) -> None:
    """Keeps sorted logits, if they are not kept already.

    Args:
        curves: a column per query, rows by rank from 1; float32 holds them, being logits.

    Raises:
        ResultsError: logits of other weights hold the place, or it cannot be written.
    """
    record = {**recorded.of_model(model), "convention": conventions.CURRENT[FOLDER]}
    if path.exists():
        kept, old = read(path)
        conventions.require_same(path, FOLDER, old, record)
        same = old == record and list(kept) == list(curves) and len(kept) == len(curves)
        if same and np.abs(kept.to_numpy() - curves.to_numpy()).max() <= _ROUNDING:
            return
    recorded.write(path, curves.astype(np.float32), record)


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept logits as `logit_shape.logit_curves` gives them, and the record of what they are of.

    Raises:
        ResultsError: not such a file, or one that cannot be: logits that rise, or are not finite.
    """
    curves, record = recorded.read(path, FOLDER, ("model", "revision"), _AGAIN)
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

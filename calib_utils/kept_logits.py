"""Sorted logits kept beside a model's tables, so that all models can be shown without loading one.

Knows one file a model and what it stands for. Logits are computed anew whenever their chapter runs;
the file changes only when they do, by more than machines differ in float32.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calib_utils import completions, provenance
from calib_utils.errors import ResultsError
from calib_utils.models import Model

FOLDER = "logits"
# What must be equal for kept logits to be of one model.
IDENTITY = ("model", "weights_sha256", "dtype")
_KEY = b"calib_utils"
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
    record = {
        "model": model.name,
        "revision": model.revision,
        "weights_sha256": model.weights_sha256,
        "dtype": model.dtype,
        "code_version": provenance.code_version(),
    }
    if path.exists():
        kept, old = read(path)
        differs = [name for name in IDENTITY if old[name] != record[name]]
        if differs:
            raise ResultsError(
                f"{path} holds logits of another model (differs in {', '.join(differs)}): use "
                "another results_dir, or delete it"
            )
        same = old == record and list(kept) == list(curves) and len(kept) == len(curves)
        if same and np.abs(kept.to_numpy() - curves.to_numpy()).max() <= _ROUNDING:
            return
    table = pa.Table.from_pandas(curves.astype(np.float32), preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _KEY: json.dumps(record, sort_keys=True).encode()}
    )
    completions.write_table(path, table, parents=True)


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept logits as `logit_shape.logit_curves` gives them, and the record of what they are of.

    Raises:
        ResultsError: not such a file, or one that cannot be: logits that rise, or are not finite.
    """
    try:
        table = pq.read_table(path)
        record = json.loads(table.schema.metadata[_KEY])
        curves = table.to_pandas().astype(float)
        missing = {*IDENTITY, "revision", "code_version"} - set(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise ResultsError(
            f"{path} holds no logits ({type(error).__name__}): delete it and run 06_logit_shape"
        ) from error
    values = curves.to_numpy()
    if (
        missing
        or not values.size
        or not np.isfinite(values).all()
        or (np.diff(values, axis=0) > 0).any()
    ):
        raise ResultsError(
            f"{path} is no table of sorted logits with its record: delete it and run 06_logit_shape"
        )
    return curves.set_index(pd.RangeIndex(1, len(curves) + 1, name="rank")), record

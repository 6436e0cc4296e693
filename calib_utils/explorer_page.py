"""Data of the book's explorer page: stored rows and kept steps as small scripts, one a model.

A page opened from a file may load scripts but no data, so each model's data is a script that calls
a function of `book/assets/explorer.js`. Reads what is stored; loads no model.
"""

import json
from pathlib import Path

import pandas as pd

from calib_utils import conventions, kept_steps, operating, panel
from calib_utils.cutoffs import TASKS, frontier_points
from calib_utils.errors import ResultsError
from calib_utils.figures import CAUSES, RULE_COLOURS
from calib_utils.panel import PARTS
from calib_utils.registry import DEFAULT_MODEL
from calib_utils.results import Stored
from calib_utils.rules import TABLE3_TEMPERATURES, table3_rules
from calib_utils.schema import KEY

FOLDER = "explorer"  # below the built book's `_static`
MEASURES = ("validity", "diversity", "sequence_precision", "sequence_recall")
COLUMNS = (*KEY, *MEASURES, *PARTS, "on_frontier")
_ROUNDING = 1e-6  # nats: parts of a loss below that are rounding, as in the chapter's table


def write(results_dir: str | Path, folder: str | Path) -> pd.DataFrame:
    """Writes `index.js` and a script for each model with rows of the study of cutoffs.

    Returns:
        What was left out because it is broken, or of an older convention: columns folder, why.
    """
    folder, models, left_out = Path(folder), [], []
    folder.mkdir(parents=True, exist_ok=True)
    keys = panel.keys_in(results_dir) if Path(results_dir).is_dir() else []
    for known in panel.models(keys).itertuples():
        tasks, missing = model_data(results_dir, known.model)
        left_out += missing
        if tasks:
            script = f"calibUtilsModel({_js(known.model)}, {_js(tasks)});\n"
            (folder / f"model-{known.model}.js").write_text(script, encoding="utf-8")
            models.append({"key": known.model, "stage": known.stage})
    models.sort(key=lambda one: one["key"] != DEFAULT_MODEL)  # the default first
    colours = {rule.name: RULE_COLOURS[rule.name] for rule in table3_rules()}
    colours |= {cause: colour for cause, (colour, _) in CAUSES.items()}
    index = {"models": models, "colours": colours, "columns": COLUMNS}
    script = f"globalThis.calibUtilsModels = {_js(index)};\n"
    (folder / "index.js").write_text(script, encoding="utf-8")
    return pd.DataFrame(left_out, columns=["folder", "why"])


def model_data(results_dir: str | Path, key: str) -> tuple[dict, list[tuple[str, str]]]:
    """What the page shows of a model, and what was left out, as (folder, why).

    Returns:
        By task: `rows` (columns `COLUMNS`; null where there is no number), `prompt`, `source` (of
        the numbers, in one line), and `steps` as kept.
    """
    tasks, left_out = {}, []
    for task in TASKS:
        stored, missing = panel.study_of(results_dir, key, task)
        left_out += missing
        rows = _rows(stored, task) if stored else []
        if not rows:
            continue
        record = stored.record
        steps, missing = _steps(kept_steps.path_of(results_dir, key, task), key, record)
        left_out += missing
        source = (
            f"{key}, SHA-256 of the weights {record['weights_sha256'][:12]}…, {record['dtype']}, "
            f"end = {record['policies']['end']}, {stored.settings.n_answers.iloc[0]} answers, "
            f"convention {record['convention']}"
        )
        tasks[task] = {"prompt": record["prompt"], "source": source, "rows": rows, "steps": steps}
    return tasks, left_out


def _rows(stored: Stored, task: str) -> list[list]:
    """The settings of Table 3 and the oracle size, each with its loss split and its place."""
    settings = [(r.name, r.parameter, t) for r in table3_rules() for t in TABLE3_TEMPERATURES]
    split = operating.split_table(stored.losses.assign(task=task))[[*KEY, *PARTS]]
    table = pd.DataFrame(settings, columns=KEY).merge(stored.settings, on=KEY)
    if table.empty:
        return []
    best = frontier_points(table)[KEY].assign(on_frontier=1)
    table = table.merge(split, on=KEY, how="left").merge(best, on=KEY, how="left")
    parts = table[list(PARTS)]
    # Without a valid answer there is no loss to split, though its size part alone may be known.
    table[list(PARTS)] = parts.mask(parts.abs() < _ROUNDING, 0.0).where(parts.total.notna())
    return [[_short(value) for value in row] for row in table[list(COLUMNS)].values.tolist()]


def _short(value: str | float) -> str | float | None:
    """A number in few digits that rounds to the same three as the stored one; null if none."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    short = float(f"{value:.8g}")
    return short if f"{short:.3g}" == f"{value:.3g}" else value


def _steps(path: Path, key: str, record: dict) -> tuple[list[dict], list[tuple[str, str]]]:
    """Kept steps of the model file and the question that the task's rows are of."""
    if not path.is_file():
        return [], []
    try:
        steps, own = kept_steps.read(path)
    except ResultsError as error:
        return [], [(f"{key}/{path.name}", str(error))]
    same = {
        "weights": own["weights_sha256"] == record["weights_sha256"],
        "dtype": own["dtype"] == record["dtype"],
        "end": own["end"] == record["policies"]["end"],
        "convention": conventions.is_current(conventions.STEPS, own),
    }
    differs = [name for name, equal in same.items() if not equal]
    if differs:
        why = f"of another {' and '.join(differs)} than the rows: run 03_oracle_cutoffs again"
        return [], [(f"{key}/{path.name}", why)]
    return [vars(step) for step in steps], []


def _js(data: dict | str) -> str:
    """JSON in ASCII: as it stands, an expression of JavaScript."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)

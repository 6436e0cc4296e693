"""Data of the book's explorer page: stored rows and kept steps as small scripts, one a model.

A page opened from a file may load scripts but no data, so each model's data is a script that calls
a function of `book/assets/explorer_page.js`. Reads what is stored; loads no model.
"""

import json
import math
from pathlib import Path

import pandas as pd

from calib_utils import conventions, kept_steps, operating, panel
from calib_utils.cutoffs import TASKS, frontier_points
from calib_utils.errors import ResultsError
from calib_utils.figures import CAUSES, RULE_COLOURS, RULE_NAMES
from calib_utils.panel import PARTS
from calib_utils.registry import DEFAULT_MODEL
from calib_utils.results import Stored
from calib_utils.rules import TABLE3_TEMPERATURES, table3_rules
from calib_utils.schema import KEY

FOLDER = "explorer"  # below the built book's `_static`
MEASURES = ("validity", "diversity", "sequence_precision", "sequence_recall")
COLUMNS = (*KEY, *MEASURES, *PARTS, "on_frontier")
_ROUNDING = 1e-6  # nats: parts of a loss below that are rounding, as in the chapter's table
_DIGITS = 8  # of a number in a script; the page shows three


def write(results_dir: str | Path, folder: str | Path) -> pd.DataFrame:
    """Writes `index.js` and a script for each model with rows of the study of cutoffs.

    Returns:
        What was left out because it is broken, or of an older convention: columns folder, why.
    """
    folder, models, left_out = Path(folder), [], []
    folder.mkdir(parents=True, exist_ok=True)
    keys = panel.keys_in(results_dir) if Path(results_dir).is_dir() else []
    table = panel.models(keys).set_index("model")
    first = [key for key in table.index if key == DEFAULT_MODEL]
    for key, known in table.loc[[*first, *table.index.drop(first)]].iterrows():
        data, missing = model_data(results_dir, key)
        left_out += missing
        if data["tasks"]:
            _write(folder / f"model-{key}.js", f"calibUtilsModel({_js(key)},", data, ")")
            models.append({"key": key, "name": known["name"], "stage": known.stage})
    styles = {
        rule: {"label": RULE_NAMES[rule], "colour": RULE_COLOURS[rule]}
        for rule in dict.fromkeys(rule.name for rule in table3_rules())
    }
    causes = {cause: colour for cause, (colour, _) in CAUSES.items()}
    index = {"models": models, "rules": styles, "causes": causes, "columns": COLUMNS}
    _write(folder / "index.js", "globalThis.calibUtilsModels =", index, "")
    return pd.DataFrame(left_out, columns=["folder", "why"])


def model_data(results_dir: str | Path, key: str) -> tuple[dict, list[tuple[str, str]]]:
    """What the page shows of a model, and what was left out, as (folder, why).

    Returns:
        `tasks` by name: `rows` (columns `COLUMNS`; null where there is no number), `n_answers`,
        `prompt`, `end`, `dtype`, `weights` (SHA-256), `convention`, and `steps` as kept.
    """
    tasks, left_out = {}, []
    for task in TASKS:
        stored, missing = panel.study_of(results_dir, key, task)
        left_out += missing
        rows = _rows(stored, task) if stored else []
        if not rows:
            continue
        steps, missing = _steps(results_dir, key, task, stored.record)
        left_out += missing
        record = stored.record
        tasks[task] = {
            "prompt": record["prompt"],
            "end": record["policies"]["end"],
            "dtype": record["dtype"],
            "weights": record["weights_sha256"],
            "convention": record["convention"],
            "n_answers": int(stored.settings.n_answers.iloc[0]),
            "rows": rows,
            "steps": steps,
        }
    return {"tasks": tasks}, left_out


def _rows(stored: Stored, task: str) -> list[list]:
    """The settings of Table 3 and the oracle size, each with its loss split and its place."""
    asked = pd.DataFrame(
        [(rule.name, rule.parameter, t) for rule in table3_rules() for t in TABLE3_TEMPERATURES],
        columns=KEY,
    )
    table = asked.merge(stored.settings, on=KEY)
    if table.empty:
        return []
    split = operating.split_table(stored.losses.assign(task=task))[[*KEY, *PARTS]]
    parts = split[list(PARTS)]
    # Without a valid answer there is no loss to split, though its size part alone may be known.
    split[list(PARTS)] = parts.where(parts.abs() >= _ROUNDING, parts * 0).where(parts.total.notna())
    table = table.merge(split, on=KEY, how="left")
    best = frontier_points(table)[KEY].assign(on_frontier=1)
    table = table.merge(best, on=KEY, how="left")
    table["on_frontier"] = table.on_frontier.notna().astype(int)
    return [
        [_short(value) for value in row] for row in table[list(COLUMNS)].itertuples(index=False)
    ]


def _short(value):
    """A number in few digits that rounds to the same three as the stored one; null if none."""
    if isinstance(value, str | int):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return short if f"{short:.3g}" == f"{value:.3g}" else value


def _steps(
    results_dir: str | Path, key: str, task: str, record: dict
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Kept steps of the model file and the question that the task's rows are of."""
    path = kept_steps.path_of(results_dir, key, task)
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
    return [kept_steps.packed(step) for step in steps], []


def _write(path: Path, before: str, data: dict, after: str) -> None:
    path.write_text(f"{before} {_js(data)}{after};\n", encoding="utf-8")


def _js(data) -> str:
    """JSON in ASCII: as it stands, an expression of JavaScript."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)

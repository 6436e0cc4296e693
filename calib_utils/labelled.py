"""Labels of stored texts: each different text judged once, kept beside the texts, read again.

Knows judges and files. Kept labels stand for judging only while the texts, the judge and the
convention are the same, the judge's lists and version included; else they are made anew.
"""

import json
from pathlib import Path

import pandas as pd

from calib_utils import conventions, recorded
from calib_utils.errors import ResultsError
from calib_utils.labels import LABEL_COLUMNS
from calib_utils.nodes import unique_texts
from calib_utils.tasks import OpenPrompt

COLUMNS = ["prompt_id", "text", "ended", *LABEL_COLUMNS]
_AGAIN = "delete it, labels are made anew"


def path_of(results_dir: str | Path | None, model_key: str, name: str, judge) -> Path | None:
    """Where a judge's labels of the texts `name` of a model are kept."""
    if results_dir is None:
        return None
    return Path(results_dir) / model_key / "labels" / f"{name}@{judge.name}.parquet"


def labels_of(
    texts: pd.DataFrame, prompts: tuple[OpenPrompt, ...], judge, path: Path | None = None
) -> pd.DataFrame:
    """Each text of each prompt, labelled by a judge.

    Args:
        texts: prompt_id, category, text, ended; texts that are the same are judged once.
        prompts: those that the texts answer.
        judge: see `labels`; its `identity` says what a label depends on beside the text.
        path: where labels are kept; None keeps none.

    Returns:
        Columns `COLUMNS`, a row per prompt and text.

    Raises:
        ResultsError: the labels cannot be written.
    """
    asked = {prompt.id: prompt.prompt for prompt in prompts}
    items = unique_texts(texts)
    items["prompt"] = items.prompt_id.map(asked)
    keys = items[["prompt_id", "prompt", "text", "ended"]]
    record = {
        # A plain list of built-in types, so that the digest is of the texts, not of a data frame.
        "texts_sha256": conventions.digest(keys.astype(object).values.tolist()),
        "judge": {"name": judge.name, **judge.identity},
        "convention": conventions.CURRENT[conventions.LABELS],
    }
    found = None if path is None else _kept(path, record)
    if found is None:
        labels = judge.judge(items[["prompt", "text", "ended"]])
        found = pd.concat([items[["prompt_id", "text", "ended"]], labels], axis=1)[COLUMNS]
        if path is not None:
            recorded.write(path, found, record)
    return found


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept labels, and the record of what they were made from.

    Raises:
        ResultsError: not such a file, or not whole.
    """
    table, record = recorded.read(path, conventions.LABELS, (), _AGAIN)
    if missing := sorted(set(COLUMNS) - set(table)):
        raise ResultsError(f"{path} lacks {missing}: {_AGAIN}")
    return table, record


def _kept(path: Path, record: dict) -> pd.DataFrame | None:
    """The kept labels; None where there are none, of other texts or judge, or none readable."""
    try:
        frame, kept = read(path)
    except ResultsError:
        return None
    if kept != json.loads(json.dumps(record)):
        return None
    integers = {name: "Int64" for name in ("grammar", "semantics", "overall")}
    return frame.astype({**integers, "valid": "boolean"})

"""How far choices that the paper leaves open move the numbers: one table a task.

Knows the public chain; asks it for the same task under other conventions.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.evaluation import evaluate, request_for
from calib_utils.measure import untouched
from calib_utils.models import Model
from calib_utils.operating import split_table
from calib_utils.prompts import ENDS, Policies
from calib_utils.tasks import Task, get_task, paraphrases

# Longer answers have thousands of segmentations; these few show what they hold.
SHORTEST = 11
_OTHER_BATCH = 7


def sensitivity(
    model: Model, task: Task | str, *, end: str = "eos", results_dir: str | Path | None = None
) -> pd.DataFrame:
    """Val, Div and the split at T = 1 without cutoff, under one changed convention after another.

    Varied: dtype of the forward pass, batch size, end policy, wording of the prompt, and canonical
    against all tokenisations of the task's `SHORTEST` shortest answers.

    Args:
        end: the end policy of the first row and of all others but those that vary it.

    Returns:
        Rows of `task`, `variant`, validity, diversity, order, shape, size (nats; NaN where several
        segmentations an answer leave them undefined) and `against`, the row to compare with.
    """
    task = get_task(task)
    base = "as everywhere"
    rows = [
        {"variant": base, **_numbers(model, task, end, results_dir)},
        {
            "variant": f"batches of {_OTHER_BATCH}",
            **_numbers(model, task, end, None, batch_size=_OTHER_BATCH),
        },
    ]
    if model.dtype != "bfloat16":
        half = replace(model, dtype="bfloat16")
        vars(half)["tokenizer"] = model.tokenizer  # of the same files; reading them takes seconds
        rows.append({"variant": "bfloat16", **_numbers(half, task, end, results_dir)})
    for other in ENDS:
        if other != end:
            numbers = _numbers(model, task, other, results_dir)
            rows.append({"variant": f"end = {other}", **numbers})
    for number, other in enumerate(paraphrases(task), start=1):
        numbers = _numbers(model, other, end, results_dir)
        rows.append({"variant": f"paraphrase {number}", **numbers})
    rows = [{**row, "against": base} for row in rows]
    few = get_task(f"{task.name}-shortest-{min(SHORTEST, len(task.answers))}")
    label = f"{len(few.answers)} shortest answers"
    for tokenizations in ("canonical", "all"):
        table = evaluate(model, few, end=end, tokenizations=tokenizations, results_dir=results_dir)
        rows.append(
            {
                "variant": f"{label}, {tokenizations} tokenisations",
                "validity": table.validity[0],
                "diversity": table.diversity[0],
                **dict.fromkeys(("order", "shape", "size"), np.nan),
                "against": f"{label}, canonical tokenisations",
            }
        )
    return pd.DataFrame(rows).assign(task=task.name)[
        ["task", "variant", "validity", "diversity", "order", "shape", "size", "against"]
    ]


def _numbers(model: Model, task: Task, end: str, results_dir, batch_size=None) -> dict:
    request = request_for(model, task, Policies(end), batch_size, results_dir)
    found = request.tables(untouched([1.0]), losses=True)
    split = split_table(found.losses.assign(task=task.name)).iloc[0]
    return {
        "validity": found.settings.validity[0],
        "diversity": found.settings.diversity[0],
        **split[["order", "shape", "size"]],
    }


def largest_moves(table: pd.DataFrame) -> pd.DataFrame:
    """For each kind of choice, how far it moves each number at most.

    Args:
        table: of `sensitivity`, one task or several.

    Returns:
        Per task and kind: the largest absolute change against the row to compare with.
    """
    numbers = ["validity", "diversity", "order", "shape", "size"]
    reference = table[["task", "variant", *numbers]]
    both = table.merge(
        reference, left_on=["task", "against"], right_on=["task", "variant"], suffixes=("", "_ref")
    )
    both = both[both.variant != both.against]
    kind = both.variant.str.replace(r"(paraphrase|end) .*", r"\1", regex=True)
    kind = kind.str.replace(r".* answers, all .*", "all tokenisations", regex=True)
    kind = kind.str.replace(r"batches of .*", "batch size", regex=True)
    moves = pd.DataFrame({n: (both[n] - both[f"{n}_ref"]).abs() for n in numbers})
    moves.insert(0, "choice", kind)
    moves.insert(0, "task", both.task)
    return moves.groupby(["task", "choice"], sort=False).max().reset_index()

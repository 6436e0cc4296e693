"""Single decoding steps kept beside a model's tables, for the book's page that loads no model.

Knows one file a task and what it stands for. Steps are computed anew whenever their chapter runs;
a file changes only when they do, by more than machines differ in float32.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from calib_utils import conventions, files, paths, recorded
from calib_utils.errors import ResultsError
from calib_utils.explorer import StepData, steps_along
from calib_utils.models import Model

FOLDER = conventions.STEPS
# The answer that the steps of a task lie along: one that leaves something open after its beginning.
ANSWERS = {
    "us-states": "New York",
    "rng-2": "4,7",
    "rng-3": "4,7,1",
    "rng-3-sum-at-most-10": "3,4,2",
}
_ROUNDING = 0.01  # in logits: what float32 kernels of two machines differ by, with room


def path_of(results_dir: str | Path, model_key: str, task: str) -> Path:
    """Where a model's steps of a task are kept."""
    return Path(results_dir) / model_key / FOLDER / f"{task}.json"


def keep(
    model: Model, tasks: Iterable[str], end: str, results_dir: str | Path
) -> dict[str, list[StepData]]:
    """Computes the steps of those tasks that `ANSWERS` names, and keeps them.

    Args:
        end: what closes an answer.

    Returns:
        The steps by task, in the order of the answer.

    Raises:
        ResultsError: steps of other weights hold the place, or it cannot be written.
    """
    found = {}
    for task in (name for name in tasks if name in ANSWERS):
        steps = found[task] = steps_along(model, task, ANSWERS[task], end)
        record = {**recorded.of_model(model), "task": task, "end": end}
        record["convention"] = conventions.CURRENT[FOLDER]
        path = path_of(results_dir, model.key, task)
        if path.exists():
            kept, old = read(path)
            conventions.require_same(path, FOLDER, old, record)
            if old == record and len(kept) == len(steps) and all(map(alike, kept, steps)):
                continue
        lines = ",\n".join(step.to_json() for step in steps)
        head = json.dumps(record, sort_keys=True)
        text = f'{{"record": {head},\n"steps": [\n{lines}\n]}}\n'
        try:
            files.keep(path, text.encode())
        except OSError as error:
            raise recorded.unwritable(path, error) from error
    return found


def read(path: Path) -> tuple[list[StepData], dict]:
    """Kept steps, and the record of what they are of.

    Raises:
        ResultsError: not such a file, or steps that cannot be.
    """
    paths.note_read(path)
    why = "it is incomplete"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record, steps = content["record"], [StepData.from_json(one) for one in content["steps"]]
        named = {*conventions.IDENTITY[FOLDER], "model", "revision"} <= set(record)
        tasks = {record["task"], path.stem, *(step.task for step in steps)}
        if steps and named and len(tasks) == 1 and all(map(_complete, steps)):
            return steps, record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = type(error).__name__
    raise ResultsError(f"{path} holds no steps ({why}): delete it and run 03_oracle_cutoffs")


def _complete(step: StepData) -> bool:
    """Ranks and gaps ascend, and every token of the vocabulary is counted once."""
    listed = step.tokens[: step.n_listed]
    gaps = [token.gap for token in listed] + [part.first for part in step.tail]
    n_tokens = step.n_listed + sum(part.count for part in step.tail)
    ranks = [token.rank for token in listed]
    return ranks == list(range(step.n_listed)) and gaps == sorted(gaps) and n_tokens == step.n_vocab


def alike(one: StepData, other: StepData) -> bool:
    """Whether two steps are the same up to rounding, in which near ties may change places."""

    def facts(step: StepData) -> tuple:
        valid = sorted((t.text, t.n_answers, t.gap) for t in step.tokens if t.n_answers)
        names = [(text, n_answers) for text, n_answers, _ in valid]
        same = (step.model, step.task, step.prompt, step.prefix, step.n_vocab, step.n_listed, names)
        gaps = [token.gap for token in step.tokens[: step.n_listed]]
        return same, np.array(gaps + [gap for *_, gap in valid])

    (same, gaps), (same_other, gaps_other) = facts(one), facts(other)
    return same == same_other and bool(np.abs(gaps - gaps_other).max() <= _ROUNDING)

"""Single decoding steps kept beside a model's tables, for the book's page that loads no model.

Knows one file a task and what it stands for. Steps are computed anew whenever their chapter runs;
a file changes only when they do, by more than machines differ in float32.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np

from calib_utils import conventions, files, paths, recorded
from calib_utils.errors import ResultsError
from calib_utils.explorer import Bin, StepData, Token, steps_along
from calib_utils.models import Model

FOLDER = conventions.STEPS
# The answer that the steps of a task lie along: one that leaves something open after its beginning.
ANSWERS = {
    "us-states": "New York",
    "rng-2": "4,7",
    "rng-3": "4,7,1",
    "rng-3-sum-at-most-10": "3,4,2",
}
_AGAIN = "delete it and run 03_oracle_cutoffs"
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
        found[task] = steps_along(model, task, ANSWERS[task], end)
        record = {**recorded.of_model(model), "task": task, "end": end}
        record["convention"] = conventions.CURRENT[FOLDER]
        _keep(found[task], record, path_of(results_dir, model.key, task))
    return found


def read(path: Path) -> tuple[list[StepData], dict]:
    """Kept steps, and the record of what they are of.

    Raises:
        ResultsError: not such a file, or steps that cannot be.
    """
    paths.note_read(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record, steps = content["record"], [unpacked(step) for step in content["steps"]]
        missing = {*conventions.IDENTITY[FOLDER], "model", "revision"} - set(record)
        wrong = [step for step in steps if step.task != record.get("task") or not _possible(step)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path} holds no steps ({type(error).__name__}): {_AGAIN}") from error
    if missing or wrong or not steps or record["task"] != path.stem:
        raise ResultsError(f"{path} holds no possible steps with their record: {_AGAIN}")
    return steps, record


def packed(step: StepData) -> dict:
    """A step as JSON holds it: tokens and bins without their field names, a third of the size."""
    rows = {name: [astuple(part) for part in getattr(step, name)] for name in ("tokens", "tail")}
    return asdict(step) | rows


def unpacked(content: dict) -> StepData:
    """The step that `packed` packed; raises TypeError where fields are missing or too many."""
    tokens = tuple(Token(*row) for row in content["tokens"])
    return StepData(**content | {"tokens": tokens, "tail": tuple(Bin(*r) for r in content["tail"])})


def _possible(step: StepData) -> bool:
    """Ranks complete, gaps from 0 upwards, every token of the vocabulary counted once."""
    gaps = [token.gap for token in step.tokens if token.rank < step.n_listed]
    gaps += [part.first for part in step.tail]
    ranks = [token.rank for token in step.tokens]
    return (
        ranks[: step.n_listed] == list(range(step.n_listed))
        and step.n_listed + sum(part.count for part in step.tail) == step.n_vocab
        and any(token.n_answers > 0 for token in step.tokens)
        and all(token.n_answers >= 0 for token in step.tokens)
        and gaps[0] == 0
        and bool(np.isfinite(gaps).all() and (np.diff(gaps) >= 0).all())
    )


def _keep(steps: list[StepData], record: dict, path: Path) -> None:
    if path.exists():
        kept, old = read(path)
        conventions.require_same(path, FOLDER, old, record)
        if old == record and len(kept) == len(steps) and all(map(_alike, kept, steps)):
            return
    lines = (json.dumps(packed(step), separators=(",", ":")) for step in steps)
    head = json.dumps(record, sort_keys=True)
    text = '{"record": ' + head + ',\n"steps": [\n' + ",\n".join(lines) + "\n]}\n"
    try:
        files.keep(path, text.encode())
    except OSError as error:
        raise recorded.unwritable(path, error) from error


def _alike(one: StepData, other: StepData) -> bool:
    """The same step up to rounding, in which near ties may change places."""

    def facts(step: StepData) -> tuple:
        valid = sorted((t.text, t.n_answers, t.gap) for t in step.tokens if t.n_answers)
        names = [(text, n_answers) for text, n_answers, _ in valid]
        same = (step.model, step.task, step.prompt, step.prefix, step.n_vocab, step.n_listed, names)
        listed = [token.gap for token in step.tokens if token.rank < step.n_listed]
        return same, np.array([*listed, *(gap for *_, gap in valid)])

    (same, gaps), (same_other, gaps_other) = facts(one), facts(other)
    return same == same_other and bool(np.abs(gaps - gaps_other).max() <= _ROUNDING)

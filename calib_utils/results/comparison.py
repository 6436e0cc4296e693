"""Many models, tasks and settings at once: one table, paired differences, checkpoints of a run.

Asks `evaluation` for every row. Everything is checked before the first weights are loaded, and one
model's weights are held at a time.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from calib_utils import files
from calib_utils.core.metrics import cluster_interval
from calib_utils.core.processors import check_rules, check_temperatures
from calib_utils.core.rules import Sampler
from calib_utils.core.tasks import Task, closed_lists, get_task
from calib_utils.errors import InvalidRequestError
from calib_utils.models.loading import Model, load_model
from calib_utils.results.evaluation import PARTS, can_be_split, evaluate, render_prompt, split
from calib_utils.results.storage import KEY

_MEASURES = ["validity", "diversity", *PARTS]
_SMALL = 20  # answers
_POLICIES = ("end", "tokenizations", "surface")


def small_tasks() -> list[str]:
    """The closed lists of at most `_SMALL` answers: quick, and enough tasks for an interval."""
    return [name for name, own in closed_lists().items() if own["task"] and own["n"] <= _SMALL]


def evaluate_many(
    models: Iterable[Model | str],
    tasks: Iterable[Task | str],
    rules: Iterable[Sampler | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    *,
    parts: bool | None = False,
    **options,
) -> pd.DataFrame:
    """The rows of `evaluate` for every model on every task, model by model.

    Args:
        parts: with what `split` adds; None where all rules and answers allow it.
        options: the others of `evaluate`; with parts, not `answer_temperatures` and `details`.

    Raises:
        CalibUtilsError: a named subclass, before any weights are loaded wherever possible.
        InvalidRequestError: a model or task given twice.
    """
    rules, temperatures = check_rules(rules), check_temperatures(temperatures)
    tasks = [get_task(task) for task in tasks]
    _require_distinct("task", [task.name for task in tasks])
    models = load_many(models)
    policies = {name: options[name] for name in _POLICIES if name in options}
    asked = [render_prompt(model, task, **policies) for model in models for task in tasks]
    if parts is None:
        single = (len(own.sequences.symbols) == own.trie.n_answers for own in asked)
        parts = all(map(can_be_split, rules)) and all(single)
    one, rows = split if parts else evaluate, []
    for model in models:
        held = "network" in vars(model)
        rows += [one(model, task, rules, temperatures, **options) for task in tasks]
        if not held:  # its weights go before the next model's come
            vars(model).pop("network", None)
    return pd.concat(rows, ignore_index=True)


def load_many(names: Iterable[Model | str], **settings) -> list[Model]:
    """`load_model` of each; local ones of one name are called by their folder's parent as well.

    Raises:
        InvalidRequestError: a model given twice.
    """
    models = [load_model(name, **settings) for name in names]
    keys = [model.key for model in models]
    for place, model in enumerate(models):
        if keys.count(model.key) > 1 and model.revision is None:
            run = model.folder.resolve().parent.name
            name, key = f"{run}/{model.name}", f"{run}--{model.key}"
            models[place] = replace(model, name=name, key=key)
    _require_distinct("model", [model.name for model in models])
    return models


def _require_distinct(what: str, names: list[str]) -> None:
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidRequestError(f"{what} {sorted(twice)[0]!r} is given twice: leave one out")


def differences(table: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Second less first model of every pair, setting by setting, paired by task.

    Args:
        table: rows of `evaluate_many` that hold each pair's models on the same tasks.
        pairs: names as in its column `model`.

    Returns:
        A row per pair, setting and measure: first, second, rule, parameter, temperature, measure,
        difference (the mean over tasks), low and high (95 % by bootstrap over tasks; NaN with fewer
        than three), larger_on and n_tasks. A task where one of both is NaN is left out.
    """
    measures, rows = [name for name in _MEASURES if name in table], []
    for first, second in pairs:
        sides = [table[table.model == name] for name in (first, second)]
        both = sides[0].merge(sides[1], on=["task", *KEY], suffixes=("", "_second"))
        for setting, own in both.groupby(KEY, sort=False, dropna=False):
            named = {"first": first, "second": second, **dict(zip(KEY, setting, strict=True))}
            for name in measures:
                apart = own.assign(difference=own[f"{name}_second"] - own[name])
                found = cluster_interval(apart, "difference", outer="task", inner=None)
                rows.append(
                    {
                        **named,
                        "measure": name,
                        **{"difference": found.mean, "low": found.low, "high": found.high},
                        "larger_on": int((apart.difference > 0).sum()),
                        "n_tasks": found.n_outer,
                    }
                )
    return pd.DataFrame(rows)


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Pairs of models from a JSON or YAML file: a list of [base, tuned].

    Raises:
        InvalidRequestError: another content, or a file that cannot be read.
    """
    try:
        given = files.written_by_hand(path)
        if not given or not all(type(p) is list and [*map(type, p)] == [str, str] for p in given):
            raise ValueError("not a list of pairs of names")
        return [tuple(pair) for pair in given]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(
            f"pairs in {str(path)!r} are unreadable ({type(error).__name__}: {error}): it must be "
            "JSON or YAML like [[base, tuned], [base, tuned]]"
        ) from error


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """The model folders of a training run by the step that ends their names, in its order.

    Raises:
        InvalidRequestError: no folder, no model folder with a number in it, or a step twice.
    """
    folder, found = Path(folder).expanduser(), {}
    for path in sorted(folder.glob("*/config.json")):
        path = path.parent
        if not (numbers := re.findall(r"\d+", path.name)):
            continue
        if (step := int(numbers[-1])) in found:
            raise InvalidRequestError(
                f"{folder}: {found[step].name} and {path.name} are both of step {step}: move one"
            )
        found[step] = path
    if not found:
        raise InvalidRequestError(
            f"{folder} holds no checkpoints: they are folders with a config.json and a number in "
            "their names, such as checkpoint-1000"
        )
    return dict(sorted(found.items()))

"""The public way to a number: check what is asked, then have `store` reuse it or measure it.

Knows the whole chain by name; computes nothing itself.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from calib_utils import prompts, results
from calib_utils.errors import (
    InvalidRequestError,
    InvalidRuleError,
    ResultsError,
    whole_number,
)
from calib_utils.measure import Settings
from calib_utils.models import Model, load_model
from calib_utils.parsing import check_rules, check_temperatures
from calib_utils.processors import Processors
from calib_utils.prompts import Policies, Prompt
from calib_utils.rules import Rule, Sampler
from calib_utils.store import Request
from calib_utils.tasks import Task, get_task


def evaluate(
    model: Model | str,
    task: Task | str,
    rules: Iterable[Sampler | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    *,
    answer_temperatures: Sequence[float] = (),
    details: bool = False,
    end: str = "eos",
    tokenizations: str = "canonical",
    surface: str = "exact",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Exact validity and diversity of a model on a task, for every rule and temperature.

    Args:
        model: a loaded model, or a name for `load_model`.
        task: a task, or a name for `get_task`.
        rules: cutoffs, as objects or as strings such as `"top_k=50"`; or `Processors` around
            logits processors of transformers, whose rows are computed now and never stored.
        temperatures: each above 0; applied before the cutoff.
        answer_temperatures: where to store ln p of every answer as well, in the same pass, for
            `answer_probabilities` to find in `results_dir`.
        details: in the same pass, store also what `step_losses` and `adaptive_frontier` return.
        end, tokenizations, surface: what counts as an answer, see `prompts.Policies`.
        batch_size: nodes per forward pass; chosen for the device by default.
        results_dir: where to look for rows of the same weights, task and conventions, and to
            store new ones. Without it everything is computed now and nothing is kept.

    Returns:
        One row per (rule, temperature) with the columns of `results.COLUMNS`: validity and
        diversity (Def. 3.1), sequence precision and recall (Def. 4.1), |V| and trie nodes.

    Raises:
        CalibUtilsError: a named subclass, before the model runs wherever possible.
    """
    settings = _settings(rules, temperatures)
    none = isinstance(answer_temperatures, Sequence) and not answer_temperatures
    also = [] if none else check_temperatures(answer_temperatures)
    request = request_for(
        model, task, Policies(end, tokenizations, surface), batch_size, results_dir
    )
    return request.tables(settings, also, losses=details, frontier=details).settings


def answer_probabilities(
    model: Model | str,
    task: Task | str,
    temperatures: Sequence[float] = (1.0,),
    *,
    end: str = "eos",
    tokenizations: str = "canonical",
    surface: str = "exact",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """ln p of every valid answer under temperature alone: columns answer, temperature, log_p.

    The arguments are those of `evaluate`. Answers come in the task's order (Fig. 5 right, 10).
    """
    temperatures = check_temperatures(temperatures)
    request = request_for(
        model, task, Policies(end, tokenizations, surface), batch_size, results_dir
    )
    return request.tables([], temperatures).answers


def step_losses(
    model: Model | str,
    task: Task | str,
    rules: Iterable[Rule | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    *,
    end: str = "eos",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """What each step of an answer loses of validity and of diversity, as measured and repaired.

    The arguments are those of `evaluate`; rules that keep no top prefix of the ranking are refused.

    Returns:
        One row per setting, repair and step, in nats. Over steps `validity_loss` sums to -ln Val
        and `diversity_loss` to -ln Div of the repaired decoder (`split`, `steps.Steps`).

    Raises:
        InvalidRuleError: a sampler whose order cannot be repaired.
    """
    settings = _settings(rules, temperatures)
    for sampler, _ in settings:
        if not getattr(sampler, "is_rank_cutoff", False):
            raise InvalidRuleError(
                f"{sampler.key!r} keeps no top prefix of the ranking, so order and shape are not "
                "told apart for it: leave it out"
            )
    request = request_for(model, task, Policies(end), batch_size, results_dir)
    return request.tables(settings, losses=True).losses


def adaptive_frontier(
    model: Model | str,
    task: Task | str,
    *,
    end: str = "eos",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """The best sequence precision and recall that any adaptive rank cutoff reaches (Def. 4.1).

    Returns:
        The supported points, columns sequence_precision and sequence_recall: corners of the convex
        hull, each attained; no temperature changes them.
    """
    request = request_for(model, task, Policies(end), batch_size, results_dir)
    return request.tables([], frontier=True).frontier


def render_prompt(model: Model | str, task: Task | str, **policies: str) -> Prompt:
    """The prompt text, its ids and the answers' trie, as `evaluate` uses them."""
    return prompts.render(load_model(model).tokenizer, get_task(task), Policies(**policies))


def show_prompt(model: Model | str, task: Task | str, **policies: str) -> None:
    """Prints exactly what the model sees for a task, and how its answers become tokens."""
    model, task, policies = load_model(model), get_task(task), Policies(**policies)
    prompt = prompts.render(model.tokenizer, task, policies)
    print(prompts.describe(model.tokenizer, task, prompt, policies))


def stored_measurement(
    model: Model | str, task: Task | str, results_dir: str | Path, end: str = "eos"
) -> results.Stored:
    """What is stored for a model and task under these conventions, record included.

    Raises:
        ResultsError: nothing is stored, or it is corrupt.
    """
    key, name = load_model(model).key, get_task(task).name
    if not isinstance(results_dir, str | Path):
        raise InvalidRequestError(f"results_dir={results_dir!r}: give a folder's path")
    folder = results.folder_of(Path(results_dir), key, name, Policies(end).suffix)
    stored = results.read(folder)
    if stored is None:
        raise ResultsError(f"nothing is stored in {folder}: run evaluate with this results_dir")
    return stored


def _settings(rules, temperatures) -> Settings:
    """Every rule at every temperature."""
    rules, temperatures = check_rules(rules), check_temperatures(temperatures)
    for rule in rules:
        if isinstance(rule, Processors) and rule.temperature_at is None and temperatures != [1.0]:
            raise InvalidRuleError(
                f"sampler {rule.name!r} leaves temperature to its processors: evaluate it at "
                f"temperature 1.0, not {temperatures}, or set temperature_at"
            )
    return [(rule, temperature) for rule in rules for temperature in temperatures]


def request_for(
    model: Model | str,
    task: Task | str,
    policies: Policies,
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> Request:
    """What the functions of this module ask `store` with, checked.

    Raises:
        InvalidRequestError: a batch size that is none.
    """
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size)
    if not isinstance(results_dir, str | Path | None) or results_dir == "":
        raise InvalidRequestError(f"results_dir={results_dir!r}: give a folder's path, or None")
    task, model = get_task(task), load_model(model)
    folder = None
    if results_dir is not None:
        suffix = policies.suffix + (f"@dtype={model.dtype}" if model.dtype != "float32" else "")
        folder = results.folder_of(Path(results_dir), model.key, task.name, suffix)
    prompt = prompts.render(model.tokenizer, task, policies)
    return Request(model, task, policies, prompt, batch_size, folder)

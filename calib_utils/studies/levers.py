"""The study of levers: what a user can turn to get more of the valid answers, and what it buys.

Wordings of the prompt, a random string in it, mixtures of prompts, temperature and the cutoffs of
Table 3, on the closed lists, where validity and diversity are exact, mixtures among them. Knows
which prompts and settings are tried; measures through `results.evaluation`.
"""

import hashlib
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from calib_utils.core import metrics
from calib_utils.core.metrics import as_text, best_by_budget, cluster_interval
from calib_utils.core.processors import parse_rule
from calib_utils.core.prompts import Policies
from calib_utils.core.rules import rule_name
from calib_utils.core.tasks import Task, closed_lists, get_task, wordings
from calib_utils.errors import ResultsError
from calib_utils.models.loading import Model
from calib_utils.results import conventions, records
from calib_utils.results.evaluation import answer_probabilities, keys, render_prompt
from calib_utils.results.storage import KEY
from calib_utils.studies import oracle_cutoffs
from calib_utils.studies.controlled_tasks import LISTS
from calib_utils.studies.reporting import Page, able, mean_text, stacked, without_small_intervals

MOST = 100  # answers: the longest lists would take as long as all the others
TASKS = tuple(name for name in LISTS if closed_lists()[name]["n"] <= MOST)
QUICK_TASKS = TASKS[:2]
TEMPERATURES = (0.6, 0.8, 1.0, 1.3, 1.6)
N_SEEDS = 6  # random strings in the standard wording
LEVELS = (0.8, 0.95)
BUDGET = 5  # settings that a user tries; the smallest lever has as many
ALONE = "as it is"
NOTHING = "There is nothing to show: no list has a setting that is valid enough for this model."
_STANDARD = "wording 0"
_AGAIN = "delete it and run 08_levers"
_COLUMNS = ["variant", "temperature", "answer", "log_p"]
_BOTH = ["validity", "diversity"]
# Samplers as engines and models ship them, beside the grid.
DEFAULTS = {
    "transformers": ("top_k=50", 1.0),
    "vLLM, OpenAI's API": ("none", 1.0),
    "llama.cpp": ("top_k=40+top_p=0.95+min_p=0.05@llama.cpp", 0.8),
    "Qwen2.5's own": ("top_k=20+top_p=0.8", 0.7),
}


def prompts_of(task: str) -> dict[str, Task]:
    """The prompts tried on a task: its wordings, and the standard one with a random string."""
    standard = get_task(task)
    found = {_STANDARD: standard}
    found |= {f"wording {k}": get_task(f"{task}-wording-{k}") for k in range(1, len(wordings()))}
    for k in range(1, N_SEEDS + 1):
        drawn = hashlib.sha256(f"{task} {k}".encode()).hexdigest()[:12]
        prompt = f"{standard.prompt}\nRandom seed: {drawn}"
        found[f"seed {k}"] = Task(f"{task}-seed-{k}", prompt, standard.answers)
    return found


def answers(page: Page, tasks: Iterable[str] = TASKS) -> pd.DataFrame:
    """ln p of every answer of every task under each of its prompts, at `TEMPERATURES`.

    Kept as one file a task, so a run that was stopped goes on where it was. Columns task, variant,
    temperature, answer (its number), log_p (nats, float32).
    """
    waited_for = tqdm(list(tasks), desc="prompts", unit="task", leave=False, delay=1)
    tables = {task: answers_of(page.model, task, page.end, page.store) for task in waited_for}
    return stacked(tables, ["task"], _COLUMNS)


def answers_of(
    model: Model, task: str, end: str = "eos", results_dir: Path | None = None
) -> pd.DataFrame:
    """`answers` of one task, without the column `task`."""
    prompts, path = prompts_of(task), None
    if results_dir is not None:
        file = f"{task}{Policies(end=end).suffix}.parquet"
        path = Path(results_dir) / model.key / conventions.LEVERS / file
    asked = {name: render_prompt(model, own, end=end) for name, own in prompts.items()}
    parts = [[name, one.ids, one.sequences.fingerprint()] for name, one in asked.items()]
    record = {**records.of_model(model), "weights_file": model.weights_file, "task": task}
    record |= {"end": end, "prompts_sha256": conventions.digest(parts)}
    record |= {"convention": conventions.CURRENT[conventions.LEVERS]}
    if path is not None and path.exists():
        table, stored = read(path)
        conventions.require_same(path, conventions.LEVERS, stored, record)
        if conventions.is_current(conventions.LEVERS, stored):
            return table
    began, tables = time.perf_counter(), []
    for name, own in prompts.items():
        found = answer_probabilities(model, own, TEMPERATURES, end=end)
        number = np.tile(np.arange(len(own.answers), dtype=np.int16), len(TEMPERATURES))
        tables.append(found.assign(variant=name, answer=number)[_COLUMNS])
    table = pd.concat(tables, ignore_index=True).astype({"log_p": np.float32})
    if path is not None:
        record |= {"seconds": round(time.perf_counter() - began, 2)}
        record |= {"environment": conventions.environment(model.device)}
        records.write(path, table, record)
    return table


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """What is kept of one task, and its record; a ResultsError where it cannot be."""
    needed = ("model", "revision", "task", "end", "seconds", "environment")
    table, record = records.read(path, conventions.LEVERS, needed, _AGAIN)
    with suppress(KeyError, TypeError, ValueError):
        if list(table) == _COLUMNS and (table.log_p <= 1e-6).all():
            totals = np.exp(table.log_p.astype(float)).groupby([table.variant, table.temperature])
            if len(table) and (totals.sum() <= 1 + 1e-5).all():
                return table, record
    raise ResultsError(f"{path} holds no possible log-probabilities: {_AGAIN}")


def settings(page: Page, tasks: Iterable[str] = TASKS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of `evaluate` on the standard wording: Table 3, without the oracle, which nobody has.

    And those of the samplers that engines ship, with a column `engine`, from the same passes.
    """
    shipped = [(parse_rule(rule), temperature) for rule, temperature in DEFAULTS.values()]
    table = oracle_cutoffs.list_rows(page, tasks, shipped)
    parts = [
        table.merge(keys([setting]), on=KEY).assign(engine=engine)
        for engine, setting in zip(DEFAULTS, shipped, strict=True)
    ]
    grid = oracle_cutoffs.in_study(table)
    return grid[grid.rule.isin(oracle_cutoffs.PRACTICAL)], pd.concat(parts, ignore_index=True)


# Arithmetic: tables in, tables out.


def _val_div(log_p: pd.Series) -> tuple[float, float]:
    """Validity and diversity of ln p [answer]."""
    column = log_p.to_numpy(float)[:, None]
    return float(metrics.validity(column)[0]), float(metrics.diversity(column)[0])


def levers(found: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Every setting of every lever on every task: task, lever, setting, validity, diversity.

    Of `answers` and the first table of `settings`. A mixture draws one of its prompts at random for
    each answer, so its probabilities are the means of its prompts'.
    """
    rows = []
    for (task, temperature), at in found.groupby(["task", "temperature"], sort=False):
        log_p = at.pivot(index="answer", columns="variant", values="log_p")
        said, seeds = (log_p.filter(regex=f"^{kind}") for kind in ("wording", "seed"))
        for name, own in said.items():
            setting = (task, f"{name}, T={temperature:g}", *_val_div(own))
            if temperature == 1:
                rows.append(("wording", *setting))
                rows += [(ALONE, *setting)] * (name == _STANDARD)
            rows.append(("wording and temperature", *setting))
        for lever, names in (("mixture of wordings", said), ("mixture of seeds", seeds)):
            mixed = np.log(np.exp(names.astype(float)).mean(axis=1))
            rows.append((lever, task, f"T={temperature:g}", *_val_div(mixed)))
    rules = table[["task", *_BOTH]].assign(
        lever=table.rule.replace("none", "temperature"),
        setting=oracle_cutoffs.setting_text(table),
    )
    both = [pd.DataFrame(rows, columns=["lever", "task", "setting", *_BOTH]), rules]
    return pd.concat(both, ignore_index=True)[["task", "lever", "setting", *_BOTH]]


def done(settings: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The tasks that the model can do under some setting, and those that it cannot."""
    return able(settings)


def best(settings: pd.DataFrame, level: float) -> pd.DataFrame:
    """Each lever's best diversity at a validity with `BUDGET` settings tried: a row per task.

    The exact expectation over which settings of the lever are tried, 0 counted where none is valid
    enough; a column per lever.
    """
    rows = {}
    for task, own in settings.groupby("task", sort=False):
        curve = best_by_budget(own, level, by="lever").query("budget <= @BUDGET")
        # A lever of one setting has no more to try.
        rows[task] = curve.groupby("lever", sort=False)["mean"].last()
    return pd.DataFrame(rows).T.rename_axis("task")


def compared(settings: pd.DataFrame, levels: Iterable[float] = LEVELS) -> pd.DataFrame:
    """Each lever over all tasks that the model can do, with intervals over tasks.

    Columns: level, lever, tasks (with a setting valid enough), diversity with _low, _high, and what
    it gains over temperature alone (gain, gain_low, gain_high).
    """
    can, _ = done(settings)
    own, rows = settings[settings.task.isin(can)], []
    for level in levels if can else ():
        wide = best(own, level)
        for lever in wide:
            row = {"level": level, "lever": lever, "n": len(wide)}
            row["tasks"] = f"{int((wide[lever] > 0).sum())} of {len(wide)}"
            apart = {"diversity": wide[lever], "gain": wide[lever] - wide.temperature}
            table = pd.DataFrame(apart).reset_index()
            for name in apart:
                row |= cluster_interval(table, name, "task", None).columns(name)
            rows.append(row)
    bounds = [f"{name}{end}" for name in ("diversity", "gain") for end in ("", "_low", "_high")]
    found = pd.DataFrame(rows, columns=["level", "lever", "n", "tasks", *bounds])
    found = without_small_intervals(found, "n").drop(columns="n")
    return found.sort_values(["level", "diversity"], ascending=[True, False], ignore_index=True)


def cards(table: pd.DataFrame, shipped: pd.DataFrame) -> pd.DataFrame:
    """Where each sampler of `settings` stands over the tasks that the model can do.

    Mean validity and diversity with intervals over tasks, and on how many tasks it is valid enough.
    Of a family of Table 3, for each of `LEVELS`, the setting with the highest mean diversity among
    those that are valid enough on most tasks.
    """
    can, rows = done(table)[0], []
    for engine, own in shipped[shipped.task.isin(can)].groupby("engine", sort=False):
        rule, temperature = DEFAULTS[engine]
        rows.append({"sampler": engine, "setting": f"{rule}, T={temperature:g}", **_standing(own)})
    own = table[table.task.isin(can)]
    own = own.assign(setting=oracle_cutoffs.setting_text(own))
    for rule, family in own.groupby("rule", sort=False):
        chosen: dict[str, list[str]] = {}
        for level in LEVELS:
            enough = (family.validity >= level).groupby(family.setting).mean() > 0.5
            usable = family[family.setting.map(enough)].groupby("setting", sort=False)
            most = usable.diversity.mean().idxmax() if enough.any() else "none is valid enough"
            chosen.setdefault(most, []).append(f"{level:g}")
        for setting, levels in chosen.items():
            row = {"sampler": rule_name(rule), "setting": setting, "best for": " and ".join(levels)}
            at = family[family.setting == setting]
            rows.append(row | _standing(at) if len(at) else row)
    return pd.DataFrame(rows)


def _standing(own: pd.DataFrame) -> dict:
    row = {name: mean_text(own, name, "task") for name in _BOTH}
    for level in LEVELS:
        row[f"Val ≥ {level:g}"] = f"{int((own.validity >= level).sum())} of {len(own)}"
    return row


def before_and_after(settings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every task that the model can do as it is, and at its most diverse setting of a validity."""
    own = settings[settings.task.isin(done(settings)[0])]
    usable = own[own.validity >= LEVELS[0]]
    most = usable.loc[usable.groupby("task", sort=False).diversity.idxmax()]
    return own[own.lever == ALONE].set_index("task"), most.set_index("task")


def choices(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """`before_and_after` as a table: a row per task."""
    wide = before[_BOTH].add_prefix("as it is, ").join(after[["lever", "setting", *_BOTH]])
    return wide.reset_index().fillna({"lever": "none valid enough", "setting": ""})


def headline(compared: pd.DataFrame, settings: pd.DataFrame, asked: int) -> dict[str, str]:
    """What the page's first lines quote, `asked` the number of lists."""
    can, _ = done(settings)
    said = {"able": f"{len(can)} of {asked}", "budget": str(BUDGET)}
    for level, suffix in zip(LEVELS, ("", "_95"), strict=True):
        own = compared[compared.level == level].set_index("lever")
        most = own.diversity.idxmax() if (own.diversity > 0).any() else "none of them"
        said |= {f"best_lever{suffix}": rule_name(rule_of(most))}
        said |= {f"best_diversity{suffix}": _told(own, most)}
        if not suffix:
            cutoff = own.diversity.reindex(["top_k", "top_p", "min_p"]).fillna(0.0).idxmax()
            said |= {"best_sampler": rule_name(cutoff), "sampler_diversity": _told(own, cutoff)}
            said |= {"temperature_diversity": _told(own, "temperature")}
    before = settings[(settings.lever == ALONE) & settings.task.isin(can)]
    return said | {f"alone_{name}": mean_text(before, name, "task") for name in _BOTH}


def rule_of(lever: str) -> str:
    """The cutoff that a lever is, by its family; any other lever as it is."""
    return "none" if lever == "temperature" else lever


def _told(own: pd.DataFrame, lever: str) -> str:
    """A lever's diversity with its interval."""
    if lever not in own.index or not own.diversity[lever]:
        return "none that is valid enough"
    return as_text(*own.loc[lever, ["diversity", "diversity_low", "diversity_high"]])

"""One pass over a task for the formal framework: what its definitions and theorems ask of a model.

Ranks of the valid tokens, the factors of every setting, and what these settings give. Kept beside
the model's rows, since a pass is the only costly part of the chapter. Knows no table for people.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import conventions, provenance, recorded, theory
from calib_utils.controlled import CURVE_TEMPERATURES
from calib_utils.errors import ResultsError
from calib_utils.evaluation import request_for
from calib_utils.measure import Settings, measure, untouched
from calib_utils.models import Model
from calib_utils.prompts import Policies
from calib_utils.rules import TABLE3_TEMPERATURES, NoCutoff, TopK, table3_rules
from calib_utils.schema import KEY
from calib_utils.steps import Steps, TokenTable
from calib_utils.store import Request, keys
from calib_utils.tasks import Task, get_task
from calib_utils.tries import Trie

FOLDER = conventions.FRAMEWORK
TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
QUICK_TASKS = ("us-states", "rng-2")
SIZES = (1, 2, 5, 8, 10, 11, 12, 15, 20, 50, 100, 500)
NUMBERS = ("validity", "diversity", "sequence_precision", "sequence_recall")
_RANKS = ("rank", "gap", "sorted_gap", "log_p")
_AGAIN = "delete it and run 01_formal_framework"


@dataclass(frozen=True)
class Study:
    """One pass over a task: rules of Table 3, fixed sizes, and temperature alone.

    `numbers` has a row per setting (`NUMBERS`), `factors` alpha and beta (Thm. E.1)
    [step, setting], `ranks` the valid tokens' ranks and no setting, `edge_log_p` [edge]
    ln p(symbol | prefix) at T = 1 without cutoff. `record` says what it is of, and what it cost.
    """

    task: Task
    trie: Trie
    settings: tuple
    numbers: pd.DataFrame
    factors: theory.Factors
    ranks: Steps
    edge_log_p: np.ndarray
    record: dict

    @cached_property
    def step_frontiers(self) -> dict[int, np.ndarray]:
        """`theory.step_frontier` of every step, from 0, before which no answer ends."""
        trie, ranks = self.trie, self.ranks
        first_end = int(trie.node_depth[trie.edge_node[trie.sequence_edge]].min())
        return {d: theory.step_frontier(ranks.tokens, ranks.rank, d) for d in range(first_end + 1)}

    @property
    def n_steps(self) -> int:
        """Tokens of the longest answer, its end included."""
        return int(self.trie.node_depth.max()) + 1

    def columns(self, name: str) -> list[int]:
        """The settings of one kind of rule."""
        return [i for i, (rule, _) in enumerate(self.settings) if rule.name == name]


def study(
    model: Model, task: Task | str, end: str = "eos", results_dir: str | Path | None = None
) -> Study:
    """What the chapter needs of a task, kept or measured.

    Args:
        results_dir: where to look for a study of the same weights, task and conventions, and to
            keep a new one. Without it everything is computed now and nothing is kept.

    Raises:
        ResultsError: a study of another model or question holds the place, or it cannot be written.
    """
    request = request_for(model, get_task(task), Policies(end), results_dir=results_dir)
    record = {
        **request.identity(),
        **recorded.of_model(request.model),
        "task": request.task.name,
        "end": end,
        "convention": conventions.CURRENT[FOLDER],
    }
    places = None if request.folder is None else paths_of(request.folder)
    kept = None if places is None else _kept(places, record, request.prompt.trie)
    if kept is None:
        began = time.perf_counter()
        tables = _measured(request)
        record["seconds"] = round(time.perf_counter() - began, 2)
        record["environment"] = provenance.environment(request.model.device)
        for name, table in tables.items():
            if places is not None:
                recorded.write(places[name], table, record)
        kept = tables, record
    return _study(request, *kept)


def settings() -> Settings:
    """The grid of Table 3, fixed sizes, and temperature alone; each once."""
    grid = [(rule, t) for rule in table3_rules() for t in TABLE3_TEMPERATURES]
    sizes: Settings = [(TopK(k), 1.0) for k in SIZES]
    return list(dict.fromkeys([*grid, *sizes, *untouched(list(CURVE_TEMPERATURES))]))


def paths_of(folder: Path) -> dict[str, Path]:
    """Where the study of a task is kept whose rows are in `folder`: by table."""
    names = {name: f"{folder.name}.{name}.parquet" for name in ("tokens", "settings")}
    return {name: folder.parent / FOLDER / file for name, file in names.items()}


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """One of the two tables of a kept study, and its record.

    Raises:
        ResultsError: not such a file, or numbers that cannot be.
    """
    needed = ("model", "revision", "task", "end", "seconds", "environment")
    table, record = recorded.read(path, FOLDER, needed, _AGAIN)
    try:
        possible = len(table) and (_tokens_can_be if "rank" in table else _settings_can_be)(table)
    except (KeyError, TypeError, ValueError):
        possible = False
    if not possible:
        raise ResultsError(f"{path} holds no possible study: {_AGAIN}")
    return table, record


def _tokens_can_be(table: pd.DataFrame) -> bool:
    """Ranks from 0, differences from the highest logit downwards, probabilities up to 1."""
    values = table[list(_RANKS)].to_numpy(float)
    below = values[:, 1:] <= 1e-6
    return bool(not np.isnan(values).any() and (values[:, 0] >= 0).all() and below.all())


def _settings_can_be(table: pd.DataFrame) -> bool:
    """Shares, their factors, and a key that no two rows have in common."""
    shares = [*NUMBERS, *(name for name in table if name.startswith(("alpha_", "beta_")))]
    values = table[shares].drop(columns="diversity").to_numpy(float)
    within = (values >= 0) & (values <= 1 + 1e-9)
    return bool(within.all() and not table.duplicated(KEY).any())


def _kept(
    places: dict[str, Path], record: dict, trie: Trie
) -> tuple[dict[str, pd.DataFrame], dict] | None:
    """A kept study that stands for a pass now; one of an older convention or
    other settings does not."""
    if not all(path.exists() for path in places.values()):
        return None
    tables = {}
    for name, path in places.items():
        tables[name], old = read(path)
        conventions.require_same(path, FOLDER, old, record)
        if not conventions.is_current(FOLDER, old):
            return None
    if not tables["settings"][KEY].equals(keys(settings())):
        return None
    steps = sum(name.startswith("alpha_") for name in tables["settings"])
    if len(tables["tokens"]) != len(TokenTable(trie).edge) or steps != trie.node_depth.max() + 1:
        raise ResultsError(f"{places['tokens']} is not of this prefix tree: {_AGAIN}")
    return tables, old


def _measured(request: Request) -> dict[str, pd.DataFrame]:
    chosen = settings()
    what = f"{request.model.name} on {request.task.name}"
    found = measure(request.model, request.prompt, chosen, ranks=True, description=what)
    steps, trie = found.steps, request.prompt.trie
    at_one = chosen.index((NoCutoff(), 1.0))
    log_p = steps.gap - steps.log_mass[steps.tokens.node, at_one]
    ranks = {name: getattr(steps, name) for name in ("rank", "gap", "sorted_gap")}
    factors = theory.factorise(trie, np.exp(steps.edge_uniform_log_p(slice(None))))
    return {
        "tokens": pd.DataFrame({**ranks, "log_p": log_p}),
        "settings": keys(chosen).assign(
            **{name: getattr(found, name) for name in NUMBERS},
            **{f"alpha_{step}": row for step, row in enumerate(factors.alpha, start=1)},
            **{f"beta_{step}": row for step, row in enumerate(factors.beta, start=1)},
        ),
    }


def _study(request: Request, tables: dict[str, pd.DataFrame], record: dict) -> Study:
    trie, (tokens, numbers) = request.prompt.trie, (tables["tokens"], tables["settings"])
    alpha, beta = (
        numbers[[name for name in numbers if name.startswith(f"{part}_")]].to_numpy().T
        for part in ("alpha", "beta")
    )
    none = np.empty((trie.n_nodes, 0))
    ranks = Steps(
        TokenTable(trie),
        *(tokens[name].to_numpy() for name in ("rank", "gap", "sorted_gap")),
        *(np.empty(0), np.empty(0, dtype=bool), none, none, none),
    )
    log_p = ranks.tokens.sum_by_edge(tokens.log_p.to_numpy()[:, None])[:, 0]
    factors = theory.Factors(alpha, beta)
    return Study(request.task, trie, tuple(settings()), numbers, factors, ranks, log_p, record)

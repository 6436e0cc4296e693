"""The study of Sec. 4: sweeps run, texts labelled, order measured at every node.

Knows which judge labels what: a list decides item prompts, a checker of grammar the free texts.
Decides no claim and draws nothing.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calib_utils import (
    completions,
    conventions,
    labelled,
    open_plans,
    openended,
    pr_curves,
    pr_depths,
)
from calib_utils.gazetteer import GazetteerJudge
from calib_utils.language import LanguageChecker
from calib_utils.models import Model
from calib_utils.nodes import node_table
from calib_utils.open_plans import Plan
from calib_utils.openset import open_prompts
from calib_utils.pr_curves import UNWEIGHTED, WEIGHTED
from calib_utils.sweeps import Sweep

ITEMS, TEXTS = "items", "texts"
JUDGES = {ITEMS: "a list decides", TEXTS: "grammar only"}
SOURCES = ("greedy", "any of 10 drawn", "half of 10 drawn")
_SHOWN = 80  # characters of a text in a table


@dataclass(frozen=True)
class Study:
    """Completions, labels and labelled candidates of every sweep of a plan, by its name."""

    plan: Plan
    completions: dict[str, pd.DataFrame]
    labels: dict[str, pd.DataFrame]
    candidates: dict[str, pd.DataFrame]

    def sweeps_of(self, kind: str) -> tuple[Sweep, ...]:
        """The sweeps of item prompts or of free texts, by rising depth."""
        return self.plan.items if kind == ITEMS else self.plan.texts


def run(model: Model, plan: Plan, results_dir: str | Path | None = None) -> Study:
    """Everything of a plan, computed now or taken from where an earlier run kept it."""
    texts = {sweep.name: openended.sweep(model, sweep, results_dir) for sweep in plan.sweeps}
    return _study(plan, texts, results_dir, model.key)


def read(plan: Plan, results_dir: str | Path, model_key: str) -> Study:
    """What is stored of a plan's sweeps, labelled as `run` labels them; loads no model.

    Sweeps that are not there are not in it; neither are those of another request or of an older
    convention.

    Raises:
        ResultsError: an unfinished sweep, or files that are not those recorded.
    """
    texts = {}
    for sweep in plan.sweeps:
        folder = completions.folder_of(results_dir, model_key, sweep.name)
        if folder.is_dir():
            record = completions.read_record(folder)
            same = record["sweep_sha256"] == sweep.fingerprint()
            if same and conventions.is_current(conventions.TEXTS, record):
                texts[sweep.name] = completions.read_completions(folder)
    return _study(plan, texts, results_dir, model_key)


def _study(plan: Plan, texts: dict, results_dir: str | Path | None, model_key: str) -> Study:
    labels, candidates = {}, {}
    for sweep in plan.sweeps:
        if sweep.name in texts:
            own, judge = texts[sweep.name], judge_of(sweep.prompts)
            place = labelled.path_of(results_dir, model_key, sweep.name, judge)
            labels[sweep.name] = labelled.labels_of(own, sweep.prompts, judge, place)
            candidates[sweep.name] = node_table(own, labels[sweep.name])
    return Study(plan, texts, labels, candidates)


def judge_of(prompts):
    """The judge of the main figures: exact where lists decide every prompt, else grammar alone."""
    return GazetteerJudge() if all(p.gazetteer for p in prompts) else LanguageChecker()


def label_counts(study: Study) -> pd.DataFrame:
    """How many texts each sweep has, how many differ, and what the labels say: a row per sweep."""
    rows = []
    for sweep in study.plan.sweeps:
        labels, texts = study.labels[sweep.name], study.completions[sweep.name]
        rows.append(
            {
                "sweep": sweep.name,
                "judge": judge_of(sweep.prompts).name,
                "depth": sweep.depth,
                "texts": len(texts),
                "different": len(labels),
                "ended": texts.ended.mean(),
                "valid": labels.valid.mean(),
                "undecided": labels.valid.isna().mean(),
                "dropped": study.candidates[sweep.name].attrs["dropped"],
            }
        )
    return pd.DataFrame(rows)


def measures(study: Study, recall: str = WEIGHTED) -> pd.DataFrame:
    """Area and recall at precision .8 of every node of every sweep, as `pr_curves.node_measures`.

    Beside its columns: kind (items or texts) and forced (the sweep's depth).
    """
    parts = []
    for kind in (ITEMS, TEXTS):
        for sweep in study.sweeps_of(kind):
            if sweep.name not in study.candidates:
                continue
            curves = pr_curves.local_curves(study.candidates[sweep.name])
            found = pr_curves.node_measures(curves, recall)
            parts.append(found.assign(kind=kind, forced=sweep.depth))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def depth_table(table: pd.DataFrame) -> pd.DataFrame:
    """`pr_depths.depth_summary` of every sweep in `measures`: a row per kind, sweep and depth."""
    found = _of_each_sweep(table, pr_depths.depth_summary)
    # What is asked for first, so that it is seen on a phone without scrolling.
    wanted = [f"{name}{bound}" for name in pr_depths.MEASURES for bound in ("", "_low", "_high")]
    first = ["kind", "forced", "depth", *wanted, "prevalence"]
    return found[[*first, *found.columns.difference(first, sort=False)]]


def depth_changes(table: pd.DataFrame) -> pd.DataFrame:
    """Every two depths of a sweep compared within the same tree (`pr_depths.depth_differences`)."""
    return _of_each_sweep(table[table.forced > 1], pr_depths.depth_differences)


def _of_each_sweep(table: pd.DataFrame, summary) -> pd.DataFrame:
    """`summary` of every sweep's rows, with the columns kind and forced in front."""
    parts = []
    for (kind, forced), own in table.groupby(["kind", "forced"], sort=False):
        found = summary(own)
        found.insert(0, "forced", forced)
        found.insert(0, "kind", kind)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def deepest(study: Study, depths: pd.DataFrame, kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frontiers by depth of a kind's deepest sweep, and its rows of `depth_table`."""
    sweep = study.sweeps_of(kind)[-1]
    curves = pr_curves.local_curves(study.candidates[sweep.name])
    frontiers = pr_depths.frontiers_by_depth(pr_curves.frontiers_on_grid(curves))
    return frontiers, depths[(depths.kind == kind) & (depths.forced == sweep.depth)]


def greedy_and_drawn(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same candidates labelled by their greedy completion and by 10 drawn ones (Fig. 7).

    How many of the ten must be valid the paper does not say: both at least one and at least half.

    Returns:
        Frontiers on a grid and node measures, both with the column labels: one of `SOURCES`.
    """
    plan = study.plan
    texts, labels = study.completions[plan.drawn.name], study.labels[plan.drawn.name]
    tables = (
        study.candidates[plan.greedy.name],
        study.candidates[plan.drawn.name],
        node_table(texts, labels, min_share=0.5),
    )
    # Candidates that all have: one may be dropped where a list leaves its text open.
    key = ["prompt_id", "seed", "depth", "node", "rank"]
    shared = tables[0][key].merge(tables[1][key], on=key).merge(tables[2][key], on=key)
    grids, found = [], []
    for name, own in zip(SOURCES, tables, strict=True):
        curves = pr_curves.local_curves(own.merge(shared, on=key))
        # Weights of drawn completions are counts of ten, so that valid candidates are compared.
        grid = pr_curves.frontiers_on_grid(curves, UNWEIGHTED)
        grids.append(grid.assign(labels=name))
        found.append(pr_curves.node_measures(curves, UNWEIGHTED).assign(labels=name))
    return pd.concat(grids, ignore_index=True), pd.concat(found, ignore_index=True)


def sizes(plan: Plan) -> pd.DataFrame:
    """Trees, texts and tokens of every sweep at most, and of the paper's (`open_plans.paper`)."""
    rows = []
    for sweep in [*plan.sweeps, open_plans.paper(open_prompts())]:
        texts, tokens = openended.size_of(sweep)
        row = {"sweep": sweep.name, "trees": len(sweep.trees), "depth": sweep.depth}
        row |= {"candidates": len(sweep.candidates), "texts": texts, "tokens": tokens}
        rows.append(row)
    return pd.DataFrame(rows)


def examples(study: Study, name: str, prompt_id: str, n: int = 4) -> pd.DataFrame:
    """The highest candidates of a prompt's first node that are valid, and those that are not.

    Returns:
        rank (from 1), p, valid, completion, reason; by rank (App. B).
    """
    found = study.completions[name]
    own = found[(found.prompt_id == prompt_id) & (found.seed == found.seed.min())]
    own = own.merge(study.labels[name].drop(columns="ended"), on=["prompt_id", "text"])
    own = own[own.valid.notna()]
    own = own.assign(rank=[ranks[0] + 1 for ranks in own.path_ranks])
    own = own.assign(p=[math.exp(v[0]) for v in own.path_log_p])
    parts = [part.nsmallest(n, "rank") for _, part in own.groupby("valid")]
    table = pd.concat(parts).sort_values("rank")
    texts = [text if len(text) <= _SHOWN else text[:_SHOWN] + "…" for text in table.text]
    table = table.assign(completion=[text.replace("\n", " / ") for text in texts])
    return table[["rank", "p", "valid", "completion", "reason"]].reset_index(drop=True)

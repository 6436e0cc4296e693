"""Every model with results side by side (Fig. 4, 8, 9), and the claims about all of them.

Knows which stored tables belong to which study. Loads no model and computes no row: those of an
older convention are left out and named, so that all models are compared under one definition.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd

from calib_utils import paths
from calib_utils.core.metrics import DECIDES, as_text
from calib_utils.errors import ResultsError
from calib_utils.models.registry import find, pairs
from calib_utils.openended import precision_recall
from calib_utils.results import conventions, records, storage
from calib_utils.results.storage import COLUMNS, LOSS_COLUMNS
from calib_utils.studies import logit_shape, oracle_cutoffs, order_calibration, reporting
from calib_utils.studies.oracle_cutoffs import ALONE, TASKS
from calib_utils.studies.order_calibration import EXACT, JUDGES
from calib_utils.studies.reporting import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED, decided, voted

# Enough to see what a model does, and few enough for one figure.
SHOWN_TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
ORACLE = "oracle_size"
PARTS = ("total", "order", "shape", "size")
SIZE, STAGE = "size", "stage"
_SUFFIXES = ("", "@end=line")  # the study of cutoffs asks chat models and base models so
_FACTS = ("name", "panel", "family", "stage", "dtype", "parameters", "active")
_OF_ORDER = ("kind", "forced", "depth", "area", "recall_at")
_OF_DEPTHS = (  # where no model has texts
    *("kind", "forced", "depth"),
    *(f"{name}{end}" for name in precision_recall.MEASURES for end in ("", "_low", "_high")),
    *("prevalence", "prevalence_all", "random_area", "random_recall_at"),
    *("n_nodes", "n_undefined", "n_prompts", "n_runs"),
)
_TASK_MEASURES = {
    "oracle size": "best Val × Div, oracle size",
    "best other": "best Val × Div, practical rules",
    "order": "order part at T = 1, nats",
    "shape": "shape part at T = 1, nats",
}
_RISES = "The area under the frontier rises with size"
_KEEPS = f"At precision {precision_recall.LEVEL:g} less than half of the valid tokens are kept"
_FOURTH, _FIFTH = "Sec. 4, Fig. 4 and 8", "Sec. 5, Fig. 9"
_SIDE = {REPRODUCED: 1.0, NOT_REPRODUCED: -1.0, NOT_DECIDED: 0.0}
_PAIRED = ["by", "minus", "model", "measure", "difference", "low", "high", "over", "n"]


@dataclass(frozen=True)
class Panel:
    """What is stored of every model, as tables with a column `model` (the folder's name)."""

    models: pd.DataFrame  # of `models`
    settings: pd.DataFrame  # Table 3 and the oracle size; `end` of answers, `weights`: SHA-256
    losses: pd.DataFrame  # of the same settings
    order: pd.DataFrame  # of `order_calibration.measures`
    logits: dict[str, pd.DataFrame]  # sorted logits of each model that has them
    left_out: pd.DataFrame  # folder, why


def read(results_dir: str | Path) -> Panel:
    """Everything that is stored of every model; broken folders are left out and named."""
    results_dir, known = Path(results_dir), models(keys_in(results_dir), results_dir)
    settings, losses, order, logits, left_out = {}, {}, {}, {}, []
    for key in known.model:
        for task in TASKS:
            stored, missing = study_of(results_dir, key, task)
            left_out += missing
            if stored is not None:
                rows, parts = map(oracle_cutoffs.in_study, (stored.settings, stored.losses))
                weights = stored.record["weights_sha256"][:12]
                end = stored.record["policies"]["end"]
                rows = rows.drop(columns=["model", "task"])
                settings[key, task] = rows.assign(end=end, weights=weights)
                losses[key, task] = parts
        for folder, own, found in (
            ("texts", _order_of, order),
            (f"{logit_shape.STUDY}.parquet", _logits_of, logits),
        ):
            try:
                if (table := own(results_dir, key)) is not None:
                    found[key] = table
            except ResultsError as error:
                left_out.append((f"{key}/{folder}", str(error)))
    return Panel(
        known,
        reporting.stacked(settings, ["model", "task"], [*COLUMNS[2:], "end", "weights"]),
        reporting.stacked(losses, ["model", "task"], LOSS_COLUMNS),
        reporting.stacked(order, ["model"], _OF_ORDER),
        logits,
        pd.DataFrame(left_out, columns=["folder", "why"]),
    )


def keys_in(results_dir: str | Path) -> list[str]:
    """Names of the models' folders, drafts of killed runs left out."""
    paths.note_read(results_dir)
    folders = (path for path in Path(results_dir).iterdir() if path.is_dir())
    return sorted(path.name for path in folders if not path.name.startswith("."))


def models(keys: Iterable[str], results_dir: str | Path | None = None) -> pd.DataFrame:
    """What is known of models by their folders: those of the panel first.

    Of others it is their name, and what `records.own_models` says; `base` is the folder of the
    model that one was trained from.
    """
    rows, nothing = [], dict.fromkeys(_FACTS[1:5], "") | dict.fromkeys(_FACTS[5:], float("nan"))
    own = records.own_models(results_dir) if results_dir else {}
    for key in keys:
        if one := find(key):
            rows.append({"model": key, "base": ""} | {name: getattr(one, name) for name in _FACTS})
        else:
            rows.append({"model": key, "name": key, "base": ""} | nothing | own.get(key, {}))
    table = pd.DataFrame(rows, columns=["model", *_FACTS, "base"])
    table["active"] = table.active.fillna(table.parameters)
    table = table.astype({"parameters": float, "active": float})
    # From the end of the alphabet: the paper's, the embedded ones, those of no panel.
    by = ["panel", "family", "parameters", "model"]
    return table.sort_values(by, ascending=[False, True, True, True], ignore_index=True)


def study_of(
    results_dir: str | Path, key: str, task: str
) -> tuple[storage.Stored | None, list[tuple[str, str]]]:
    """What chapter 03 stored of a model's task, and what was left out (folder, why).

    Of a task's folders it is the one whose settings hold the oracle size; None where none stands.
    """
    left_out = []
    for suffix in _SUFFIXES:
        folder = storage.folder_of(Path(results_dir), key, task, suffix)
        try:
            stored = storage.read(folder)
            if stored is None or ORACLE not in set(stored.settings.rule):
                continue
            if conventions.is_current(conventions.ROWS, stored.record):
                return stored, left_out
            why = "of an older convention: `python -m calib_utils reproduce --update`"
        except ResultsError as error:
            why = str(error)
        left_out.append((f"{key}/{folder.name}", why))
    return None, left_out


def _order_of(results_dir: Path, key: str) -> pd.DataFrame | None:
    """Measures of the sweeps of chapter 04 whose texts are stored, labelled by its judges."""
    for end in ("eos", "line"):
        study = order_calibration.read(order_calibration.laptop(end=end), results_dir, key)
        if len(measured := order_calibration.measures(study)):
            return measured
    return None


def _logits_of(results_dir: Path, key: str) -> pd.DataFrame | None:
    path = records.logits_path(results_dir, key, logit_shape.STUDY)
    if not path.is_file():
        return None
    curves, record = records.read_logits(path)
    if not conventions.is_current(conventions.LOGITS, record):
        raise ResultsError("of an older convention: run 06_logit_shape again")
    return curves


def sources(panel: Panel) -> pd.DataFrame:
    """What each number of a model comes from: which studies are stored of it."""
    table = panel.models[["model", "family", "stage", "parameters", "dtype"]].copy()
    table["parameters"] = ["?" if pd.isna(n) else f"{n / 1e9:.2g} B" for n in table.parameters]
    rows = panel.settings.groupby("model")
    table["tasks"] = table.model.map(rows.task.nunique()).fillna(0).astype(int)
    table["answers end"] = table.model.map(rows.end.first())
    nodes = panel.order.model.value_counts()
    table["nodes with labels"] = table.model.map(nodes).fillna(0).astype(int)
    table["logits"] = ["yes" if key in panel.logits else "no" for key in table.model]
    table["SHA-256 of weights"] = table.model.map(rows.weights.first())
    return table


def _of_each(table: pd.DataFrame, of: Callable, columns: Iterable[str]) -> pd.DataFrame:
    """What `of` makes of each model's rows, `stacked`."""
    made = {key: of(own) for key, own in table.groupby("model", sort=False)}
    return reporting.stacked(made, ["model"], columns)


def split_table(panel: Panel) -> pd.DataFrame:
    """`oracle_cutoffs.operating_points` of every model, with a column `model` in front."""
    losses = dict(list(panel.losses.groupby("model")))
    return _of_each(
        panel.settings,
        lambda own: oracle_cutoffs.operating_points(own, losses[own.model.iloc[0]]),
        ["task", "decoder", "validity", "diversity", *PARTS],
    )


def order_table(panel: Panel) -> pd.DataFrame:
    """Area and recall at precision .8 by model, kind, forced tokens and depth, with intervals."""
    table = _of_each(panel.order, order_calibration.depth_table, _OF_DEPTHS)
    return reporting.without_small_intervals(table)


def shape_table(panel: Panel) -> pd.DataFrame:
    """The fitted parameters of App. I: a row per model and query, `logit_shape.fit_table`."""
    fits = {key: logit_shape.fit_table(own) for key, own in panel.logits.items()}
    return reporting.stacked(fits, ["model"], ["query", "c", "mse", "r2", "m", "B", "C", "jump"])


def sized(table: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """The table with family, stage and parameters of each row's model; unknown sizes left out."""
    known = models.loc[models.parameters.notna(), ["model", "family", "stage", "parameters"]]
    return table.merge(known, on="model")


def published_order() -> pd.DataFrame:
    """`precision_recall.from_published` with the parameters of its models."""
    table = precision_recall.from_published()
    return table.assign(parameters=[float(find(model).parameters) for model in table.model])


def size_pairs(models: pd.DataFrame) -> list[tuple[str, str]]:
    """Neighbours in size (smaller, larger) among models of one family, stage and number format."""
    known = models[(models.family != "") & models.parameters.notna()]
    groups = known.groupby(["family", "stage", "dtype"], sort=False)
    return [pair for _, own in groups for pair in pairwise(own.sort_values("parameters").model)]


def stage_pairs(models: pd.DataFrame) -> list[tuple[str, str]]:
    """(base, post-trained) pairs of the panel, then those declared, of which both are here."""
    here = {find(key).name: key for key in models.model if find(key)}
    names = [(base.name, tuned.name) for base, tuned in pairs()]
    known = [(here[base], here[tuned]) for base, tuned in names if {base, tuned} <= set(here)]
    own = models[models.base.isin(models.model)]
    return known + list(zip(own.base, own.model, strict=True))


def testable(found: Panel, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of models and tasks where some setting's validity is at least `TESTABLE`."""
    best = found.settings.groupby(["model", "task"]).validity.max()
    enough = best[best >= reporting.TESTABLE].index
    return table[pd.MultiIndex.from_frame(table[["model", "task"]]).isin(enough)]


def pair_table(found: Panel) -> pd.DataFrame:
    """Larger less smaller and post-trained less base, for every pair of which both are here.

    Order is paired by prompt and seed, with a bootstrap over prompts where there are enough. On
    tasks both models' numbers are exact; `over` says on how many the second one's is larger.
    """
    return _pairs(found, _task_measures(found, split_table(found))).drop(columns="n")


def _pairs(found: Panel, tasks: pd.DataFrame) -> pd.DataFrame:
    """`pair_table` from the table of `_task_measures`, with `n`, the number of what was paired."""
    rows, order = [], found.order[found.order.forced == 1]
    known = [(SIZE, *pair) for pair in size_pairs(found.models)]
    for by, first, second in [*known, *((STAGE, *pair) for pair in stage_pairs(found.models))]:
        names = {"by": by, "minus": first, "model": second}
        for kind in EXACT:
            own = order[(order.kind == kind) & order.model.isin([first, second])]
            if own.model.nunique() == 2:
                # Numbered, so that the difference is always the second model's less the first's.
                own = own.assign(place=own.model == second)
                for row in precision_recall.depth_differences(own, "place").to_dict("records"):
                    n, measure = row["n_prompts"], f"{row['measure']}, {kind}"
                    rows.append(row | names | {"measure": measure, "over": f"{n} prompts", "n": n})
        for name, measure in _TASK_MEASURES.items():
            wide = tasks.pivot(index="task", columns="model", values=name)
            if {first, second} <= set(wide):
                apart = (wide[second] - wide[first]).dropna().rename("difference").reset_index()
                larger = (apart.difference > 0).sum()
                row = {"difference": apart.difference.mean(), "low": math.nan, "high": math.nan}
                row |= {"measure": measure, "over": f"larger on {larger} of {len(apart)} tasks"}
                rows.append(row | names | {"n": len(apart)})
    return reporting.without_small_intervals(pd.DataFrame(rows, columns=_PAIRED), "n")


def _task_measures(found: Panel, parts: pd.DataFrame) -> pd.DataFrame:
    """Per testable model and task the numbers that `_TASK_MEASURES` names, from `split_table`."""
    best = compared(found).query("by == @oracle_cutoffs.PRODUCT")
    parts = parts[parts.decoder == ALONE][["model", "task", "order", "shape", "total"]]
    return best.drop(columns=["by", "rule"]).merge(parts, on=["model", "task"], how="left")


def compared(found: Panel) -> pd.DataFrame:
    """`oracle_cutoffs.compared` of every model on the tasks that it can do."""
    columns = ["task", "by", "oracle size", "best other", "rule"]
    return _of_each(testable(found, found.settings), oracle_cutoffs.compared, columns)


def findings(found: Panel) -> pd.DataFrame:
    """The paper's claims about its panel; every model that can do the tasks has a vote."""
    order, fits, parts = order_table(found), shape_table(found), split_table(found)
    tasks, beside = _task_measures(found, parts), compared(found)
    pairs, models = _pairs(found, tasks), list(dict.fromkeys(found.settings.model))
    of = {kind: f"({kind}, {JUDGES[kind]})" for kind in EXACT}
    rows = [_rise(f"{_RISES} {words}", kind, pairs) for kind, words in of.items()]
    can = {model: order_calibration.answered(own) for model, own in found.order.groupby("model")}
    rows += [_low_recall(f"{_KEEPS} {words}", kind, order, can) for kind, words in of.items()]
    for by in oracle_cutoffs.COMPARED_BY:
        own = beside[beside.by == by].set_index(["model", "task"])
        claim = f"The oracle size is better than every practical rule, by {by}"
        rows.append(_vote(claim, _FIFTH, own["oracle size"] - own["best other"], models))
    states = tasks[(tasks.task == "us-states") & tasks.order.notna()].set_index(["model", "task"])
    claim = "On US states shape loses more than order does (T = 1, nats)"
    rows.append(_vote(claim, _FIFTH, states["shape"] - states.order, models))
    claim = "A bound on the sum raises the order's share of the loss (T = 1)"
    rows.append(_vote(claim, _FIFTH, _added_by_sums(tasks), models, "lengths"))
    inside = logit_shape.breaks_inside(fits.set_index(["model", "query"]).c)
    rows.append(_vote(logit_shape.BREAKS, logit_shape.SOURCE, inside, (), "queries"))
    return reporting.table_of(rows)


def _vote(claim: str, source: str, by: pd.Series, models: Iterable[str], of: str = "tasks"):
    """The verdict of the majority of models, each by the majority of what the index says."""
    sides, told = {}, []
    for model, own in by.groupby(level="model", sort=False):
        sides[model] = _SIDE[reporting.majority(own)]
        told.append(f"{model} on {(own > reporting.AGREEMENT).sum()} of {len(own)} {of}")
    out = [model for model in models if model not in sides]
    return voted(claim, source, ", ".join(told), sides, out, of="model")


def _added_by_sums(tasks: pd.DataFrame) -> pd.Series:
    """The order's share of the loss with a bound on the sum less that without. [model, length]"""
    share = tasks.set_index(["model", "task"]).eval("order / total").dropna()
    added = {}
    for model in dict.fromkeys(tasks.model):
        for n in (2, 3):
            free, bound = (model, f"rng-{n}"), (model, f"rng-{n}-sum-at-most-10")
            if {free, bound} <= set(share.index):
                added[model, n] = share[bound] - share[free]
    index = pd.MultiIndex.from_tuples(list(added), names=["model", "length"])
    return pd.Series(list(added.values()), index, dtype=float)


def _rise(claim: str, kind: str, pairs: pd.DataFrame) -> reporting.Finding:
    """Whether the area rises with size, by every pair of sizes; one pair is no trend."""
    area, gain = (
        pairs[(pairs.by == SIZE) & (pairs.measure == f"{measure}, {kind}")]
        for measure in ("area", "area_gain")
    )
    told, sides = [], {}
    for row, beyond in zip(area.itertuples(), gain.itertuples(), strict=True):
        rises, gains = (as_text(x.difference, x.low, x.high, digits=3) for x in (row, beyond))
        told.append(f"{row.model} less {row.minus} {rises}, beyond a random order {gains}")
        told[-1] += f", {row.over}"
        sides[row.model, row.minus] = _SIDE[decided(row.low, row.high, 0.0)]
    found = voted(claim, _FOURTH, "; ".join(told), sides, of="pair")
    if len(sides) == 1 and found.verdict == REPRODUCED:
        found = found._replace(found=f"{found.found}; one pair is no trend", verdict=NOT_DECIDED)
    return found


def _low_recall(
    claim: str, kind: str, order: pd.DataFrame, can: dict[str, dict]
) -> reporting.Finding:
    """Whether recall at the precision stays below one half, for models that can do the prompts."""
    told, sides, out = [], {}, []
    for row in order[(order.kind == kind) & (order.forced == 1)].itertuples():
        n, asked = can[row.model][kind]
        if n < DECIDES:
            out.append(f"{row.model} (greedy answer valid on {n} of {asked} prompts)")
        elif row.random_recall_at >= 0.5:
            out.append(f"{row.model} (a random order keeps {row.random_recall_at:.2f})")
        else:
            recall = as_text(row.recall_at, row.recall_at_low, row.recall_at_high)
            told.append(f"{row.model} {recall}, {row.n_prompts:.0f} prompts")
            sides[row.model] = _SIDE[order_calibration.keeps_less_than_half(row)]
    return voted(claim, _FOURTH, ", ".join(told), sides, out, of="model")

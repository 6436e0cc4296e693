"""Every model with results side by side (Fig. 4, 8, 9), and the claims about all of them.

Knows which stored tables belong to which study. Loads no model and computes no row: those of an
older convention are left out and named, so that all models are compared under one definition.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd

from calib_utils import paths
from calib_utils.core.metrics import DECIDES, as_text, cluster_interval
from calib_utils.core.rules import TABLE3_TEMPERATURES
from calib_utils.errors import ResultsError
from calib_utils.models.registry import find, pairs
from calib_utils.openended import precision_recall
from calib_utils.openended.table1 import LEVEL
from calib_utils.results import conventions, records, storage
from calib_utils.results.storage import COLUMNS, LOSS_COLUMNS
from calib_utils.studies import logit_shape, oracle_cutoffs, order_calibration, reporting
from calib_utils.studies.oracle_cutoffs import PRACTICAL, TASKS
from calib_utils.studies.order_calibration import EXACT, JUDGES
from calib_utils.studies.reporting import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, verdict

# Enough to see what a model does, and few enough for one figure.
SHOWN_TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
ORACLE = "oracle_size"
_RULES = (*PRACTICAL, ORACLE)
PARTS = ("total", "order", "shape", "size")
ALONE = "T = 1 alone"
SIZE, STAGE = "size", "stage"
_SUFFIXES = ("", "@end=line")  # the study of cutoffs asks chat models and base models so
_FACTS = ("name", "panel", "family", "stage", "dtype", "parameters", "active")
_OF_ORDER = ("kind", "forced", "depth", "area", "recall_at")
_TASK_MEASURES = {
    "oracle area": "area of the oracle-size frontier",
    "practical area": "area of the best practical frontier",
    "order": "order part at T = 1, nats",
    "shape": "shape part at T = 1, nats",
}
_RISES = "The area under the frontier rises with size"
_KEEPS = f"At precision {LEVEL:g} every model keeps less than half of the valid tokens"
_ABOVE = "For every model the oracle-size frontier lies above those of practical rules (by area)"
_BEST = f"At validity {LEVEL:g} the oracle size is more diverse than any practical rule"
_STATES = "On US states shape loses more than order does, for every model (T = 1, nats)"
_SUMS = "A bound on the sum raises the order's share of the loss, for every model (T = 1)"
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
    results_dir, known = Path(results_dir), models(keys_in(results_dir))
    settings, losses, left_out, others = [], [], [], {_order_of: [], _logits_of: []}
    for key in known.model:
        for task in TASKS:
            stored, missing = study_of(results_dir, key, task)
            left_out += missing
            if stored is not None:
                # Chapter 02 stores more temperatures of the same task, for one rule alone.
                rows, parts = (
                    table[table.rule.isin(_RULES) & table.temperature.isin(TABLE3_TEMPERATURES)]
                    for table in (stored.settings, stored.losses)
                )
                weights = stored.record["weights_sha256"][:12]
                end = stored.record["policies"]["end"]
                settings.append((key, rows.assign(end=end, weights=weights)))
                losses.append((key, parts.assign(task=task)))
        for own, folder in ((_order_of, "texts"), (_logits_of, f"{logit_shape.STUDY}.parquet")):
            try:
                others[own] += [(key, table) for table in own(results_dir, key)]
            except ResultsError as error:
                left_out.append((f"{key}/{folder}", str(error)))
    return Panel(
        known,
        _joined(settings, ["end", "weights", *COLUMNS[1:]]),
        _joined(losses, ["task", *LOSS_COLUMNS]),
        _joined(others[_order_of], _OF_ORDER),
        dict(others[_logits_of]),
        pd.DataFrame(left_out, columns=["folder", "why"]),
    )


def keys_in(results_dir: str | Path) -> list[str]:
    """Names of the models' folders, drafts of killed runs left out."""
    paths.note_read(results_dir)
    folders = (path for path in Path(results_dir).iterdir() if path.is_dir())
    return sorted(path.name for path in folders if not path.name.startswith("."))


def _joined(parts: Iterable[tuple[str, pd.DataFrame]], columns: Iterable[str]) -> pd.DataFrame:
    """The models' tables in one with `model` in front; where there is none, empty `columns`."""
    tables = [table.assign(model=key) for key, table in parts]
    if not tables:
        return pd.DataFrame(columns=["model", *columns])
    table = pd.concat(tables, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]


def models(keys: Iterable[str]) -> pd.DataFrame:
    """What is known of models by their folders: those of the panel first, others by name alone."""
    rows, nothing = [], dict.fromkeys(_FACTS[1:5], "") | dict.fromkeys(_FACTS[5:], float("nan"))
    for key in keys:
        one = find(key)
        known = {name: getattr(one, name) for name in _FACTS} if one else {"name": key} | nothing
        rows.append({"model": key} | known)
    table = pd.DataFrame(rows, columns=["model", *_FACTS])
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


def _order_of(results_dir: Path, key: str) -> list[pd.DataFrame]:
    """Measures of the sweeps of chapter 04 whose texts are stored, labelled by its judges."""
    for end in ("eos", "line"):
        study = order_calibration.read(order_calibration.laptop(end=end), results_dir, key)
        if len(measured := order_calibration.measures(study)):
            return [measured]
    return []


def _logits_of(results_dir: Path, key: str) -> list[pd.DataFrame]:
    path = records.logits_path(results_dir, key, logit_shape.STUDY)
    if not path.is_file():
        return []
    curves, record = records.read_logits(path)
    if not conventions.is_current(conventions.LOGITS, record):
        raise ResultsError("of an older convention: run 06_logit_shape again")
    return [curves]


def sources(panel: Panel) -> pd.DataFrame:
    """What each number of a model comes from: which studies are stored of it."""
    table = panel.models[["model", "family", "stage", "parameters", "dtype"]].copy()
    table["parameters"] = [f"{n / 1e9:.2g} B" for n in table.parameters]
    rows = panel.settings.groupby("model")
    table["tasks"] = table.model.map(rows.task.nunique()).fillna(0).astype(int)
    table["answers end"] = table.model.map(rows.end.first())
    nodes = panel.order.model.value_counts()
    table["nodes with labels"] = table.model.map(nodes).fillna(0).astype(int)
    table["logits"] = ["yes" if key in panel.logits else "no" for key in table.model]
    table["SHA-256 of weights"] = table.model.map(rows.weights.first())
    return table


def _of_each(table: pd.DataFrame, of: Callable, columns: Iterable[str]) -> pd.DataFrame:
    """What `of` makes of each model's rows, as `_joined`."""
    return _joined(((key, of(own)) for key, own in table.groupby("model", sort=False)), columns)


def frontier_table(panel: Panel) -> pd.DataFrame:
    """Area under each rule's frontier of validity and diversity: a row per model and task."""
    columns = ["task", *_RULES]
    return _of_each(panel.settings, oracle_cutoffs.areas, columns)[["model", *columns]]


def split_table(panel: Panel) -> pd.DataFrame:
    """`oracle_cutoffs.operating_points` of every model, with a column `model` in front."""
    losses = dict(list(panel.losses.groupby("model")))
    return _of_each(
        panel.settings,
        lambda own: oracle_cutoffs.operating_points(own, losses[own.model.iloc[0]]),
        ["task", "decoder", "diversity", *PARTS],
    )


def order_table(panel: Panel) -> pd.DataFrame:
    """Area and recall at precision .8 by model, kind, forced tokens and depth, with intervals."""
    return _of_each(panel.order, order_calibration.depth_table, _OF_ORDER)


def shape_table(panel: Panel) -> pd.DataFrame:
    """The fitted parameters of App. I: a row per model and query, `logit_shape.fit_table`."""
    fits = ((key, logit_shape.fit_table(own)) for key, own in panel.logits.items())
    return _joined(fits, ["query", "c", "mse", "r2"])


def beside_published_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """The fits of `shape_table` below the paper's 18, as `logit_shape.beside_published`."""
    return logit_shape.beside_published(fits, fits.model)


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
    """(base, post-trained) pairs of the paper's panel of which both are here."""
    here = {find(key).name: key for key in models.model if find(key)}
    names = [(base.name, tuned.name) for base, tuned in pairs()]
    return [(here[base], here[tuned]) for base, tuned in names if {base, tuned} <= set(here)]


def testable(found: Panel, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of models and tasks where some setting's validity is at least `TESTABLE`."""
    best = found.settings.groupby(["model", "task"]).validity.max()
    enough = best[best >= reporting.TESTABLE].index
    return table[pd.MultiIndex.from_frame(table[["model", "task"]]).isin(enough)]


def pair_table(found: Panel) -> pd.DataFrame:
    """Larger less smaller and post-trained less base, for every pair of which both are here.

    Order is paired by prompt and seed, tasks by task (`over`); the interval is a bootstrap over
    them. On tasks both models' numbers are exact, and the interval says how far the tasks agree.
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
                mean = cluster_interval(apart, "difference", outer="task", inner=None)
                row = {"difference": mean.mean, "low": mean.low, "high": mean.high}
                row |= {"measure": measure, "over": f"{len(apart)} tasks", "n": len(apart)}
                rows.append(row | names)
    return pd.DataFrame(rows, columns=_PAIRED)


def _task_measures(found: Panel, parts: pd.DataFrame) -> pd.DataFrame:
    """Per testable model and task the numbers that `_TASK_MEASURES` names, from `split_table`."""
    areas = testable(found, frontier_table(found)).rename(columns={ORACLE: "oracle area"})
    areas["practical area"] = areas[list(PRACTICAL)].max(axis=1)
    parts = parts[parts.decoder == ALONE][["model", "task", "order", "shape", "total"]]
    return areas.drop(columns=list(PRACTICAL)).merge(parts, on=["model", "task"], how="left")


def findings(found: Panel) -> pd.DataFrame:
    """The paper's claims about its panel: columns claim, source, found, verdict (`_together`)."""
    order, fits, parts = order_table(found), shape_table(found), split_table(found)
    tasks = _task_measures(found, parts)
    pairs, own = _pairs(found, tasks), tasks.set_index("model")
    fourth, fifth, last = "Sec. 4, Fig. 4 and 8", "Sec. 5, Fig. 9", logit_shape.SOURCE
    of = {kind: f"({kind}, {JUDGES[kind]})" for kind in EXACT}
    each, theirs = fits.groupby("model", sort=False), logit_shape.published_fits()
    r2 = ", ".join(f"{model}: {r2:.3f}" for model, r2 in each.r2.min().items()) or "no model"
    r2 = f"lowest R² of {r2}; published {theirs.r2.min():.3f}, which decides"
    breaks = "; ".join(f"{model}: {c.min()} to {c.max()}" for model, c in each.c) or "no model"
    breaks = f"{breaks}; published {theirs.c.min()} to {theirs.c.max()}"
    good, inside = logit_shape.near_published(fits)
    rows = [
        *((f"{_RISES} {words}", fourth, *_rise(kind, pairs)) for kind, words in of.items()),
        *((f"{_KEEPS} {words}", fourth, *_low_recall(kind, order)) for kind, words in of.items()),
        (_ABOVE, fifth, *_ahead(own["oracle area"] - own["practical area"], reporting.TOO_LOW)),
        (f"{_BEST}, for every model", fifth, *_oracle_best(parts)),
        (_STATES, fifth, *_states(tasks)),
        (_SUMS, fifth, *_sums(tasks)),
        (f"{logit_shape.FITS} of every model", last, r2, good),
        (f"{logit_shape.BREAKS}, for every model", last, breaks, inside),
    ]
    return pd.DataFrame([reporting.Finding(*row) for row in rows])


def _together(told: list[str], verdicts: list[str], nothing: str) -> tuple[str, str]:
    """One model that disagrees refutes a claim; one that is undecided leaves it open."""
    said = REPRODUCED if set(verdicts) == {REPRODUCED} else NOT_TESTABLE
    return "; ".join(told) or nothing, NOT_REPRODUCED if NOT_REPRODUCED in verdicts else said


def _ahead(by: pd.Series, nothing: str) -> tuple[str, str]:
    """On how many tasks each model, the index's level, is ahead; all of them decide."""
    wins = (by > 0).groupby(level="model", sort=False).agg(["sum", "size"])
    told = [f"{row.Index}: on {row.sum} of {row.size} tasks" for row in wins.itertuples()]
    return "; ".join(told) or nothing, verdict(len(by) > 0, by)


def _rise(kind: str, pairs: pd.DataFrame) -> tuple[str, str]:
    """Whether the area rises with size, in every pair of sizes."""
    area, gain = (
        pairs[(pairs.by == SIZE) & (pairs.measure == f"{measure}, {kind}")]
        for measure in ("area", "area_gain")
    )
    told, verdicts = [], []
    for row, beyond in zip(area.itertuples(), gain.itertuples(), strict=True):
        rises, gains = (as_text(x.difference, x.low, x.high, digits=3) for x in (row, beyond))
        told.append(
            f"{row.model} less {row.minus}: {rises} over {row.over}, of which beyond a random "
            f"order {gains}"
        )
        verdicts.append(order_calibration.decided_over(row.n, row.low, row.high))
    if verdicts == [REPRODUCED]:
        told, verdicts = [*told, "one pair is no trend"], []
    return _together(told, verdicts, "no two sizes of one family have it")


def _low_recall(kind: str, order: pd.DataFrame) -> tuple[str, str]:
    """Whether recall at the precision stays below one half, for every model that is counted."""
    told, verdicts = [], []
    for row in order[(order.kind == kind) & (order.forced == 1)].itertuples():
        if row.n_prompts < DECIDES:
            said = f"not counted, {row.n_prompts:.0f} prompts with a valid candidate"
        elif row.random_recall_at >= 0.5:
            said = f"not counted, a random order keeps {row.random_recall_at:.2f}"
        else:
            said = as_text(row.recall_at, row.recall_at_low, row.recall_at_high)
            verdicts.append(order_calibration.keeps_less_than_half(row))
        told.append(f"{row.model}: {said}")
    return _together(told, verdicts, "no model has it")


def _oracle_best(parts: pd.DataFrame) -> tuple[str, str]:
    """Where a validity is asked for; the area also counts settings that nobody would use."""
    by = parts.set_index(["model", "task"])
    oracle, rules = (by.diversity[by.decoder.str.startswith(x)] for x in ("oracle", "any rule"))
    nothing = f"no setting of any model reaches validity {LEVEL:g}"
    return _ahead(oracle.sub(rules, fill_value=0.0), nothing)


def _states(tasks: pd.DataFrame) -> tuple[str, str]:
    own = tasks[(tasks.task == "us-states") & tasks.order.notna()]
    told = "; ".join(
        f"{row.model}: shape {row.shape:.2g}, order {row.order:.2g}" for row in own.itertuples()
    )
    return told or reporting.TOO_LOW, verdict(len(own) > 0, own["shape"] - own.order)


def _sums(tasks: pd.DataFrame) -> tuple[str, str]:
    share = tasks.set_index(["model", "task"]).eval("order / total").dropna()
    told, holds = [], []
    for model in dict.fromkeys(tasks.model):
        for n in (2, 3):
            free, bound = (model, f"rng-{n}"), (model, f"rng-{n}-sum-at-most-10")
            if {free, bound} <= set(share.index):
                holds.append(share[bound] - share[free])
                shares = f"{share[free]:.0%} free, {share[bound]:.0%} bound"
                told.append(f"{model}, {n} digits: {shares}")
    return "; ".join(told) or reporting.TOO_LOW, verdict(bool(holds), holds)

"""Every model with results side by side (Fig. 4, 8, 9): stored rows are read, no model is loaded.

Knows which stored tables belong to which study. Rows of an older convention are left out and
named, so that all models are compared under the same definitions. Decides no claim.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
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
from calib_utils.studies import logit_shape, oracle_cutoffs, order_calibration
from calib_utils.studies.oracle_cutoffs import PRACTICAL, TASKS, areas
from calib_utils.studies.order_calibration import (
    ITEMS,
    JUDGES,
    TEXTS,
    decided_over,
    keeps_less_than_half,
)
from calib_utils.studies.reporting import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    TESTABLE,
    Finding,
    too_low,
    verdict,
)

# Enough to see what a model does, and few enough for one figure.
SHOWN_TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
ORACLE = "oracle_size"
_RULES = (*oracle_cutoffs.PRACTICAL, ORACLE)
PARTS = ("total", "order", "shape", "size")
_SUFFIXES = ("", "@end=line")  # the study of cutoffs asks chat models and base models so


@dataclass(frozen=True)
class Panel:
    """What is stored of every model, as tables with a column `model` (the folder's name).

    Args:
        models: model, name, family, stage, parameters, active, dtype of the weights, panel.
        settings, losses: of the tasks of chapter 03, Table 3 and the oracle size; `end` is how
            answers end, `weights` the beginning of their SHA-256.
        order: node measures of one kind of recall, as `order_calibration.measures`.
        logits: the sorted logits of each model that has them.
        left_out: folder and why.
    """

    models: pd.DataFrame
    settings: pd.DataFrame
    losses: pd.DataFrame
    order: pd.DataFrame
    logits: dict[str, pd.DataFrame]
    left_out: pd.DataFrame


@dataclass
class _Read:
    settings: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    order: list = field(default_factory=list)
    logits: dict = field(default_factory=dict)
    left_out: list = field(default_factory=list)


def read(results_dir: str | Path, recall: str = precision_recall.WEIGHTED) -> Panel:
    """Everything that is stored of every model; broken folders are left out and named.

    Args:
        recall: how candidates count in the order's measures.
    """
    results_dir, found = Path(results_dir), _Read()
    table = models(keys_in(results_dir))
    for key in table.model:
        for task in TASKS:
            _read_task(found, results_dir, key, task)
        _read_order(found, results_dir, key, recall)
        _read_logits(found, results_dir, key)
    return Panel(
        table,
        _joined(found.settings, ["model", "end", "weights", *COLUMNS[1:]]),
        _joined(found.losses, ["model", "task", *LOSS_COLUMNS]),
        _joined(found.order, ["model", "kind", "forced", "depth", "area", "recall_at"]),
        found.logits,
        pd.DataFrame(found.left_out, columns=["folder", "why"]),
    )


def keys_in(results_dir: str | Path) -> list[str]:
    """Names of the models' folders, drafts of killed runs left out."""
    paths.note_read(results_dir)
    folders = (path for path in Path(results_dir).iterdir() if path.is_dir())
    return sorted(path.name for path in folders if not path.name.startswith("."))


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def models(keys: Iterable[str]) -> pd.DataFrame:
    """What is known of models by their folders: those of the panel first, others by name alone."""
    rows = []
    for key in keys:
        one = find(key)
        row = {"model": key, "name": one.name if one else key, "panel": one.panel if one else ""}
        for name in ("family", "stage", "dtype"):
            row[name] = getattr(one, name) if one else ""
        for name in ("parameters", "active"):
            row[name] = float(getattr(one, name)) if one else float("nan")
        rows.append(row)
    columns = ["model", "name", "panel", "family", "stage", "dtype", "parameters", "active"]
    table = pd.DataFrame(rows, columns=columns)
    order = table.panel.map({"paper": 0, "embedded": 1}).fillna(2)
    return table.assign(order=order).sort_values(
        ["order", "family", "parameters", "model"], ignore_index=True
    )[columns]


def study_of(
    results_dir: str | Path, key: str, task: str
) -> tuple[storage.Stored | None, list[tuple[str, str]]]:
    """What chapter 03 stored of a model's task: the folder whose settings hold the oracle size.

    Returns:
        None where there is none that stands; and what was left out, as (folder, why).
    """
    left_out = []
    for suffix in _SUFFIXES:
        folder = storage.folder_of(Path(results_dir), key, task, suffix)
        try:
            stored = storage.read(folder)
        except ResultsError as error:
            left_out.append((f"{key}/{folder.name}", str(error)))
            continue
        if stored is None or ORACLE not in set(stored.settings.rule):
            continue
        if conventions.is_current(conventions.ROWS, stored.record):
            return stored, left_out
        why = "of an older convention: `python -m calib_utils reproduce --update`"
        left_out.append((f"{key}/{folder.name}", why))
    return None, left_out


def _read_task(found: _Read, results_dir: Path, key: str, task: str) -> None:
    stored, left_out = study_of(results_dir, key, task)
    found.left_out += left_out
    if stored is None:
        return
    end = stored.record["policies"]["end"]
    weights = stored.record["weights_sha256"][:12]
    # Chapter 02 stores more temperatures of the same task: a grid of its own, for one rule alone.
    settings, losses = (
        table[table.rule.isin(_RULES) & table.temperature.isin(TABLE3_TEMPERATURES)]
        for table in (stored.settings, stored.losses)
    )
    found.settings.append(settings.assign(model=key, end=end, weights=weights))
    found.losses.append(losses.assign(model=key, task=task))


def _read_order(found: _Read, results_dir: Path, key: str, recall: str) -> None:
    """Measures of the sweeps of chapter 04 whose texts are stored, labelled by its judges."""
    for end in ("eos", "line"):
        try:
            study = order_calibration.read(order_calibration.laptop(end=end), results_dir, key)
        except ResultsError as error:
            found.left_out.append((f"{key}/texts", str(error)))
            return
        measured = order_calibration.measures(study, recall)
        if len(measured):
            found.order.append(measured.assign(model=key))
            return


def _read_logits(found: _Read, results_dir: Path, key: str) -> None:
    path = records.logits_path(results_dir, key, logit_shape.STUDY)
    if not path.is_file():
        return
    try:
        curves, record = records.read_logits(path)
    except ResultsError as error:
        found.left_out.append((f"{key}/{path.name}", str(error)))
        return
    if conventions.is_current(conventions.LOGITS, record):
        found.logits[key] = curves
    else:
        why = "of an older convention: run 06_logit_shape again"
        found.left_out.append((f"{key}/{path.name}", why))


def sources(panel: Panel) -> pd.DataFrame:
    """What each number of a model comes from: which studies are stored of it."""
    tasks = panel.settings.groupby("model").task.nunique()
    nodes = panel.order.groupby("model").size() if len(panel.order) else pd.Series(dtype=int)
    table = panel.models[["model", "family", "stage", "parameters", "dtype"]].copy()
    table["parameters"] = [f"{n / 1e9:.2g} B" for n in table.parameters]
    table["tasks"] = table.model.map(tasks).fillna(0).astype(int)
    first = panel.settings.groupby("model")[["end", "weights"]].first()
    table["answers end"] = table.model.map(first.end)
    table["nodes with labels"] = table.model.map(nodes).fillna(0).astype(int)
    table["logits"] = ["yes" if key in panel.logits else "no" for key in table.model]
    table["SHA-256 of weights"] = table.model.map(first.weights)
    return table


def frontier_table(panel: Panel) -> pd.DataFrame:
    """Area under each rule's frontier of validity and diversity: a row per model and task."""
    parts = [areas(own).assign(model=key) for key, own in _by_model(panel.settings)]
    table = _joined(parts, ["model", "task", *_RULES])
    return table[["model", "task", *_RULES]]


def split_table(panel: Panel, level: float = oracle_cutoffs.LEVEL) -> pd.DataFrame:
    """`oracle_cutoffs.operating_points` of every model, with a column `model` in front."""
    losses = dict(list(_by_model(panel.losses)))
    parts = []
    for key, own in _by_model(panel.settings):
        found = oracle_cutoffs.operating_points(own, losses[key], level)
        found.insert(0, "model", key)
        parts.append(found)
    return _joined(parts, ["model", "task", "decoder", "diversity", *PARTS])


def order_table(panel: Panel) -> pd.DataFrame:
    """Area and recall at precision .8 by model, kind, forced tokens and depth, with intervals."""
    parts = [
        order_calibration.depth_table(own).assign(model=key) for key, own in _by_model(panel.order)
    ]
    table = _joined(parts, ["model", "kind", "forced", "depth", "area", "recall_at"])
    return table[["model", *table.columns.drop("model")]]


def sized(table: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """The table with family, stage and parameters of each row's model; unknown sizes left out."""
    known = models.loc[models.parameters.notna(), ["model", "family", "stage", "parameters"]]
    return table.merge(known, on="model")


def published_order() -> pd.DataFrame:
    """`precision_recall.from_published` with the parameters of its models."""
    table = precision_recall.from_published()
    return table.assign(parameters=[float(find(model).parameters) for model in table.model])


def beside_published_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """The fits of `shape_table` below the paper's 18, as `logit_shape.beside_published`."""
    parts = [logit_shape.beside_published(own, key) for key, own in _by_model(fits)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)


def shape_table(panel: Panel) -> pd.DataFrame:
    """The fitted parameters of App. I: a row per model and query, `logit_shape.fit_table`."""
    parts = [logit_shape.fit_table(own).assign(model=key) for key, own in panel.logits.items()]
    table = _joined(parts, ["model", "query", "c", "mse", "r2"])
    return table[["model", *table.columns.drop("model")]]


def _by_model(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    return table.groupby("model", sort=False) if len(table) else ()


def size_pairs(models: pd.DataFrame) -> list[tuple[str, str]]:
    """Neighbours in size (smaller, larger) among models of one family, stage and number format."""
    found = []
    known = models[(models.family != "") & models.parameters.notna()]
    for _, own in known.groupby(["family", "stage", "dtype"], sort=False):
        ordered = list(own.sort_values("parameters").model)
        found += list(pairwise(ordered))
    return found


def stage_pairs(models: pd.DataFrame) -> list[tuple[str, str]]:
    """(base, post-trained) pairs of the paper's panel of which both are here."""
    here = {find(key).name: key for key in models.model if find(key)}
    names = [(base.name, tuned.name) for base, tuned in pairs()]
    return [(here[base], here[tuned]) for base, tuned in names if {base, tuned} <= set(here)]


# What all models together say: pairs compared, and the paper's claims about its panel decided.
#
# Tables of `panel` in, tables out. A claim about every model is reproduced where each model that
# is counted agrees, not reproduced where one does not, and open where one is undecided.

ALONE = "T = 1 alone"
SIZE, STAGE = "size", "stage"
_TASK_MEASURES = {
    "oracle area": "area of the oracle-size frontier",
    "practical area": "area of the best practical frontier",
    "order": "order part at T = 1, nats",
    "shape": "shape part at T = 1, nats",
}
_COLUMNS = ["by", "minus", "model", "measure", "difference", "low", "high", "over", "n"]


def testable(found: Panel, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of models and tasks where some setting's validity is at least `TESTABLE`."""
    best = found.settings.groupby(["model", "task"]).validity.max()
    enough = best[best >= TESTABLE].index
    return table[pd.MultiIndex.from_frame(table[["model", "task"]]).isin(enough)]


def pair_table(found: Panel) -> pd.DataFrame:
    """Larger less smaller and post-trained less base, for every pair of which both are here.

    Order is paired by prompt and seed, tasks by task; the interval is a bootstrap over them. On
    tasks both models' numbers are exact, and the interval says how far the tasks agree.

    Returns:
        Columns by, minus, model, measure, difference, low, high, over (what was paired).
    """
    return _pairs(found, _task_measures(found, split_table(found))).drop(columns="n")


def _pairs(found: Panel, whole: pd.DataFrame) -> pd.DataFrame:
    """`pair_table` from the table of `_task_measures`, with `n`, the number of what was paired."""
    rows = []
    known = ((SIZE, size_pairs), (STAGE, stage_pairs))
    for by, (first, second) in [(by, pair) for by, of in known for pair in of(found.models)]:
        names = {"by": by, "minus": first, "model": second}
        for kind in (ITEMS, TEXTS):
            rows += [names | row for row in _order_difference(found.order, kind, first, second)]
        for measure, words in _TASK_MEASURES.items():
            wide = whole.pivot(index="task", columns="model", values=measure)
            if {first, second} <= set(wide):
                apart = (wide[second] - wide[first]).dropna().rename("d").reset_index()
                mean = cluster_interval(apart, "d", outer="task", inner=None)
                row = {"measure": words, "difference": mean.mean, "low": mean.low}
                row |= {"high": mean.high, "over": f"{len(apart)} tasks", "n": len(apart)}
                rows.append(names | row)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _task_measures(found: Panel, parts: pd.DataFrame) -> pd.DataFrame:
    """Per testable model and task the numbers that `_TASK_MEASURES` names.

    Args:
        parts: of `model_panel.split_table`.
    """
    areas = testable(found, frontier_table(found))
    table = areas[["model", "task"]].assign(**{"oracle area": areas[ORACLE]})
    table["practical area"] = areas[list(PRACTICAL)].max(axis=1)
    parts = parts[parts.decoder == ALONE][["model", "task", "order", "shape", "total"]]
    return table.merge(parts, on=["model", "task"], how="left")


def _order_difference(order: pd.DataFrame, kind: str, first: str, second: str) -> Iterable[dict]:
    if not len(order):
        return
    own = order[(order.kind == kind) & (order.forced == 1) & order.model.isin([first, second])]
    if own.model.nunique() < 2:
        return
    # Numbered, so that the difference is always the second model's less the first's.
    table = precision_recall.depth_differences(own.assign(place=own.model == second), by="place")
    for row in table.itertuples():
        yield {
            "measure": f"{row.measure}, {kind}",
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
            "over": f"{row.n_prompts} prompts",
            "n": row.n_prompts,
        }


def findings(found: Panel) -> pd.DataFrame:
    """The paper's claims about its panel: columns claim, source, found, verdict."""
    order, fits = order_table(found), shape_table(found)
    parts = split_table(found)
    tasks = _task_measures(found, parts)
    pairs = _pairs(found, tasks)
    rows = [_area_rises(kind, pairs) for kind in (ITEMS, TEXTS)]
    rows += [_recall_is_low(kind, order) for kind in (ITEMS, TEXTS)]
    rows += [_oracle_above(tasks), _oracle_best(parts)]
    rows += [_states_are_shape(tasks), _sums_are_order(tasks)]
    rows += [_forms_fit(fits), _heads_end(fits)]
    return pd.DataFrame(rows)


def _together(verdicts: Iterable[str]) -> str:
    """One model that disagrees refutes it; one that is undecided leaves it open."""
    found = set(verdicts)
    if NOT_REPRODUCED in found:
        return NOT_REPRODUCED
    return REPRODUCED if found == {REPRODUCED} else NOT_TESTABLE


def _area_rises(kind: str, pairs: pd.DataFrame) -> Finding:
    own, gains = (
        pairs[(pairs.by == SIZE) & (pairs.measure == f"{measure}, {kind}")]
        for measure in ("area", "area_gain")
    )
    told, verdicts = [], []
    for row, gain in zip(own.itertuples(), gains.itertuples(), strict=True):
        told.append(
            f"{row.model} less {row.minus}: {_told(row)} over {row.over}, of which beyond a random "
            f"order {_told(gain)}"
        )
        verdicts.append(decided_over(row.n, row.low, row.high))
    said = _together(verdicts)
    if said == REPRODUCED and len(verdicts) < 2:
        said = NOT_TESTABLE
        told.append("one pair is no trend")
    return Finding(
        f"The area under the frontier rises with size ({kind}, {JUDGES[kind]})",
        "Sec. 4, Fig. 4 and 8",
        "; ".join(told) or "no two sizes of one family have it",
        said,
    )


def _told(row) -> str:
    return as_text(row.difference, row.low, row.high, digits=3)


def _recall_is_low(kind: str, order: pd.DataFrame) -> Finding:
    told, verdicts = [], []
    for row in order[(order.kind == kind) & (order.forced == 1)].itertuples():
        if row.n_prompts < DECIDES:
            few = f"{row.n_prompts:.0f} prompts with a valid candidate"
            told.append(f"{row.model}: not counted, {few}")
            continue
        if row.random_recall_at >= 0.5:
            random = f"a random order keeps {row.random_recall_at:.2f}"
            told.append(f"{row.model}: not counted, {random}")
            continue
        recall = as_text(row.recall_at, row.recall_at_low, row.recall_at_high)
        told.append(f"{row.model}: {recall}")
        verdicts.append(keeps_less_than_half(row))
    return Finding(
        f"At precision {LEVEL:g} every model keeps less than half of the valid tokens "
        f"({kind}, {JUDGES[kind]})",
        "Sec. 4, Fig. 4 and 8",
        "; ".join(told) or "no model has it",
        _together(verdicts),
    )


def _oracle_above(tasks: pd.DataFrame) -> Finding:
    own = tasks.set_index("model")
    above = own["oracle area"] - own["practical area"]
    return Finding(
        "For every model the oracle-size frontier lies above those of practical rules (by area)",
        "Sec. 5, Fig. 9",
        _counts(above > 0) or too_low(),
        verdict(len(tasks) > 0, above),
    )


def _counts(holds: pd.Series) -> str:
    """On how many tasks something holds, by the level `model` of the index."""
    return "; ".join(
        f"{model}: on {int(own.sum())} of {len(own)} tasks"
        for model, own in holds.groupby(level="model", sort=False)
    )


def _oracle_best(parts: pd.DataFrame) -> Finding:
    """Where a validity is asked for; the area also counts settings that nobody would use."""
    best = {
        name: parts[parts.decoder.astype(str).str.startswith(name)]
        .set_index(["model", "task"])
        .diversity
        for name in ("oracle size", "any rule")
    }
    both = pd.DataFrame(best).fillna(0.0)
    wins = both["oracle size"] - both["any rule"]
    return Finding(
        f"At validity {LEVEL:g} the oracle size is more diverse than any practical rule, for every "
        "model",
        "Sec. 5, Fig. 9",
        _counts(wins > 0) or f"no setting of any model reaches validity {LEVEL:g}",
        verdict(len(both) > 0, wins),
    )


def _states_are_shape(tasks: pd.DataFrame) -> Finding:
    own = tasks[(tasks.task == "us-states") & tasks.order.notna()]
    told = [
        f"{row.model}: shape {row.shape:.2g}, order {row.order:.2g}" for row in own.itertuples()
    ]
    return Finding(
        "On US states shape loses more than order does, for every model (T = 1, nats)",
        "Sec. 5, Fig. 9",
        "; ".join(told) or too_low(),
        verdict(len(own) > 0, own["shape"] - own.order),
    )


def _sums_are_order(tasks: pd.DataFrame) -> Finding:
    share = (tasks.order / tasks.total).groupby([tasks.model, tasks.task]).first()
    told, holds = [], []
    for model in dict.fromkeys(tasks.model):
        for n in (2, 3):
            free, bound = (model, f"rng-{n}"), (model, f"rng-{n}-sum-at-most-10")
            if {free, bound} <= set(share.dropna().index):
                holds.append(share[bound] - share[free])
                told.append(
                    f"{model}, {n} digits: {share[free]:.0%} free, {share[bound]:.0%} bound"
                )
    return Finding(
        "A bound on the sum raises the order's share of the loss, for every model (T = 1)",
        "Sec. 5, Fig. 9",
        "; ".join(told) or too_low(),
        verdict(bool(holds), holds),
    )


def _forms_fit(fits: pd.DataFrame) -> Finding:
    theirs = logit_shape.published_fits().r2.min()
    told = [
        f"{model}: {r2:.3f}" for model, r2 in fits.groupby("model", sort=False).r2.min().items()
    ]
    return Finding(
        "A line, then a logarithm, fits the highest 2,000 logits of every model",
        "App. I, Fig. 13–15",
        f"lowest R² of {', '.join(told) or 'no model'}; published {theirs:.3f}, which decides",
        verdict(bool(told), fits.r2 - theirs),
    )


def _heads_end(fits: pd.DataFrame) -> Finding:
    theirs = logit_shape.published_fits().c
    ranges = fits.groupby("model", sort=False).c.agg(["min", "max"])
    told = [f"{row.Index}: {row.min} to {row.max}" for row in ranges.itertuples()]
    return Finding(
        "The breakpoint lies where the paper's do, for every model",
        "App. I, Fig. 13–15",
        f"{'; '.join(told) or 'no model'}; published {theirs.min()} to {theirs.max()}",
        verdict(bool(told), bool(fits.c.between(theirs.min(), theirs.max()).all())),
    )

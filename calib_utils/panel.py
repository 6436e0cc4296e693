"""Every model with results side by side (Fig. 4, 8, 9): stored rows are read, no model is loaded.

Knows which stored tables belong to which study. Rows of an older convention are left out and
named, so that all models are compared under the same definitions. Decides no claim.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd

from calib_utils import (
    conventions,
    kept_logits,
    logit_shape,
    open_plans,
    operating,
    order_study,
    paths,
    pr_curves,
    results,
)
from calib_utils.checkpoints import find, pairs
from calib_utils.cutoffs import TASKS, areas
from calib_utils.errors import ResultsError
from calib_utils.rules import TABLE3_TEMPERATURES
from calib_utils.schema import COLUMNS, LOSS_COLUMNS

# Enough to see what a model does, and few enough for one figure.
SHOWN_TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
ORACLE = "oracle_size"
_RULES = (*operating.PRACTICAL, ORACLE)
PARTS = ("total", "order", "shape", "size")
_SUFFIXES = ("", "@end=line")  # the study of cutoffs asks chat models and base models so


@dataclass(frozen=True)
class Panel:
    """What is stored of every model, as tables with a column `model` (the folder's name).

    Args:
        models: model, name, family, stage, parameters, active, dtype of the weights, panel.
        settings, losses: of the tasks of chapter 03, Table 3 and the oracle size; `end` is how
            answers end, `weights` the beginning of their SHA-256.
        order: node measures of one kind of recall, as `order_study.measures`.
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


def read(results_dir: str | Path, recall: str = pr_curves.WEIGHTED) -> Panel:
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
) -> tuple[results.Stored | None, list[tuple[str, str]]]:
    """What chapter 03 stored of a model's task: the folder whose settings hold the oracle size.

    Returns:
        None where there is none that stands; and what was left out, as (folder, why).
    """
    left_out = []
    for suffix in _SUFFIXES:
        folder = results.folder_of(Path(results_dir), key, task, suffix)
        try:
            stored = results.read(folder)
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
            study = order_study.read(open_plans.laptop(end=end), results_dir, key)
        except ResultsError as error:
            found.left_out.append((f"{key}/texts", str(error)))
            return
        measured = order_study.measures(study, recall)
        if len(measured):
            found.order.append(measured.assign(model=key))
            return


def _read_logits(found: _Read, results_dir: Path, key: str) -> None:
    path = kept_logits.path_of(results_dir, key, logit_shape.STUDY)
    if not path.is_file():
        return
    try:
        curves, record = kept_logits.read(path)
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


def split_table(panel: Panel, level: float = operating.LEVEL) -> pd.DataFrame:
    """`operating.operating_points` of every model, with a column `model` in front."""
    losses = dict(list(_by_model(panel.losses)))
    parts = []
    for key, own in _by_model(panel.settings):
        found = operating.operating_points(own, losses[key], level)
        found.insert(0, "model", key)
        parts.append(found)
    return _joined(parts, ["model", "task", "decoder", "diversity", *PARTS])


def order_table(panel: Panel) -> pd.DataFrame:
    """Area and recall at precision .8 by model, kind, forced tokens and depth, with intervals."""
    parts = [order_study.depth_table(own).assign(model=key) for key, own in _by_model(panel.order)]
    table = _joined(parts, ["model", "kind", "forced", "depth", "area", "recall_at"])
    return table[["model", *table.columns.drop("model")]]


def sized(table: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """The table with family, stage and parameters of each row's model; unknown sizes left out."""
    known = models.loc[models.parameters.notna(), ["model", "family", "stage", "parameters"]]
    return table.merge(known, on="model")


def published_order() -> pd.DataFrame:
    """`pr_curves.from_published` with the parameters of its models."""
    table = pr_curves.from_published()
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

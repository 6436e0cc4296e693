"""Local precision and recall at every node of a sweep, and the frontiers over all cutoffs.

A table of labelled candidates in, tables out (Def. 4.1, Fig. 3). Knows no model and no
judge. Only swept candidates count: a sweep with stride 10 is a sample of the ranks, so precision at
a cutoff is estimated on the swept ranks up to it, and recall is relative to what the sweep found.
"""

import numpy as np
import pandas as pd

from calib_utils import paths
from calib_utils.errors import ResultsError
from calib_utils.metrics import frontier_area
from calib_utils.pr_baselines import LEVEL, random_order

NODE = ["prompt_id", "category", "seed", "depth", "node"]
# Weighted counts the valid completions below a candidate, the sweep's stand-in for N of Def. 4.1;
# unweighted counts valid candidates, as the authors' published demo data does.
WEIGHTED, UNWEIGHTED = "weighted", "unweighted"
# Multiples of a twentieth, each the float nearest to it: a recall of 7/20 reaches the level 7/20.
RECALL_GRID = np.arange(21) / 20
_PUBLISHED_RANKS = tuple(100 * k + r for k in range(20) for r in (1, 50, 100))


def local_curves(candidates: pd.DataFrame) -> pd.DataFrame:
    """Precision and both recalls at every node, over all cutoffs "keep candidates up to a rank".

    Args:
        candidates: a row per swept candidate: prompt_id, category, seed, depth (from 1), node (any
            hashable name of the path before), rank (from 0), valid, weight (valid completions found
            below it, above 0 exactly where valid).

    Returns:
        A row per node and cutoff, by rising rank: the node's columns, rank (of the last candidate
        kept), n_kept, n_valid, precision, recall_weighted, recall_unweighted. Both recalls are NaN
        at a node without a valid candidate, where Def. 4.1 divides by 0.
    """
    number = candidates.groupby(NODE, sort=False, dropna=False).ngroup()
    table = candidates.assign(_number=number).sort_values(["_number", "rank"], kind="stable")
    number = table.pop("_number").to_numpy()
    valid = table.valid.astype(np.int64).groupby(number)
    weight = table.weight.astype(float).groupby(number)
    curves = table[[*NODE, "rank"]].copy()
    curves["n_kept"] = valid.cumcount() + 1
    curves["n_valid"] = valid.cumsum()
    curves["precision"] = curves.n_valid / curves.n_kept
    # The last of the sums, not another sum: the last recall is exactly 1.
    sums = weight.cumsum()
    totals = sums.groupby(number).transform("last")
    curves["recall_weighted"] = sums / totals.where(totals > 0)
    totals = curves.n_valid.groupby(number).transform("last")
    curves["recall_unweighted"] = curves.n_valid / totals.where(totals > 0)
    return curves.reset_index(drop=True)


def node_measures(curves: pd.DataFrame, recall: str = WEIGHTED) -> pd.DataFrame:
    """Area under each node's frontier and recall at a precision, beside a random order's.

    The area is a staircase: at a recall level r the best precision of a cutoff with recall of at
    least r, integrated over r from 0 to 1. Nothing is interpolated.

    Args:
        curves: of `local_curves`.
        recall: "weighted" or "unweighted".

    Returns:
        A row per node: its columns, recall (the kind), n_candidates, n_valid, prevalence, area,
        recall_at (at precision `LEVEL`, 0 where no cutoff reaches it), random_area and
        random_recall_at (of `random_order`), area_gain = area - random_area. NaN but for the counts
        and the prevalence where nothing is valid: such a node has no recall.
    """
    rows = []
    for key, own in curves.groupby(NODE, sort=False, dropna=False):
        columns = own[["n_kept", "n_valid", f"recall_{recall}"]]
        found = measures_of_curve(*(columns[name].to_numpy() for name in columns))
        rows.append(dict(zip(NODE, key, strict=True)) | {"recall": recall} | found)
    return pd.DataFrame(rows)


def measures_of_curve(
    n_kept: np.ndarray, n_valid: np.ndarray, recall: np.ndarray, level: float = LEVEL
) -> dict[str, float]:
    """The numbers of `node_measures` from one curve: [cutoff] arrays, the last keeps all."""
    n, total = int(n_kept[-1]), int(n_valid[-1])
    random = random_order(n, total, level, tuple(map(int, n_kept)))
    area = recall_at = np.nan
    if total:
        precision = n_valid / n_kept
        area = frontier_area(recall, precision)
        recall_at = float(np.where(precision >= level, recall, 0.0).max())
    return {
        "n_candidates": n,
        "n_valid": total,
        "prevalence": total / n,
        "area": area,
        "recall_at": recall_at,
        "random_area": random.area,
        "random_recall_at": random.recall_at,
        "area_gain": area - random.area,
    }


def frontiers_on_grid(curves: pd.DataFrame, recall: str = WEIGHTED) -> pd.DataFrame:
    """The best precision of each node with recall of at least each level of `RECALL_GRID`.

    Returns:
        A row per node and level: the node's columns, recall (the kind), recall_level, precision;
        NaN where nothing is valid.
    """
    keys, best = [], []
    for key, own in curves.groupby(NODE, sort=False, dropna=False):
        row = np.full(len(RECALL_GRID), np.nan)
        if own.n_valid.iloc[-1]:
            ahead = np.maximum.accumulate(own.precision.to_numpy()[::-1])[::-1]
            row = ahead[np.searchsorted(own[f"recall_{recall}"].to_numpy(), RECALL_GRID)]
        keys.append(key)
        best.append(row)
    nodes = pd.DataFrame(keys, columns=NODE)
    grid = nodes.loc[nodes.index.repeat(len(RECALL_GRID))].reset_index(drop=True)
    levels = np.tile(RECALL_GRID, len(nodes))
    return grid.assign(recall=recall, recall_level=levels, precision=np.concatenate(best))


def published_points() -> pd.DataFrame:
    """The authors' demo points with the counts behind them, from data/published.

    Each precision and recall solves to a whole number of valid tokens among the top `rank` ones;
    recall is unweighted and relative to the 2,000 swept ranks.

    Returns:
        Columns model, prefix, n_kept (rank from 1), n_valid, precision, recall_unweighted, group.

    Raises:
        ResultsError: a point that no whole number explains.
    """
    table = pd.read_csv(paths.package_data("published", "precision_recall.csv"))
    table["n_kept"] = np.take(_PUBLISHED_RANKS, table["index"])
    count = table.precision * table.n_kept
    table["n_valid"] = count.round().astype(np.int64)
    total = table.groupby(["model", "prefix"]).n_valid.transform("max")
    recall = table.n_valid / total
    # Six decimals in the file: half a unit of the last one, times up to 2,000 ranks.
    off = (abs(count - table.n_valid) > 2e-3) | (abs(recall - table.recall) > 1e-6)
    if off.any():
        row = table[off].iloc[0]
        raise ResultsError(
            f"data/published/precision_recall.csv: {row.model}, {row.prefix!r}, index "
            f"{row['index']}: precision {row.precision} and recall {row.recall} are not counts of "
            f"the top {row.n_kept} ranks; restore the file"
        )
    points = table[["model", "prefix", "n_kept", "n_valid", "group"]].copy()
    points["precision"] = table.n_valid / table.n_kept
    return points.assign(recall_unweighted=recall)


def from_published() -> pd.DataFrame:
    """The numbers of `node_measures` from the authors' demo points: one row per model and prefix.

    Unweighted recall, over the 60 published cutoffs only; the random order is given the same 60.
    More cutoffs could raise the frontier, never lower it.
    """
    rows = []
    for (model, prefix), own in published_points().groupby(["model", "prefix"], sort=False):
        columns = own[["n_kept", "n_valid", "recall_unweighted"]]
        found = measures_of_curve(*(columns[name].to_numpy() for name in columns))
        rows.append({"model": model, "prefix": prefix, "recall": UNWEIGHTED} | found)
    return pd.DataFrame(rows)

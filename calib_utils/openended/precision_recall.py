"""What a precision-recall frontier looks like when the ranking knows nothing, or the judge errs.

Numbers of candidates and of valid ones in, expected area and recall out. Knows no model and no
label. A frontier takes the best cutoff after the fact, so a random order gets more than its
prevalence: the smaller the node, the more.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd

from calib_utils import paths
from calib_utils.core.metrics import cluster_interval, cluster_mean, frontier_area
from calib_utils.errors import ResultsError

LEVEL = 0.8  # of precision, Fig. 4 and 8
# The exact computation holds (n/2)^2 thresholds against n states; beyond this it is simulated.
_EXACT_UP_TO = 110
_DRAWS = 4000


@dataclass(frozen=True)
class RandomOrder:
    """Expected area and recall at a precision of a random order of `n` candidates."""

    n: int
    n_valid: int
    area: float
    recall_at: float
    standard_error: float  # of the area, 0 where computed exactly


@dataclass(frozen=True)
class NoiseFloor:
    """What a perfect order measures under a judge that errs: means and sd over drawn labels."""

    area: float
    area_sd: float
    recall_at: float
    recall_at_sd: float
    prevalence: float  # as the judge sees it


@lru_cache(maxsize=4096)
def random_order(
    n: int,
    n_valid: int,
    level: float = LEVEL,
    cutoffs: tuple[int, ...] | None = None,
    seed: int = 0,
) -> RandomOrder:
    """Area under the frontier and recall at a precision, averaged over all orders.

    The same for weighted and for unweighted recall: in a random order the weights of the valid
    candidates are exchangeable, and precision does not see them, so the expected recall of every
    cutoff is that of counts.

    Up to 110 candidates the expectation is exact: a walk over the states (cutoff, valid ones
    kept), from the last cutoff back, finds for every precision t the expected recall of the largest
    cutoff that reaches t; the area is the integral of that over t. Above, the mean of 4,000 seeded
    random orders with its standard error.

    Args:
        n: candidates.
        n_valid: valid ones among them.
        level: precision, in (0, 1].
        cutoffs: numbers of candidates kept that a frontier may use, rising to n; all from 1 to n
            by default.
        seed: of the simulation.

    Returns:
        NaN for area and recall where nothing is valid.

    >>> random_order(2, 1).area  # the valid one is first (1) or second (1/2)
    0.75
    """
    cutoffs = cutoffs or tuple(range(1, n + 1))
    if n_valid == 0:
        return RandomOrder(n, 0, math.nan, math.nan, 0.0)
    if n <= _EXACT_UP_TO:
        thresholds = {found / kept for kept in cutoffs for found in range(min(kept, n_valid) + 1)}
        above = np.array(sorted(t for t in thresholds if t > n_valid / n))
        recall = _recall_at_thresholds(n, n_valid, np.append(above, level), cutoffs)
        # Below the prevalence, keeping all reaches every precision with recall 1.
        area = n_valid / n + float(np.diff(above, prepend=n_valid / n) @ recall[:-1])
        return RandomOrder(n, n_valid, area, float(recall[-1]), 0.0)
    precision, recall = _simulated(n, n_valid, cutoffs, np.random.default_rng(seed))
    areas, reached = _area_and_recall(precision, recall, level)
    error = float(areas.std(ddof=1) / math.sqrt(len(areas)))
    return RandomOrder(n, n_valid, float(areas.mean()), float(reached.mean()), error)


def _area_and_recall(precision: np.ndarray, recall: np.ndarray, level: float):
    """Area under the frontier, and recall at a precision, of curves [..., cutoff].

    The area of `metrics.frontier_area`, for many curves at once whose recall never falls.
    """
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    area = (best * np.diff(recall, prepend=0.0, axis=-1)).sum(axis=-1)
    return area, np.where(precision >= level, recall, 0.0).max(axis=-1)


def _recall_at_thresholds(n: int, n_valid: int, thresholds: np.ndarray, cutoffs: tuple):
    """Expected recall of the largest cutoff with precision of at least each threshold.

    A random order read backwards is a random order: of `kept` candidates with a valid ones, the
    last is valid with probability a / kept. The first cutoff met on the way back that reaches the
    threshold is the largest, and holds the most recall.
    """
    found = np.arange(n_valid + 1)
    p = np.zeros((len(thresholds), n_valid + 1))
    p[:, n_valid] = 1.0
    recall = np.zeros(len(thresholds))
    allowed = set(cutoffs)
    for kept in range(n, 0, -1):
        if kept in allowed:
            # Quotients of small integers are rounded correctly: equal fractions compare equal.
            reached = found / kept >= thresholds[:, None]
            recall += np.where(reached, p, 0.0) @ (found / n_valid)
            p[reached] = 0.0
        valid = np.minimum(found / kept, 1.0)
        # Column a takes what loses an invalid candidate, and what loses a valid one from a + 1.
        p[:, :-1] = p[:, :-1] * (1 - valid[:-1]) + p[:, 1:] * valid[1:]
        p[:, -1] *= 1 - valid[-1]
    return recall


def _simulated(n: int, n_valid: int, cutoffs: tuple, rng: np.random.Generator):
    """Precision and recall [draw, cutoff] of random orders: valid ones kept, step by step."""
    found = np.zeros((_DRAWS, len(cutoffs)), dtype=np.int64)
    before, kept_before = np.zeros(_DRAWS, dtype=np.int64), 0
    for column, kept in enumerate(cutoffs):
        left = n_valid - before
        others = n - kept_before - left
        before = before + rng.hypergeometric(left, others, kept - kept_before)
        found[:, column], kept_before = before, kept
    return found / np.array(cutoffs), found / n_valid


def noise_floor(
    n: int,
    n_valid: int,
    false_positive: float,
    false_negative: float,
    n_draws: int = 50,
    seed: int = 0,
) -> NoiseFloor:
    """Area and recall that a perfect order seems to have, scored by a judge that errs.

    The simulated judge errs independently from candidate to candidate; a real one, whose errors
    depend on the text, need not.

    Args:
        n: candidates, the truly valid ones first.
        n_valid: truly valid ones, at least 1.
        false_positive: share of invalid candidates that the judge calls valid.
        false_negative: share of valid candidates that the judge calls invalid.
        n_draws: seeded sets of labels; those without a valid label are left out.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    called = np.where(np.arange(n) < n_valid, 1 - false_negative, false_positive)
    kept = np.arange(1, n + 1)
    seen = []
    for _ in range(n_draws):
        found = np.cumsum(rng.random(n) < called)
        if found[-1]:
            precision = found / kept
            area, reached = _area_and_recall(precision, found / found[-1], LEVEL)
            seen.append((area, reached, precision[-1]))
    if len(seen) < 2:
        return NoiseFloor(*[math.nan] * 5)
    area, reached, prevalence = np.mean(seen, axis=0)
    area_sd, reached_sd, _ = np.std(seen, axis=0, ddof=1)
    return NoiseFloor(*map(float, (area, area_sd, reached, reached_sd, prevalence)))


# Local precision and recall at every node of a sweep, and the frontiers over all cutoffs.
#
# A table of labelled candidates in, tables out (Def. 4.1, Fig. 3). Knows no model and no judge.
# Only swept candidates count: a sweep with stride 10 is a sample of the ranks, so precision at a
# cutoff is estimated on the swept ranks up to it, and recall is relative to what the sweep found.

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


# Frontiers, areas and recalls of many nodes by depth, with intervals (Fig. 2, 4, 7 and 8).
#
# Tables of `pr_curves` in, tables out. Knows no model, no judge and no candidate.

MEASURES = ("area", "area_gain", "recall_at")


def frontiers_by_depth(grid: pd.DataFrame, by: str = "depth") -> pd.DataFrame:
    """Mean, lowest and highest frontier at each depth (Fig. 2 right).

    The mean weighs prompts equally, and seeds within a prompt, as the summary's does; lowest and
    highest are over single nodes. Nodes without recall are not in it: `depth_summary` counts them.

    Args:
        grid: of `frontiers_on_grid`.
        by: the column that tells the curves apart; another one overlays other groups (Fig. 7).

    Returns:
        Columns `by`, recall, recall_level, mean, lowest, highest.
    """
    keys = [by, "recall", "recall_level"]
    table = grid.dropna(subset="precision")
    mean = table.groupby([*keys, "prompt_id", "seed"]).precision.mean()
    mean = mean.groupby([*keys, "prompt_id"]).mean().groupby(keys).mean()
    extremes = table.groupby(keys).precision.agg(["min", "max"])
    found = pd.DataFrame({"mean": mean, "lowest": extremes["min"], "highest": extremes["max"]})
    return found.reset_index()


def depth_summary(measures: pd.DataFrame, by: str = "depth") -> pd.DataFrame:
    """Mean area and recall at the precision by depth, with bootstrap intervals and baselines.

    Means and intervals are those of `cluster_interval`: prompts and seeds within them are drawn
    again, nodes of one (prompt, seed) stay together.

    Args:
        measures: of `node_measures`, of one kind of recall.
        by: the column of groups.

    Returns:
        A row per depth: n_prompts and n_runs ((prompt, seed) pairs) with a defined node, n_nodes,
        n_undefined (nodes without recall, in no mean but that of `prevalence_all`), prevalence,
        random_area and random_recall_at (means over defined nodes), area, area_gain, recall_at and
        past_half (what area_gain exceeds half of a perfect order's by), each with _low and _high.
    """
    rows = []
    for group, own in measures.groupby(by, sort=True):
        defined = own[own.n_valid > 0]
        past_half = defined.area_gain - (1 - defined.random_area) / 2
        defined = defined.assign(past_half=past_half)
        row = {by: group, "recall": own.recall.iloc[0], "n_nodes": len(own)}
        row["n_undefined"] = len(own) - len(defined)
        row["prevalence_all"] = cluster_mean(own, "prevalence")
        for name in ("prevalence", "random_area", "random_recall_at"):
            row[name] = cluster_mean(defined, name)
        for name in (*MEASURES, "past_half"):
            found = cluster_interval(defined, name)
            row |= found.columns(name)
        rows.append(row | {"n_prompts": found.n_outer, "n_runs": found.n_inner})
    return pd.DataFrame(rows)


def depth_differences(measures: pd.DataFrame, by: str = "depth") -> pd.DataFrame:
    """Every two depths compared within the same (prompt, seed): the later one minus the earlier.

    Runs that have a defined node at one of the two depths only are left out, and counted.

    Returns:
        A row per pair and measure: `by`, minus, measure, difference, low, high, n_prompts, n_runs,
        n_unpaired.
    """
    defined = measures[measures.n_valid > 0]
    means = defined.groupby([by, "prompt_id", "seed"])[list(MEASURES)].mean()

    def of(group) -> pd.DataFrame:
        return means[means.index.get_level_values(0) == group].droplevel(0)

    rows = []
    for early, late in combinations(sorted(measures[by].unique()), 2):
        apart = (of(late) - of(early)).reset_index()
        paired = apart.dropna(subset="area")
        for name in MEASURES:
            found = cluster_interval(paired, name)
            rows.append(
                {
                    by: late,
                    "minus": early,
                    "measure": name,
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "n_prompts": found.n_outer,
                    "n_runs": found.n_inner,
                    "n_unpaired": len(apart) - len(paired),
                }
            )
    return pd.DataFrame(rows)

"""Local precision and recall over the ranks of a node (Def. 4.1), and what to hold them against.

Labelled candidates or counts in; curves, frontiers, areas and their means by depth out, with a
random order and an erring judge beside them. Knows no model and no judge.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd

from calib_utils import paths
from calib_utils.core.metrics import cluster_interval, cluster_mean

LEVEL = 0.8  # of precision, Fig. 4 and 8
NODE = ["prompt_id", "category", "seed", "depth", "node"]
MEASURES = ("area", "area_gain", "recall_at")
# Weighted counts the valid completions below a candidate, the sweep's stand-in for N of Def. 4.1;
# unweighted counts valid candidates, as the authors' published demo data does.
WEIGHTED, UNWEIGHTED = "weighted", "unweighted"
# Multiples of a twentieth, each the float nearest to it: a recall of 7/20 reaches the level 7/20.
RECALL_GRID = np.arange(21) / 20
_PUBLISHED_RANKS = tuple(100 * k + r for k in range(20) for r in (1, 50, 100))
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
    n: int, n_valid: int, level: float = LEVEL, cutoffs: tuple | None = None, seed: int = 0
) -> RandomOrder:
    """Area under the frontier and recall at a precision, averaged over all orders.

    A frontier takes the best cutoff after the fact, so a random order gets more than its
    prevalence. The same for weighted and unweighted recall: in a random order the weights of the
    valid candidates are exchangeable. Up to 110 candidates exact: the area is the integral over t
    of the expected recall of the largest cutoff that reaches precision t. Above, a mean of 4,000.

    Args:
        n: candidates, `n_valid` of them valid.
        level: precision, in (0, 1].
        cutoffs: numbers of candidates kept that a frontier may use, rising to n; all by default.
        seed: of the simulation.

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
    rng = np.random.default_rng(seed)
    found, before = np.zeros((_DRAWS, 1), dtype=np.int64), 0
    for kept in cutoffs:
        left = n_valid - found[:, -1]
        more = rng.hypergeometric(left, n - before - left, kept - before)
        found, before = np.column_stack([found, found[:, -1] + more]), kept
    found = found[:, 1:]
    areas, reached = _area_and_recall(found / np.array(cutoffs), found / n_valid, level)
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

    Read backwards: of `kept` candidates with a valid ones, the last is valid with probability
    a / kept, and the first cutoff met that reaches the threshold is the largest.
    """
    found = np.arange(n_valid + 1)
    p = np.zeros((len(thresholds), n_valid + 1))
    p[:, n_valid] = 1.0
    recall = np.zeros(len(thresholds))
    for kept in range(n, 0, -1):
        if kept in cutoffs:
            # Quotients of small integers are rounded correctly: equal fractions compare equal.
            reached = found / kept >= thresholds[:, None]
            recall += np.where(reached, p, 0.0) @ (found / n_valid)
            p[reached] = 0.0
        valid = np.minimum(found / kept, 1.0)
        # Column a takes what loses an invalid candidate, and what loses a valid one from a + 1.
        p[:, :-1] = p[:, :-1] * (1 - valid[:-1]) + p[:, 1:] * valid[1:]
        p[:, -1] *= 1 - valid[-1]
    return recall


def noise_floor(
    n: int, n_valid: int, false_positive: float, false_negative: float, n_draws: int = 50
) -> NoiseFloor:
    """Area and recall that a perfect order seems to have, scored by a judge that errs.

    The simulated judge errs independently from candidate to candidate; a real one need not. Drawn
    labels without a valid one are left out.

    Args:
        n: candidates, the `n_valid` truly valid ones first.
        false_positive: share of invalid candidates that the judge calls valid.
        false_negative: share of valid candidates that the judge calls invalid.
        n_draws: seeded sets of labels.
    """
    rng = np.random.default_rng(0)
    called = np.where(np.arange(n) < n_valid, 1 - false_negative, false_positive)
    seen = []
    for _ in range(n_draws):
        found = np.cumsum(rng.random(n) < called)
        if found[-1]:
            precision = found / np.arange(1, n + 1)
            seen.append((*_area_and_recall(precision, found / found[-1], LEVEL), precision[-1]))
    if len(seen) < 2:
        return NoiseFloor(*[math.nan] * 5)
    area, reached, prevalence = np.mean(seen, axis=0)
    area_sd, reached_sd, _ = np.std(seen, axis=0, ddof=1)
    return NoiseFloor(*map(float, (area, area_sd, reached, reached_sd, prevalence)))


def local_curves(candidates: pd.DataFrame) -> pd.DataFrame:
    """Precision and both recalls at every node, over all cutoffs "keep candidates up to a rank".

    Only swept candidates count: a sweep with stride 10 is a sample of the ranks, so precision at a
    cutoff is estimated on the swept ranks up to it, and recall is relative to what the sweep found.

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
    curves = table[[*NODE, "rank"]].copy()
    valid = table.valid.astype(np.int64).groupby(number)
    curves["n_kept"] = valid.cumcount() + 1
    curves["n_valid"] = valid.cumsum()
    curves["precision"] = curves.n_valid / curves.n_kept
    weight = table.weight.astype(float).groupby(number).cumsum()
    for kind, sums in ((WEIGHTED, weight), (UNWEIGHTED, curves.n_valid)):
        # The last of the sums, not another sum: the last recall is exactly 1.
        totals = sums.groupby(number).transform("last")
        curves[f"recall_{kind}"] = sums / totals.where(totals > 0)
    return curves.reset_index(drop=True)


def node_measures(
    curves: pd.DataFrame, recall: str = WEIGHTED, by: list[str] = NODE
) -> pd.DataFrame:
    """Area under each node's frontier and recall at a precision, beside a random order's.

    The area is a staircase: at a recall level r the best precision of a cutoff with recall of at
    least r, integrated over r from 0 to 1. Nothing is interpolated.

    Args:
        curves: of `local_curves`.
        recall: "weighted" or "unweighted".
        by: the columns that tell nodes apart.

    Returns:
        A row per node: its columns, recall (the kind), n_candidates, n_valid, first_valid (whether
        the highest candidate is), prevalence, area, recall_at (at precision `LEVEL`, 0 where no
        cutoff reaches it), random_area, random_recall_at, area_gain = area - random_area. Where
        nothing is valid all but counts and prevalence is NaN.
    """
    number = curves.groupby(by, sort=False, dropna=False).ngroup().to_numpy()
    curves, number = curves.iloc[np.argsort(number, kind="stable")], np.sort(number)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    last = np.flatnonzero(np.diff(number, append=-1))
    kept, valid, precision, found = (
        curves[name].to_numpy() for name in ("n_kept", "n_valid", "precision", f"recall_{recall}")
    )
    nodes = curves[by].iloc[first].reset_index(drop=True).assign(recall=recall)
    nodes = nodes.assign(n_candidates=kept[last], n_valid=valid[last], first_valid=valid[first] > 0)
    nodes["prevalence"] = nodes.n_valid / nodes.n_candidates
    rows = []
    for start, end in zip(first, last + 1, strict=True):
        cutoffs, total = tuple(kept[start:end].tolist()), int(valid[end - 1])
        own = _area_and_recall(precision[start:end], found[start:end], LEVEL)
        random = random_order(cutoffs[-1], total, LEVEL, cutoffs)
        rows.append((*(own if total else (np.nan, np.nan)), random.area, random.recall_at))
    names = ["area", "recall_at", "random_area", "random_recall_at"]
    nodes[names] = np.array(rows, dtype=float).reshape(-1, 4)
    return nodes.assign(area_gain=nodes.area - nodes.random_area)


def frontiers_on_grid(curves: pd.DataFrame, recall: str = WEIGHTED) -> pd.DataFrame:
    """The best precision of each node with recall of at least each level of `RECALL_GRID`.

    A row per node and level: the node's columns, recall (the kind), recall_level, precision (NaN
    where nothing is valid).
    """
    rows = []
    for key, own in curves.groupby(NODE, sort=False, dropna=False):
        best = np.full(len(RECALL_GRID), np.nan)
        if own.n_valid.iloc[-1]:
            ahead = np.maximum.accumulate(own.precision.to_numpy()[::-1])[::-1]
            best = ahead[np.searchsorted(own[f"recall_{recall}"].to_numpy(), RECALL_GRID)]
        rows.append((*key, recall, RECALL_GRID, best))
    grid = pd.DataFrame(rows, columns=[*NODE, "recall", "recall_level", "precision"])
    grid = grid.explode(["recall_level", "precision"], ignore_index=True)
    return grid.astype({"recall_level": float, "precision": float})


def published_points() -> pd.DataFrame:
    """The authors' demo points with the counts behind them; recall is over their 2,000 ranks.

    Returns:
        Columns model, prefix, n_kept (rank from 1), n_valid, group, precision, recall_unweighted.
    """
    table = pd.read_csv(paths.package_data("published", "precision_recall.csv"))
    table["n_kept"] = np.take(_PUBLISHED_RANKS, table["index"])
    table["n_valid"] = (table.precision * table.n_kept).round().astype(np.int64)
    points = table[["model", "prefix", "n_kept", "n_valid", "group"]].copy()
    points["precision"] = points.n_valid / points.n_kept
    total = points.groupby(["model", "prefix"]).n_valid.transform("max")
    return points.assign(recall_unweighted=points.n_valid / total)


def from_published() -> pd.DataFrame:
    """`node_measures` of the authors' demo points: one row per model and prefix.

    Unweighted recall, over the 60 published cutoffs only; the random order is given the same 60.
    More cutoffs could raise the frontier, never lower it.
    """
    return node_measures(published_points(), UNWEIGHTED, ["model", "prefix"])


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
    extremes = table.groupby(keys).precision.agg(lowest="min", highest="max")
    return pd.concat([mean.rename("mean"), extremes], axis=1).reset_index()


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

    A row per pair and measure. Runs that have a defined node at one of the two depths only are left
    out, and counted (n_unpaired).
    """
    defined = measures[measures.n_valid > 0]
    means = defined.groupby([by, "prompt_id", "seed"])[list(MEASURES)].mean()
    rows = []
    for early, late in combinations(sorted(measures[by].unique()), 2):
        pair = (early, late)
        one, other = (means[means.index.isin([at], level=0)].droplevel(0) for at in pair)
        apart = (other - one).reset_index()
        n_unpaired = int(apart.area.isna().sum())
        for name in MEASURES:
            row = {by: late, "minus": early, "measure": name}
            rows.append(row | difference(apart, name) | {"n_unpaired": n_unpaired})
    return pd.DataFrame(rows)


def difference(apart: pd.DataFrame, name: str, inner: str | None = "seed") -> dict[str, float]:
    """A mean difference, its interval over prompts (and seeds, `inner`), and what it rests on."""
    found = cluster_interval(apart, name, inner=inner)
    row = {"difference": found.mean, "low": found.low, "high": found.high}
    return row | {"n_prompts": found.n_outer} | ({"n_runs": found.n_inner} if inner else {})

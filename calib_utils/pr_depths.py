"""Frontiers, areas and recalls of many nodes by depth, with intervals (Fig. 2, 4, 7 and 8).

Tables of `pr_curves` in, tables out. Knows no model, no judge and no candidate.
"""

from itertools import combinations

import pandas as pd

from calib_utils.bootstrap import cluster_interval, cluster_mean

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

"""The study of cutoffs: what to sweep, frontiers, what the oracle reaches, budgets, the claims.

Tables of `evaluate` and `adaptive_frontier` in, tables for people out. Runs nothing.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from calib_utils.budgets import best_by_budget
from calib_utils.controlled import TESTABLE, Finding, listed, too_low, verdict
from calib_utils.metrics import frontier_area, pareto_frontier
from calib_utils.operating import LEVEL, PRACTICAL
from calib_utils.rules import Rule
from calib_utils.samplers import MORE_GRIDS, ORDERS

# Four free digits (12,221 prefixes) under 204 settings take a quarter of an hour: not quick.
TASKS = (
    *("us-states", "rng-2", "rng-3"),
    *("rng-2-sum-at-most-10", "rng-3-sum-at-most-10", "rng-4-sum-at-most-10"),
    *("rng-2-sum-equals-10", "rng-3-sum-equals-10"),
)
QUICK_TASKS = ("us-states", "rng-2", "rng-2-sum-at-most-10")
SMALL_TASKS = QUICK_TASKS  # where every other sampler is swept as well
# One recipe in the order of each engine.
RECIPE = "top_k=50+top_p=0.95+min_p=0.02"
ORDER_TASK = "us-states"
_ABOVE = "The oracle-size frontier lies above those of all practical rules (by area)"
# Close to (1, 1): within a twentieth of it in validity, and of the structural ceiling in diversity.
_CLOSE = 0.95
_BOTH = 0.9  # validity and diversity of a setting that has both


def other_rules() -> list[Rule]:
    """The rules beside Table 3, over their grids."""
    return [rule for grid in MORE_GRIDS.values() for rule in grid]


def engine_orders() -> list[str]:
    """The recipe in each engine's order, as rules."""
    return [f"{RECIPE}@{order}" for order in ORDERS]


def frontier_points(table: pd.DataFrame) -> pd.DataFrame:
    """The settings that no other of their task and rule beats in validity and diversity."""
    parts = [
        group.iloc[pareto_frontier(group.validity.to_numpy(), group.diversity.to_numpy())]
        for _, group in table.groupby(["task", "rule"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def areas(table: pd.DataFrame) -> pd.DataFrame:
    """Area under the Pareto frontier of each rule: a row per task, a column per rule.

    The staircase of `metrics.frontier_area`: from Val = 0, where the best diversity found counts,
    to Val = 1, and nothing beyond the most valid setting.
    """
    rows = {
        (task, rule): frontier_area(group.validity.to_numpy(), group.diversity.to_numpy())
        for (task, rule), group in table.groupby(["task", "rule"], sort=False)
    }
    wide = pd.Series(rows).unstack(sort=False)
    return wide.rename_axis("task").reset_index()


def oracle_table(table: pd.DataFrame, facts: pd.DataFrame, hulls: dict) -> pd.DataFrame:
    """The best oracle-size point of each task beside what is possible.

    Args:
        table: rows of `evaluate` with the oracle-size rule.
        facts: of `structural_facts`, for the ceiling of an even, perfectly ordered model.
        hulls: the adaptive frontier of each task.

    Returns:
        Per task: the point with the largest Val x Div and its temperature (NaN if nothing is
        valid); the diversity of a perfectly ordered model uniform over G (`ceiling`); sequence
        precision and recall of the oracle; the recall that the best adaptive rank cutoff has at the
        same precision (on the hull, so an upper bound); the best precision with every answer kept.
    """
    rows = []
    ceilings = facts.set_index("task").uniform_over_g
    for task, group in table[table.rule == "oracle_size"].groupby("task", sort=False):
        worth = (group.validity * group.diversity).fillna(0.0)
        best = group.loc[worth.idxmax()]
        if worth.max() == 0:
            best = best.where(best.isna())  # nothing is valid: all NaN
        hull = hulls[task].astype(float).to_numpy()
        rows.append(
            {
                "task": task,
                "temperature": best.temperature,
                "validity": best.validity,
                "diversity": best.diversity,
                "ceiling": ceilings[task],
                "precision": best.sequence_precision,
                "recall": best.sequence_recall,
                "best recall there": recall_at(hull, best.sequence_precision),
                "precision at recall 1": float(hull[-1, 0]) if hull[-1, 1] >= 1 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def recall_at(hull: np.ndarray, precision: float) -> float:
    """Recall of the convex hull at a precision; NaN above the highest precision there is.

    Args:
        hull: [point, (precision, recall)], precision falling.
    """
    if precision > hull[0, 0] + 1e-12:
        return float("nan")
    return float(np.interp(precision, hull[::-1, 0], hull[::-1, 1]))


def task_for_budgets(table: pd.DataFrame, level: float = LEVEL) -> str:
    """The task on which most settings are valid enough; the first where none is."""
    usable = (table.validity >= level).groupby(table.task, sort=False).mean()
    return str(usable.idxmax())


def full_budgets(table: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """Best diversity at a validity with the whole grid, and with as many settings as the smallest.

    Returns:
        A row per task and sampler: settings, share of them valid enough, best, and the mean best of
        the smallest grid's number of settings. A sampler without a setting that is valid enough has
        no row.
    """
    rows = []
    for task, own in table.groupby("task", sort=False):
        equal = own.groupby("rule").size().min()
        for rule, group in own.groupby("rule", sort=False):
            if (group.validity < level).all():
                continue
            curve = best_by_budget(group, level).set_index("budget")["mean"]
            rows.append(
                {
                    "task": task,
                    "Val at least": level,
                    "rule": rule,
                    "settings": len(group),
                    "valid enough": (group.validity >= level).mean(),
                    "best": curve.iloc[-1],
                    f"best of {equal}": curve[equal],
                }
            )
    kept = ["task", "Val at least", "rule", "settings", "valid enough", "best"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=kept)


def findings(table: pd.DataFrame, facts: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about cutoffs, decided on one model's tables.

    Args:
        table: rows of `evaluate` over Table 3, several tasks.
        facts: of `structural_facts`.
        points: of `oracle_table`.

    Returns:
        Columns claim, source, found, verdict. Exact for the model file, so without intervals.
    """
    usable = table.groupby("task").validity.max()
    usable = set(usable[usable >= TESTABLE].index)
    points = points[points.task.isin(usable)].set_index("task")
    rows = [
        _oracle_near(points, ["us-states"], "With an oracle size, states reach (1, 1)", True),
        _oracle_near(
            points,
            ["rng-2", "rng-3"],
            "With an oracle size, unconstrained digits come close to (1, 1)",
            True,
        ),
        _oracle_near(
            points,
            [task for task in points.index if "-sum-" in task],
            "With an oracle size, sum-constrained digits stay away from (1, 1)",
            False,
        ),
        _oracle_above(table, usable),
        _no_setting_has_both(table, usable),
    ]
    return pd.DataFrame(rows)


def _oracle_near(points: pd.DataFrame, tasks: Iterable[str], claim: str, near: bool) -> Finding:
    own = points.loc[[task for task in tasks if task in points.index]]
    reached = np.minimum(own.validity, own.diversity / own.ceiling)
    found = ", ".join(
        f"{task}: ({row.validity:.2f}, {row.diversity:.2f}), ceiling {row.ceiling:.2f}"
        for task, row in own.iterrows()
    )
    holds = reached - _CLOSE if near else _CLOSE - reached
    if found:
        found += f" (decided at {_CLOSE:g} of validity 1 and of the ceiling)"
    return Finding(claim, "Fig. 6, 9", found or too_low(), verdict(len(own) > 0, holds))


def _oracle_above(table: pd.DataFrame, usable: set) -> Finding:
    if not usable:
        return Finding(_ABOVE, "Fig. 6, 9", too_low(), verdict(False, False))
    wide = areas(table[table.task.isin(usable)])
    best = wide[list(PRACTICAL)].max(axis=1)
    found = ", ".join(
        f"{task}: {oracle:.2f} against {other:.2f}"
        for task, oracle, other in zip(wide.task, wide.oracle_size, best, strict=True)
    )
    return Finding(_ABOVE, "Fig. 6, 9", "area " + found, verdict(True, wide.oracle_size - best))


def _no_setting_has_both(table: pd.DataFrame, usable: set) -> Finding:
    own = table[table.task.isin(usable) & table.rule.isin(PRACTICAL)]
    best = np.minimum(own.validity, own.diversity).groupby(own.task, sort=False).max()
    return Finding(
        "No setting of temperature, top-k, top-p or min-p is both valid and diverse",
        "Fig. 6, 9",
        f"best of min(Val, Div), decided at {_BOTH:g}: " + listed(best.index, best, "{}: {:.2f}")
        if usable
        else too_low(),
        verdict(bool(usable), _BOTH - best),
    )

"""The study of cutoffs: frontiers, what the oracle reaches, where the loss lies, and the claims.

Tables of `evaluate`, `step_losses` and `adaptive_frontier` in, tables for people out. Runs nothing.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from calib_utils.controlled import TESTABLE, Finding, too_low, verdict
from calib_utils.metrics import frontier_area, pareto_frontier
from calib_utils.schema import KEY
from calib_utils.split import shapley
from calib_utils.steps import REPAIRS

LEVEL = 0.8  # the validity that the paper asks for in Table 1
PRACTICAL = ("none", "top_k", "top_p", "min_p")  # the oracle knows what no sampler knows
TASKS = (
    *("us-states", "rng-2", "rng-3", "rng-4"),
    *("rng-2-sum-at-most-10", "rng-3-sum-at-most-10", "rng-4-sum-at-most-10"),
    *("rng-2-sum-equals-10", "rng-3-sum-equals-10"),
)
QUICK_TASKS = ("us-states", "rng-2", "rng-2-sum-at-most-10")
# Close to (1, 1): within a twentieth of it in validity, and of the structural ceiling in diversity.
_CLOSE = 0.95
_LOSSES = ["validity_loss", "diversity_loss"]


def frontier_points(table: pd.DataFrame, by: str = "rule") -> pd.DataFrame:
    """The settings that no other of their task and sampler beats in validity and diversity."""
    parts = [
        group.iloc[pareto_frontier(group.validity.to_numpy(), group.diversity.to_numpy())]
        for _, group in table.groupby(["task", by], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def areas(table: pd.DataFrame, by: str = "rule") -> pd.DataFrame:
    """Area under the Pareto frontier of each sampler: a row per task, a column per sampler.

    The staircase of `metrics.frontier_area`: from Val = 0, where the best diversity found counts,
    to Val = 1, and nothing beyond the most valid setting.
    """
    rows = {
        (task, name): frontier_area(group.validity.to_numpy(), group.diversity.to_numpy())
        for (task, name), group in table.groupby(["task", by], sort=False)
    }
    wide = pd.Series(rows).unstack(sort=False)
    return wide.rename_axis("task").reset_index()


def oracle_table(table: pd.DataFrame, facts: pd.DataFrame, hulls: dict) -> pd.DataFrame:
    """The best oracle-size point of each task beside what is possible.

    Args:
        table: rows of `evaluate` with the oracle-size rule.
        facts: of `structural_facts`, for the ceiling of a perfectly ordered model.
        hulls: the adaptive frontier of each task.

    Returns:
        Per task: the point with the largest Val x Div and its temperature; the diversity of a
        perfectly ordered model uniform over G (`ceiling`); sequence precision and recall of the
        oracle; the recall that the best adaptive rank cutoff has at the same precision (on the
        hull, so an upper bound); the best precision with every answer kept.
    """
    rows = []
    ceilings = facts.set_index("task").uniform_over_g
    for task, group in table[table.rule == "oracle_size"].groupby("task", sort=False):
        worth = (group.validity * group.diversity).fillna(0.0)
        best = group.loc[worth.idxmax()]
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


def split_table(losses: pd.DataFrame) -> pd.DataFrame:
    """The loss -ln(Val Div) of every setting between order, shape and size, in nats.

    Returns:
        One row per task and setting: total, order, shape, size; the three add up to total. `size`
        is what an ordered and reshaped model still loses, because the rule keeps more tokens than
        are valid, or fewer.
    """
    by = ["task", *KEY]
    summed = losses.groupby([*by, "repair"], dropna=False, sort=False)[_LOSSES].sum(min_count=1)
    return _split(summed.sum(axis=1, min_count=2), by)


def split_by_step(losses: pd.DataFrame) -> pd.DataFrame:
    """`split_table` for every step of the answer; over steps each part adds up to the whole's."""
    by = ["task", *KEY, "step"]
    indexed = losses.set_index([*by, "repair"])[_LOSSES]
    return _split(indexed.sum(axis=1, min_count=2), by)


def _split(loss: pd.Series, by: list[str]) -> pd.DataFrame:
    wide = loss.unstack("repair", sort=False)
    parts = shapley({repair: wide[repair].to_numpy() for repair in REPAIRS})
    found = pd.DataFrame(
        {"total": parts.total, "order": parts.order, "shape": parts.shape, "size": parts.rest},
        index=wide.index,
    )
    return found.rename_axis(by).reset_index()


def operating_points(table: pd.DataFrame, losses: pd.DataFrame, level: float = LEVEL):
    """Where a task's loss lies for decoders that people use, and which positions carry it.

    Four decoders a task: temperature 1 alone; the most diverse setting of at least `level`
    validity with temperature alone, with any rule of `PRACTICAL`, and with the oracle size.

    Returns:
        A row per task and decoder: setting, validity, diversity, total, order, shape, size in nats
        and `carried by`, the largest shares of the total by position. A level that no setting
        reaches has no row.
    """
    split = split_table(losses).merge(table, on=["task", *KEY])
    steps = split_by_step(losses)
    rows = []
    for _, group in split.groupby("task", sort=False):
        enough = group[group.validity >= level]
        choices = {
            "T = 1 alone": group[(group.rule == "none") & (group.temperature == 1)],
            f"temperature, Val ≥ {level:g}": enough[enough.rule == "none"],
            f"any rule, Val ≥ {level:g}": enough[enough.rule.isin(PRACTICAL)],
            f"oracle size, Val ≥ {level:g}": enough[enough.rule == "oracle_size"],
        }
        for name, options in choices.items():
            options = options[options.total.notna()]
            if len(options):
                best = options.loc[options.diversity.idxmax()]
                rows.append({"decoder": name, **best, "carried by": _carriers(steps, best)})
    kept = ["task", "decoder", *KEY, "validity", "diversity", "total", "order", "shape", "size"]
    return pd.DataFrame(rows, columns=[*kept, "carried by"])


def at_setting(table: pd.DataFrame, setting: pd.Series) -> pd.DataFrame:
    """The rows of a table that belong to one task and setting."""
    same = table.task == setting.task
    for name in KEY:
        same &= (table[name] == setting[name]) | (table[name].isna() & pd.isna(setting[name]))
    return table[same]


def _carriers(steps: pd.DataFrame, setting: pd.Series, most: int = 3) -> str:
    own = at_setting(steps, setting).set_index("step").total
    shares = (own / own.sum()).sort_values(ascending=False).head(most)
    return ", ".join(f"step {step}: {share:.0%}" for step, share in shares.items() if share >= 0.05)


def setting_text(table: pd.DataFrame) -> pd.Series:
    """A setting in a word, `top_p=0.9, T=0.8`."""
    number = table.parameter.map(lambda p: "" if pd.isna(p) else f"={p:g}")
    return table.rule + number + ", T=" + table.temperature.map("{:g}".format)


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
            ["rng-2", "rng-3", "rng-4"],
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
        _not_sampled_diversity(table, usable),
    ]
    return pd.DataFrame([vars(row) for row in rows])


def _oracle_near(points: pd.DataFrame, tasks: Iterable[str], claim: str, near: bool) -> Finding:
    own = points.loc[[task for task in tasks if task in points.index]]
    reached = np.minimum(own.validity, own.diversity / own.ceiling)
    found = ", ".join(
        f"{task}: ({row.validity:.2f}, {row.diversity:.2f}), ceiling {row.ceiling:.2f}"
        for task, row in own.iterrows()
    )
    holds = (reached >= _CLOSE).all() if near else (reached < _CLOSE).all()
    return Finding(claim, "Fig. 6, 9", found or too_low(), verdict(len(own) > 0, bool(holds)))


def _oracle_above(table: pd.DataFrame, usable: set) -> Finding:
    wide = areas(table[table.task.isin(usable)]) if usable else pd.DataFrame()
    if wide.empty:
        return Finding(_ABOVE, "Fig. 6, 9", too_low(), verdict(False, False))
    best = wide[list(PRACTICAL)].max(axis=1)
    above = wide.oracle_size > best
    found = ", ".join(
        f"{task}: {oracle:.2f} against {other:.2f}"
        for task, oracle, other in zip(wide.task, wide.oracle_size, best, strict=True)
    )
    return Finding(_ABOVE, "Fig. 6, 9", "area " + found, verdict(True, bool(above.all())))


def _not_sampled_diversity(table: pd.DataFrame, usable: set) -> Finding:
    own = table[table.task.isin(usable) & table.rule.isin(PRACTICAL)]
    best = np.minimum(own.validity, own.diversity).groupby(own.task, sort=False).max()
    found = ", ".join(f"{task}: {value:.2f}" for task, value in best.items())
    return Finding(
        "No setting of temperature, top-k, top-p or min-p is both valid and diverse",
        "Fig. 6, 9",
        f"best of min(Val, Div) {found}" if usable else too_low(),
        verdict(bool(usable), bool((best < 0.9).all())),
    )


_ABOVE = "The oracle-size frontier lies above those of all practical rules (by area)"

"""Where the loss of a decoder lies: order, shape and size, step by step, for tables and figures.

Tables of `evaluate` and `step_losses` in, tables for people out. Runs nothing.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.core.metrics import best_by_budget, frontier_area, pareto_frontier
from calib_utils.core.prompts import ENDS, Policies
from calib_utils.core.rules import MORE_GRIDS, ORDERS, Rule
from calib_utils.core.split import REPAIRS, shapley
from calib_utils.core.tasks import Task, get_task, paraphrases
from calib_utils.models.loading import Model
from calib_utils.results.evaluation import evaluate, request_for
from calib_utils.results.measure import untouched
from calib_utils.results.storage import KEY
from calib_utils.studies.reporting import TESTABLE, Finding, listed, too_low, verdict

LEVEL = 0.8  # the validity that the paper asks for in Table 1
PRACTICAL = ("none", "top_k", "top_p", "min_p")  # the oracle knows what no sampler knows
_LOSSES = ["validity_loss", "diversity_loss"]


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


# The study of cutoffs: what to sweep, frontiers, what the oracle reaches, budgets, the claims.
#
# Tables of `evaluate` and `adaptive_frontier` in, tables for people out. Runs nothing.

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


# How far choices that the paper leaves open move the numbers: one table a task.
#
# Knows the public chain; asks it for the same task under other conventions.

# Longer answers have thousands of segmentations; these few show what they hold.
SHORTEST = 11
_OTHER_BATCH = 7


def sensitivity(
    model: Model, task: Task | str, *, end: str = "eos", results_dir: str | Path | None = None
) -> pd.DataFrame:
    """Val, Div and the split at T = 1 without cutoff, under one changed convention after another.

    Varied: dtype of the forward pass, batch size, end policy, wording of the prompt, and canonical
    against all tokenisations of the task's `SHORTEST` shortest answers.

    Args:
        end: the end policy of the first row and of all others but those that vary it.

    Returns:
        Rows of `task`, `variant`, validity, diversity, order, shape, size (nats; NaN where several
        segmentations an answer leave them undefined) and `against`, the row to compare with.
    """
    task = get_task(task)
    base = "as everywhere"
    rows = [
        {"variant": base, **_numbers(model, task, end, results_dir)},
        {
            "variant": f"batches of {_OTHER_BATCH}",
            **_numbers(model, task, end, None, batch_size=_OTHER_BATCH),
        },
    ]
    if model.dtype != "bfloat16":
        half = replace(model, dtype="bfloat16")
        vars(half)["tokenizer"] = model.tokenizer  # of the same files; reading them takes seconds
        rows.append({"variant": "bfloat16", **_numbers(half, task, end, results_dir)})
    for other in ENDS:
        if other != end:
            numbers = _numbers(model, task, other, results_dir)
            rows.append({"variant": f"end = {other}", **numbers})
    for number, other in enumerate(paraphrases(task), start=1):
        numbers = _numbers(model, other, end, results_dir)
        rows.append({"variant": f"paraphrase {number}", **numbers})
    rows = [{**row, "against": base} for row in rows]
    few = get_task(f"{task.name}-shortest-{min(SHORTEST, len(task.answers))}")
    label = f"{len(few.answers)} shortest answers"
    for tokenizations in ("canonical", "all"):
        table = evaluate(model, few, end=end, tokenizations=tokenizations, results_dir=results_dir)
        rows.append(
            {
                "variant": f"{label}, {tokenizations} tokenisations",
                "validity": table.validity[0],
                "diversity": table.diversity[0],
                **dict.fromkeys(("order", "shape", "size"), np.nan),
                "against": f"{label}, canonical tokenisations",
            }
        )
    return pd.DataFrame(rows).assign(task=task.name)[
        ["task", "variant", "validity", "diversity", "order", "shape", "size", "against"]
    ]


def _numbers(model: Model, task: Task, end: str, results_dir, batch_size=None) -> dict:
    request = request_for(model, task, Policies(end), batch_size, results_dir)
    found = request.tables(untouched([1.0]), losses=True)
    split = split_table(found.losses.assign(task=task.name)).iloc[0]
    return {
        "validity": found.settings.validity[0],
        "diversity": found.settings.diversity[0],
        **split[["order", "shape", "size"]],
    }


def largest_moves(table: pd.DataFrame) -> pd.DataFrame:
    """For each kind of choice, how far it moves each number at most.

    Args:
        table: of `sensitivity`, one task or several.

    Returns:
        Per task and kind: the largest absolute change against the row to compare with.
    """
    numbers = ["validity", "diversity", "order", "shape", "size"]
    reference = table[["task", "variant", *numbers]]
    both = table.merge(
        reference, left_on=["task", "against"], right_on=["task", "variant"], suffixes=("", "_ref")
    )
    both = both[both.variant != both.against]
    kind = both.variant.str.replace(r"(paraphrase|end) .*", r"\1", regex=True)
    kind = kind.str.replace(r".* answers, all .*", "all tokenisations", regex=True)
    kind = kind.str.replace(r"batches of .*", "batch size", regex=True)
    moves = pd.DataFrame({n: (both[n] - both[f"{n}_ref"]).abs() for n in numbers})
    moves.insert(0, "choice", kind)
    moves.insert(0, "task", both.task)
    return moves.groupby(["task", "choice"], sort=False).max().reset_index()

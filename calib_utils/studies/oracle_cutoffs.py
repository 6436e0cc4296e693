"""The study of cutoffs: frontiers, what the oracle reaches, budgets, the claims.

Where the loss of a decoder lies, and how far choices that the paper leaves open move the numbers.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.core.metrics import frontier_area, pareto_frontier
from calib_utils.core.prompts import ENDS
from calib_utils.core.rules import MORE_GRIDS, ORDERS, TABLE3_TEMPERATURES, OracleSize, table3_rules
from calib_utils.core.tasks import Task, get_task, paraphrases
from calib_utils.models.loading import Model
from calib_utils.results import evaluation
from calib_utils.results.draws import kept as kept_draws
from calib_utils.results.evaluation import Request, adaptive_frontier, evaluate, keys, split_table
from calib_utils.results.storage import KEY, Tables
from calib_utils.studies import reporting
from calib_utils.studies.controlled_tasks import LISTS
from calib_utils.studies.reporting import AGREEMENT, Page, able, listed, mean_text, over, voted

# Four free digits (12,221 prefixes) under 204 settings take a quarter of an hour: not quick.
TASKS = (
    *("us-states", "rng-2", "rng-3"),
    *("rng-2-sum-at-most-10", "rng-3-sum-at-most-10", "rng-4-sum-at-most-10"),
    *("rng-2-sum-equals-10", "rng-3-sum-equals-10"),
)
DRAWN = TASKS[:3]  # in the explorer with answers; the others would double the time of the chapter
QUICK_TASKS = ("us-states", "rng-2", "rng-2-sum-at-most-10")  # every other sampler, too
# One recipe in the order of each engine, on a task.
RECIPE, ORDER_TASK = "top_k=50+top_p=0.95+min_p=0.02", "us-states"
LEVEL = 0.8  # the validity that the paper asks for in Table 1
PRACTICAL = ("none", "top_k", "top_p", "min_p")  # the oracle knows what no sampler knows
# Stands for infinity: a rule is then uniform over what it keeps, to a millionth of its logits.
LIMIT = 1e6
# What the oracle size and the practical rules are compared by: diversity at a validity, and both.
_BY = {f"diversity at validity ≥ {level:g}": level for level in (0.5, 0.8)}
PRODUCT = "the best Val × Div"
COMPARED_BY = (*_BY, PRODUCT)
# Close to (1, 1): within a twentieth of it in validity, and of the structural ceiling in diversity.
_CLOSE = 0.95
ALONE = "T = 1 alone"  # the decoder without a cutoff
_HAS_BOTH = 0.9  # validity and diversity of a setting that has both
_BOTH = ["validity", "diversity"]
_GRID = {"rules": table3_rules(), "temperatures": TABLE3_TEMPERATURES}
SETTINGS = [*product(table3_rules(), TABLE3_TEMPERATURES)]  # of Table 3, and the oracle size
_SETTINGS = [*SETTINGS, (OracleSize(), LIMIT)]


def table3(page: Page, tasks: Iterable[str]) -> pd.DataFrame:
    """Rows of `evaluate` for every setting of Table 3, and the oracle size up to `LIMIT`."""
    return over(tasks, lambda task: _tables(page, task).settings)


def table3_losses(page: Page, tasks: Iterable[str]) -> pd.DataFrame:
    """Rows of `step_losses` for the settings of `table3`, with a column `task`."""
    return over(tasks, lambda task: _tables(page, task).losses)


def _tables(page: Page, task: str, details: bool = True, also: Iterable[tuple] = ()) -> Tables:
    settings = list(dict.fromkeys([*_SETTINGS, *also]))
    return _request(page, task).tables(settings, losses=details, frontier=details)


def _request(page: Page, task: str) -> Request:
    return evaluation.request_for(page.model, task, end=page.end, results_dir=page.store)


def draws(page: Page, tasks: Iterable[str]) -> pd.DataFrame:
    """Ten answers drawn under each of `SETTINGS`, with a column `task`; kept for the explorer.

    Of those among the tasks that are in `DRAWN`.
    """
    drawn = [task for task in tasks if task in DRAWN]
    return over(drawn, lambda task: kept_draws(_request(page, task), SETTINGS))


def in_study(table: pd.DataFrame) -> pd.DataFrame:
    """The stored rows that are of `table3`; chapter 02 has more temperatures for one rule."""
    return table.merge(keys(_SETTINGS), on=KEY)


def adaptive_frontiers(page: Page, tasks: Iterable[str]) -> dict[str, pd.DataFrame]:
    """`adaptive_frontier` of each task."""
    return {task: adaptive_frontier(page.model, task, **page.asked) for task in tasks}


def with_other_rules(page: Page, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table3` for the quick tasks, and below them the rules beside Table 3."""
    rules = [rule for grid in MORE_GRIDS.values() for rule in grid]
    asked = {**_GRID, **page.asked, "rules": rules}
    others = over(QUICK_TASKS, lambda task: evaluate(page.model, task, **asked))
    return pd.concat([table[table.task.isin(QUICK_TASKS)], others], ignore_index=True)


def engine_orders(page: Page) -> pd.DataFrame:
    """`RECIPE` in each engine's order of operations, over temperatures, with a column `engine`."""
    asked = {**_GRID, **page.asked, "rules": [f"{RECIPE}@{order}" for order in ORDERS]}
    table = evaluate(page.model, ORDER_TASK, **asked)
    return table.assign(engine=table.rule.str.partition("@")[2])


def operating_points(table: pd.DataFrame, losses: pd.DataFrame, level: float = LEVEL):
    """Where a task's loss lies for decoders that people use, in nats.

    Temperature 1 alone; and the most diverse setting of at least `level` validity, if any, with
    temperature alone, with any rule but the oracle size, and with that.
    """
    parts, rows = split_table(losses).merge(table, on=["task", *KEY]), []
    for _, group in parts[parts.total.notna()].groupby("task", sort=False):
        enough = group[group.validity >= level]
        choices = {
            ALONE: group[(group.rule == "none") & (group.temperature == 1)],
            f"temperature, Val ≥ {level:g}": enough[enough.rule == "none"],
            f"any rule, Val ≥ {level:g}": enough[enough.rule != OracleSize.name],
            f"oracle size, Val ≥ {level:g}": enough[enough.rule == "oracle_size"],
        }
        for name, options in choices.items():
            if len(options):
                best = options.loc[options.diversity.idxmax()]
                rows.append({"decoder": name, **best})
    kept = ["task", "decoder", *KEY, "validity", "diversity", "total", "order", "shape", "size"]
    return pd.DataFrame(rows, columns=kept)


def setting_text(table: pd.DataFrame) -> pd.Series:
    """A setting in a word, `top_p=0.9, T=0.8`."""
    # As objects, so that an empty table has texts as well.
    number = table.parameter.astype(object).map(lambda p: "" if pd.isna(p) else f"={p:g}")
    return table.rule + number + ", T=" + temperature_text(table)


def temperature_text(table: pd.DataFrame) -> pd.Series:
    """The temperatures as text, `LIMIT` as ∞."""
    return table.temperature.astype(object).map(
        lambda t: "∞" if t == LIMIT else "–" if pd.isna(t) else f"{t:g}"
    )


def frontier_points(table: pd.DataFrame) -> pd.DataFrame:
    """The settings that no other of their task and rule beats in validity and diversity."""
    parts = [
        group.iloc[pareto_frontier(*group[_BOTH].to_numpy().T)]
        for _, group in table.groupby(["task", "rule"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def areas(table: pd.DataFrame) -> pd.DataFrame:
    """`metrics.frontier_area` of each rule's settings: a row per task, a column per rule."""
    rows = {
        place: frontier_area(*group[_BOTH].to_numpy().T)
        for place, group in table.groupby(["task", "rule"], sort=False)
    }
    return pd.Series(rows).unstack(sort=False).rename_axis("task").reset_index()


def oracle_table(table: pd.DataFrame, facts: pd.DataFrame, hulls: dict) -> pd.DataFrame:
    """The oracle-size point of each task with the largest Val x Div beside what is possible.

    Of rows of `evaluate`, `structural_facts` and the adaptive frontier of each task. All NaN where
    nothing is valid; `ceiling`: diversity of a perfectly ordered model uniform over G; `best recall
    there`: of the best adaptive rank cutoff at the same precision (on the hull, an upper bound).
    """
    rows, ceilings = [], facts.set_index("task").uniform_over_g
    wanted = ["temperature", "validity", "diversity", "sequence_precision", "sequence_recall"]
    for task, group in table[table.rule == "oracle_size"].groupby("task", sort=False):
        worth = (group.validity * group.diversity).fillna(0.0)
        best = group.loc[worth.idxmax(), wanted].astype(float)
        best = best if worth.max() > 0 else best * np.nan  # nothing is valid
        *numbers, precision, recall = best
        hull = hulls[task].astype(float).to_numpy()
        whole = float(hull[-1, 0]) if hull[-1, 1] >= 1 else np.nan
        there = recall_at(hull, precision)
        rows.append((task, *numbers, ceilings[task], precision, recall, there, whole))
    names = ["task", *wanted[:3], "ceiling", "precision", "recall"]
    return pd.DataFrame(rows, columns=[*names, "best recall there", "precision at recall 1"])


def recall_at(hull: np.ndarray, precision: float) -> float:
    """Recall at a precision of a hull [point, (precision, recall)], falling; NaN above all."""
    if precision > hull[0, 0] + 1e-12:
        return float("nan")
    return float(np.interp(precision, hull[::-1, 0], hull[::-1, 1]))


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The oracle size beside the best other rule, by task and by what counts.

    Diversity at a validity is 0 where no setting has it, and there is no row where neither of both
    has. Columns task, by, oracle size, best other, rule.
    """
    rows = []
    for task, own in table.groupby("task", sort=False):
        worth = {by: own.diversity.where(own.validity >= level) for by, level in _BY.items()}
        worth[PRODUCT] = own.validity * own.diversity
        for by, values in worth.items():
            best = values.groupby(own.rule).max().fillna(0.0)
            more = best.index.difference([*PRACTICAL, OracleSize.name])  # a user's own
            oracle = best.get(OracleSize.name, 0.0)
            others = best.reindex([*PRACTICAL, *more]).fillna(0.0)
            if max(oracle, others.max()) > 0:
                rule = others.idxmax() if others.max() > 0 else "–"
                rows.append((task, by, oracle, others.max(), rule))
    return pd.DataFrame(rows, columns=["task", "by", "oracle size", "best other", "rule"])


def list_rows(page: Page, names: Iterable[str] = LISTS, also: Iterable[tuple] = ()) -> pd.DataFrame:
    """Rows of `evaluate` for the settings of `table3`, and some others, on closed lists."""
    return over(names, lambda task: _tables(page, task, False, also).settings)


def list_parts(page: Page, names: Iterable[str] = LISTS) -> pd.DataFrame:
    """`split_table` of closed lists at T = 1 without cutoff."""
    asked = {"rules": ["none"], "temperatures": [1.0], **page.asked}
    return split_table(over(names, lambda task: evaluation.step_losses(page.model, task, **asked)))


def over_lists(table: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """How the claims of this chapter hold over the lists that the model can do.

    Of `list_rows` and `list_parts`. A row per comparison, none without a list: on how many lists
    the first is larger, and the mean difference with an interval over lists.
    """
    done, _ = able(table)
    beside = compared(table[table.task.isin(done)])
    apart = {
        f"oracle size less the best practical rule, by {by}": own.assign(
            difference=own["oracle size"] - own["best other"]
        )
        for by, own in beside.groupby("by", sort=False)
    }
    parts = parts[parts.task.isin(done)]
    shape = "shape part less order part, in nats (T = 1, no cutoff)"
    apart[shape] = parts.assign(difference=parts["shape"] - parts.order)
    rows = []
    for what, own in apart.items():
        if len(own):
            larger = f"{(own.difference > AGREEMENT).sum()} of {len(own)} lists"
            rows.append((what, larger, mean_text(own, "difference", "task")))
    return pd.DataFrame(rows, columns=["comparison", "larger on", "mean difference"])


def rules_above(beside: pd.DataFrame) -> str:
    """On how many tasks of `compared` a practical rule beats the oracle size, and which rule."""
    told = []
    for by, own in beside.groupby("by", sort=False):
        above = own[own["best other"] > own["oracle size"] + AGREEMENT]
        counts = above.rule.str.replace("_", "-").value_counts()
        rules = f" ({listed(counts.index, counts, '{} on {}')})" * bool(len(counts))
        told.append(f"{len(above)} of {len(own)} by {by}{rules}")
    return ", ".join(told) or "none, since the model can do no task"


def key_numbers(
    table: pd.DataFrame, points: pd.DataFrame, decoders: pd.DataFrame
) -> dict[str, str]:
    """What the book's prose quotes: the states' best oracle point, how their loss at T = 1 splits,
    on how many tasks some rule beats the oracle, and which."""
    best = points.set_index("task").loc["us-states"]
    told = {f"oracle_{name}_us-states": f"{best[name]:.2g}" for name in ("validity", "diversity")}
    point = f"reaches validity {best.validity:.2g} and diversity {best.diversity:.2g}"
    told["oracle_point"] = point if best.validity > 0 else "gives no valid answer"
    told["ceiling_us-states"] = f"{best.ceiling:.3g}"
    alone = decoders[(decoders.task == "us-states") & (decoders.decoder == ALONE)]
    for part in ("total", "order", "shape", "size"):
        told[f"{part}_us-states"] = f"{alone[part].sum(min_count=1):.2g}"
    done, _ = able(table)
    beside = compared(table[table.task.isin(done)])
    own = beside[beside.by == PRODUCT]
    beaten = (own["best other"] > own["oracle size"] + AGREEMENT).sum()
    return told | {
        "above_oracle": rules_above(beside),
        "beaten": reporting.on_tasks(beaten, len(done)),
    }


def task_for_budgets(table: pd.DataFrame, level: float = LEVEL) -> str:
    """The task on which most settings are valid enough; the first where none is."""
    usable = (table.validity >= level).groupby(table.task, sort=False).mean()
    return str(usable.idxmax())


def findings(table: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about cutoffs, decided on one model's `table3` and `oracle_table`.

    Exact for the model file, so without intervals; every task that the model can do has one vote.
    """
    done, failed = able(table)
    points = points[points.task.isin(done)].set_index("task")
    near = np.minimum(points.validity, points.diversity / points.ceiling) - _CLOSE
    rows, source = [], "Fig. 6, 9"
    for what, pattern, side in (
        ("US states reach validity and diversity 1", "us-states", 1),
        ("unconstrained digits come close to validity and diversity 1", r"rng-\d", 1),
        ("sum-constrained digits stay away from validity and diversity 1", "rng-.*-sum-.*", -1),
    ):
        own = points[points.index.str.fullmatch(pattern)]
        told = ", ".join(
            f"{row.Index}: ({row.validity:.2f}, {row.diversity:.2f}), ceiling {row.ceiling:.2f}"
            for row in own.itertuples()
        )
        told += f" (decided at {_CLOSE:g} of validity 1 and of the ceiling)"
        out = [task for task in failed if re.fullmatch(pattern, task)]
        claim = f"With an oracle size, {what}"
        rows.append(voted(claim, source, told, side * near[own.index], out))

    table = table[table.task.isin(done)]
    beside = compared(table).set_index("task")
    for by in COMPARED_BY:
        own = beside[beside.by == by]
        told = ", ".join(
            f"{task}: {row['oracle size']:.2f} against {row['best other']:.2f} ({row['rule']})"
            for task, row in own.iterrows()
        )
        claim = f"The oracle size is better than every practical rule, by {by}"
        low = [task for task in done if task not in own.index]
        low = [f"{', '.join(low)} (no setting has this validity)"] if low else []
        ahead = own["oracle size"] - own["best other"]
        rows.append(voted(claim, source, told, ahead, failed + low))
    real = table[table.rule.isin(PRACTICAL)]
    both = real[_BOTH].min(axis=1, skipna=False).groupby(real.task, sort=False).max()
    told = f"best of min(Val, Div), decided at {_HAS_BOTH:g}: "
    told += listed(both.index, both, "{}: {:.2f}")
    claim = "No setting of temperature, top-k, top-p or min-p is both valid and diverse"
    rows.append(voted(claim, source, told, _HAS_BOTH - both, failed))
    return reporting.table_of(rows)


# How far choices that the paper leaves open move the numbers.
# Longer answers have thousands of segmentations; these few show what they hold.
SHORTEST = 11
_OTHER_BATCH = 7
_MOVED = ["validity", "diversity", "order", "shape", "size"]


def sensitivity(
    model: Model, task: Task | str, *, end: str = "eos", results_dir: str | Path | None = None
) -> pd.DataFrame:
    """Val, Div and the split at T = 1 without cutoff, under one changed choice after another.

    Varied: dtype of the forward pass, batch size, end policy, wording of the prompt, and all
    tokenisations against canonical ones of the task's `SHORTEST` shortest answers, which leave the
    split (in nats) undefined. A row is compared with the last one before it whose choice is "–".
    """
    task = get_task(task)
    rows = [("as everywhere", "–", _numbers(model, task, end, results_dir))]
    batches = _numbers(model, task, end, None, _OTHER_BATCH)
    rows.append((f"batches of {_OTHER_BATCH}", "batch size", batches))
    if model.dtype != "bfloat16":
        half = _in_dtype(model, "bfloat16")
        rows.append(("bfloat16", "bfloat16", _numbers(half, task, end, results_dir)))
    for other in ENDS:
        if other != end:
            rows.append((f"end = {other}", "end", _numbers(model, task, other, results_dir)))
    for number, other in enumerate(paraphrases(task), start=1):
        found = _numbers(model, other, end, results_dir)
        rows.append((f"paraphrase {number}", "paraphrase", found))
    few = get_task(f"{task.name}-shortest-{min(SHORTEST, len(task.answers))}")
    label = f"{len(few.answers)} shortest answers"
    for kind, choice in (("canonical", "–"), ("all", "all tokenisations")):
        table = evaluate(model, few, end=end, tokenizations=kind, results_dir=results_dir)
        rows.append((f"{label}, {kind} tokenisations", choice, table.loc[0, _BOTH].to_dict()))
    told = [{"variant": name, "choice": choice, **row} for name, choice, row in rows]
    return pd.DataFrame(told).assign(task=task.name)[["task", "variant", "choice", *_MOVED]]


def _in_dtype(model: Model, dtype: str) -> Model:
    other = replace(model, dtype=dtype)
    vars(other)["tokenizer"] = model.tokenizer  # of the same files; reading them takes seconds
    return other


VARIED = ("us-states", "rng-2")


def sensitivities(page: Page) -> pd.DataFrame:
    """`sensitivity` of the tasks `VARIED`."""
    return over(VARIED, lambda task: sensitivity(page.model, task, **page.asked))


def precision(page: Page, tasks: Iterable[str] = VARIED) -> pd.DataFrame:
    """Every setting of `table3` in two precisions of the forward pass: the changes, absolute.

    The other precision is bfloat16, or float32 where the page itself is in bfloat16. Order and
    shape are parts of the loss, in nats, NaN where validity is below `reporting.TESTABLE` in
    either. `kept` says whether a setting keeps the same tokens in both, as far as sequence
    precision and recall show it, which depend on nothing else.
    """
    other = "float32" if page.model.dtype == "bfloat16" else "bfloat16"
    tables = []
    for own in (page, replace(page, model=_in_dtype(page.model, other))):
        parts = split_table(table3_losses(own, tasks))
        tables.append(table3(own, tasks).merge(parts, how="left", on=["task", *KEY]))
    found = tables[0].merge(tables[1], on=["task", *KEY], suffixes=("", " other"))
    columns = [*_BOTH, "order", "shape"]
    kept = ["sequence_precision", "sequence_recall"]
    moves = {c: (found[f"{c} other"] - found[c]).abs() for c in (*columns, *kept)}
    same = pd.DataFrame(moves)[kept].fillna(0).max(axis=1) < 1e-9
    told = found[["task", *KEY]].assign(kept=np.where(same, "the same tokens", "other tokens"))
    valid = found[["validity", "validity other"]].min(axis=1) >= reporting.TESTABLE
    moves |= {part: moves[part].where(valid) for part in ("order", "shape")}
    return told.assign(**{c: moves[c] for c in columns})


def moves_by(changes: pd.DataFrame, *by: str) -> pd.DataFrame:
    """`precision` by columns: how many settings, and their largest changes."""
    groups = changes.groupby(["task", *by], sort=False)
    counts = groups.size().rename("settings")
    return groups[[*_BOTH, "order", "shape"]].max().join(counts).reset_index()


def _numbers(model: Model, task: Task, end: str, results_dir, batch_size=None) -> dict:
    found = evaluation.split(model, task, end=end, batch_size=batch_size, results_dir=results_dir)
    return found.loc[0, _MOVED].to_dict()


def largest_moves(table: pd.DataFrame) -> pd.DataFrame:
    """Per task of `sensitivity` and kind of choice: the largest absolute change of each number."""
    base = (table.choice == "–").cumsum()  # rows follow the one that they are compared with
    moves = (table[_MOVED] - table[_MOVED].groupby(base).transform(lambda own: own.iloc[0])).abs()
    moves = moves.assign(task=table.task, choice=table.choice)[table.choice != "–"]
    return moves.groupby(["task", "choice"], sort=False)[_MOVED].max().reset_index()

"""What all models together say: pairs compared, and the paper's claims about its panel decided.

Tables of `panel` in, tables out. A claim about every model is reproduced where each model that is
counted agrees, not reproduced where one does not, and open where one is undecided.
"""

from collections.abc import Iterable

import pandas as pd

from calib_utils import logit_shape, panel, pr_depths
from calib_utils.bootstrap import DECIDES, as_text, cluster_interval
from calib_utils.controlled import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    TESTABLE,
    Finding,
    too_low,
    verdict,
)
from calib_utils.operating import PRACTICAL
from calib_utils.order_findings import decided_over, keeps_less_than_half
from calib_utils.order_study import ITEMS, JUDGES, TEXTS
from calib_utils.panel import ORACLE, Panel
from calib_utils.table1 import LEVEL

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
    return _pairs(found, _task_measures(found, panel.split_table(found))).drop(columns="n")


def _pairs(found: Panel, whole: pd.DataFrame) -> pd.DataFrame:
    """`pair_table` from the table of `_task_measures`, with `n`, the number of what was paired."""
    rows = []
    known = ((SIZE, panel.size_pairs), (STAGE, panel.stage_pairs))
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
        parts: of `panel.split_table`.
    """
    areas = testable(found, panel.frontier_table(found))
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
    table = pr_depths.depth_differences(own.assign(place=own.model == second), by="place")
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
    order, fits = panel.order_table(found), panel.shape_table(found)
    parts = panel.split_table(found)
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

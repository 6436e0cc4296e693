"""Where the loss of a decoder lies: order, shape and size, step by step, for tables and figures.

Tables of `evaluate` and `step_losses` in, tables for people out. Runs nothing.
"""

import pandas as pd

from calib_utils.schema import KEY
from calib_utils.split import shapley
from calib_utils.steps import REPAIRS

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

"""The paper's claims on open-ended tasks, each decided on the tables of `order_study` and Table 1.

Tables in, findings out. Where an interval holds both answers, the claim is not testable here: the
sample is too small to decide it, and the number is printed.
"""

import pandas as pd

from calib_utils import pr_depths
from calib_utils.bootstrap import DECIDES, as_text
from calib_utils.controlled import (
    AGREEMENT,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    OURS,
    REPRODUCED,
    Finding,
    decided,
)
from calib_utils.order_study import ITEMS, JUDGES, SOURCES, TEXTS
from calib_utils.table1 import LEVEL

CLOSE = 0.05  # of area: what "nearly coincide" is taken to mean
_STRATEGIES = {"top_k": "top-k", "min_p": "min-p", "top_p": "top-p", "none": "no filtering"}


def findings(
    depths: pd.DataFrame,
    changes: pd.DataFrame,
    sources: pd.DataFrame,
    compared: pd.DataFrame,
    apart: pd.DataFrame,
) -> pd.DataFrame:
    """Every claim of the chapter.

    Args:
        depths: of `order_study.depth_table`.
        changes: of `order_study.depth_changes`.
        sources: node measures of `order_study.greedy_and_drawn`.
        compared, apart: of `table1_study.comparisons` and `differences`; empty where no prompt has
            a valid opening.

    Returns:
        Columns claim, source, found, verdict.
    """
    rows = []
    for row in depths[depths.forced == 1].drop_duplicates("kind").itertuples():
        rows += [_recall_is_low(row), _little_better(row)]
    rows += [_worsens(kind, changes[changes.kind == kind]) for kind in (ITEMS, TEXTS)]
    rows.append(_greedy_is_enough(sources))
    for kind in (ITEMS, TEXTS):
        own = apart[apart.kind == kind] if len(apart) else apart
        reached = compared[compared.kind == kind] if len(compared) else compared
        rows += [_oracle_wins(kind, own, reached, strategy) for strategy in _STRATEGIES]
    return pd.DataFrame(rows)


def headline(depths: pd.DataFrame, measured: pd.DataFrame) -> dict[str, str]:
    """What the chapter's beginning and other pages quote of the trees with one forced token.

    Args:
        depths: of `order_study.depth_table`.
        measured: of `order_study.measures`, which `depths` summarises.

    Returns:
        Texts by name, after the kind: counted (prompts with a valid candidate, of all), prevalence
        (of all nodes), random_area, area, recall_at.
    """
    said = {}
    for row in depths[depths.forced == 1].itertuples():
        asked = measured[(measured.kind == row.kind) & (measured.forced == 1)].prompt_id.nunique()
        said |= {
            f"{row.kind}_counted": f"{row.n_prompts} of {asked}",
            f"{row.kind}_prevalence": f"{row.prevalence_all:.2f}",
            f"{row.kind}_random_area": f"{row.random_area:.2f}",
            f"{row.kind}_area": _told(row, "area"),
            f"{row.kind}_recall_at": _told(row, "recall_at"),
        }
    return said


def decided_over(n_prompts: int, low: float, high: float, above: float = 0.0) -> str:
    """The verdict on "larger than `above`", which fewer than `DECIDES` prompts do not give."""
    return decided(low, high, above) if n_prompts >= DECIDES else NOT_TESTABLE


def keeps_less_than_half(row) -> str:
    """The verdict on recall at the precision, for a row of `order_study.depth_table`.

    Decided at one half; the opposite of "larger" is claimed, so the interval is mirrored. Where so
    many candidates are valid that a random order keeps half as well, recall says nothing about the
    ranking, and the claim is not testable.
    """
    if row.random_recall_at >= 0.5:
        return NOT_TESTABLE
    return decided_over(row.n_prompts, -row.recall_at_high, -row.recall_at_low, -0.5)


def _told(row, name: str = "") -> str:
    """A column of a row with its interval, or the row's difference with its own."""
    columns = (name, f"{name}_low", f"{name}_high") if name else ("difference", "low", "high")
    return as_text(
        *(getattr(row, column) for column in columns),
        undefined="not defined (nothing is valid)",
        alone="too few trees for an interval",
    )


def _about(kind: str) -> str:
    return f"{kind}, {JUDGES[kind]}"


def _recall_is_low(row) -> Finding:
    return Finding(
        f"At precision {LEVEL:g} a rank cutoff keeps less than half of the valid tokens "
        f"({_about(row.kind)})",
        "Sec. 4, Fig. 4",
        f"recall {_told(row, 'recall_at')}, random order {row.random_recall_at:.2f} (from 0.5 on "
        f"it decides nothing), prevalence {row.prevalence:.2f}",
        keeps_less_than_half(row),
    )


def _little_better(row) -> Finding:
    return Finding(
        f"The ranking is closer to a random order than to a perfect one ({_about(row.kind)})",
        f"Sec. 4, Fig. 2; the published points gain .02 to .11 of area; {OURS}",
        f"area {row.area:.2f}, of which beyond a random order {_told(row, 'area_gain')}; that less "
        f"half of what a perfect order would gain {_told(row, 'past_half')}",
        decided_over(row.n_prompts, -row.past_half_high, -row.past_half_low),
    )


def _worsens(kind: str, changes: pd.DataFrame) -> Finding:
    """The last depth against the first of the deepest sweep that has enough prompts."""
    claim = f"The frontier worsens with depth, by its area ({_about(kind)})"
    last = changes[(changes.minus == 1) & (changes.depth == changes.forced)]
    areas = last[(last.measure == "area") & (last.n_prompts >= DECIDES)]
    if areas.empty:
        return Finding(claim, "Sec. 4, Fig. 2 right", "too few prompts", NOT_TESTABLE)
    row = areas.loc[areas.depth.idxmax()]
    gain = last[(last.measure == "area_gain") & (last.depth == row.depth)].iloc[0]
    return Finding(
        claim,
        "Sec. 4, Fig. 2 right",
        f"area at depth {row.depth:.0f} less area at depth 1: {_told(row)} over "
        f"{row.n_prompts:.0f} prompts; beyond a random order {_told(gain)}",
        decided(-row.high, -row.low, 0.0),
    )


def _greedy_is_enough(sources: pd.DataFrame) -> Finding:
    """Equivalence: the whole interval within `CLOSE` of 0, for both readings of "valid"."""
    differences = {}
    for other in SOURCES[1:]:
        own = sources[sources.labels.isin([SOURCES[0], other])]
        # Numbered, so that the difference is always the drawn one minus the greedy one.
        own = own.assign(order=(own.labels == other).astype(int))
        table = pr_depths.depth_differences(own, by="order")
        differences[other] = table[table.measure == "area"].iloc[0]
    said, rows = NOT_TESTABLE, differences.values()
    if all(row.n_prompts >= DECIDES for row in rows):
        near, far = CLOSE - AGREEMENT, CLOSE + AGREEMENT
        if all(row.low > -near and row.high < near for row in rows):
            said = REPRODUCED
        elif any(row.low > far or row.high < -far for row in rows):
            said = NOT_REPRODUCED
    told = (f"{other}: difference of area {_told(row)}" for other, row in differences.items())
    return Finding(
        f"Labels from one greedy completion give the same frontier as 10 drawn ones ({ITEMS})",
        "Fig. 7",
        f"{'; '.join(told)}; decided at {CLOSE:g}",
        said,
    )


def _oracle_wins(kind: str, apart: pd.DataFrame, compared: pd.DataFrame, strategy: str) -> Finding:
    found, said = "no prompt has a valid opening", NOT_TESTABLE
    if len(apart):
        own = apart[(apart.measure == "embedding_diversity") & (apart.strategy == strategy)]
        found = f"no setting reaches validity {LEVEL:g}"
        if len(own) and own.n_prompts.iloc[0]:
            row, validity = own.iloc[0], compared.set_index("strategy").validity
            found = (
                f"difference {_told(row)}, in favour on {row.in_favour} of {row.n_prompts} "
                f"prompts; validity of the oracle {validity['oracle']:.2f}, of the other "
                f"{validity[strategy]:.2f}"
            )
            # More diverse and less valid would be no better decoder.
            if validity["oracle"] >= LEVEL:
                said = decided_over(row.n_prompts, row.low, row.high)
    claim = (
        "An oracle on the first two tokens gives more diverse texts, by their embeddings, than "
        f"{_STRATEGIES[strategy]} ({_about(kind)})"
    )
    return Finding(claim, "Table 1", found, said)

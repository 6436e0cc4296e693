"""The paper's examples of Fig. 11 and 12 as claims, decided on one model's draws.

Knows when a claim is testable and at which number it is decided. Draws and counts nothing itself.
"""

from collections.abc import Sequence

import pandas as pd

from calib_utils import program_measures as measures
from calib_utils import repeats
from calib_utils.beyond import Question
from calib_utils.beyond_tables import (
    NAMES_NEEDED,
    NOT_RUN,
    between,
    names,
    over_problems,
    same_program,
    share_of,
    top_name,
)
from calib_utils.bootstrap import cluster_interval
from calib_utils.controlled import NOT_TESTABLE, OURS, Finding, decided

# Below these a claim is not testable.
_PROBLEMS = 3  # problems that an interval is over
_MANY = 6  # distinct passing programs: were all alike, the top three would hold half at most
_DRAWS = 4  # passing draws among which pairs are compared
# Where claims are decided.
_DOMINATES = 0.5
_ORDERED = 0.95  # AUC; 1 is a perfect order
_FEW = 4  # equally likely programs


def findings(replies: pd.DataFrame, asked: Sequence[Question], table: pd.DataFrame) -> pd.DataFrame:
    """The paper's examples of Fig. 11 and 12, decided on one model's draws.

    Args:
        replies, asked: of `ask_all`; the first question is Fig. 11's.
        table: of `draw_programs`.

    Returns:
        Columns claim, source, found, verdict. An interval that lies on both sides of the
        number named in `found` decides nothing. Of several questions, one that disagrees refutes.
    """
    first, *others = asked
    others = [question for question in others if question.prompt != first.prompt]
    one = "One name outnumbers all other answers to Fig. 11's question"
    rows = [
        _one_dominates(replies, [first], one, "Fig. 11"),
        _one_dominates(replies, others, "So it is when other names are asked for", OURS),
        *_order(table),
        _drawn_shape(table),
        _whole_shape(table),
    ]
    return pd.DataFrame(rows)


def headline(replies: pd.DataFrame, asked: Sequence[Question], table: pd.DataFrame) -> dict:
    """The numbers that other pages quote, as text."""
    texts = replies.text[replies.question == asked[0].label]
    given = names(texts, asked[0].kind)
    said = {"city_names": share_of(len(given), len(texts)), "city_top": top_name(given)}
    said |= {"pass_1": "not run", "program_auc": "not run"}
    if len(table):
        rate = measures.pass_rates(table, [1]).iloc[0]
        said["pass_1"] = between(rate.estimate, rate.low, rate.high)
        order = measures.order_summary(table).iloc[0]
        said["program_auc"] = between(order.estimate, order.low, order.high)
    return said


def _one_dominates(replies, asked, claim: str, source: str) -> Finding:
    said, intervals = [], []
    for question in asked:
        texts = replies.text[replies.question == question.label]
        given = names(texts, question.kind)
        if len(given) < NAMES_NEEDED:
            told = f"{len(given)} replies are a name, at least {NAMES_NEEDED} are needed"
        else:
            told = f"{top_name(given)} of the {len(given)} replies that are a name"
            intervals.append(repeats.summarise(given).top_share)
        said.append(f"{question.label}: {told}")
    found = f"{'; '.join(said)} (decided at {_DOMINATES:g})"
    if not intervals:
        return Finding(claim, source, found, NOT_TESTABLE)
    low, high = (min(getattr(own, end) for own in intervals) for end in ("low", "high"))
    return Finding(claim, source, found, decided(low, high, _DOMINATES))


def _order(table: pd.DataFrame) -> list[Finding]:
    kept = measures.order_by_problem(table).dropna(subset="auc") if len(table) else table
    share = f", {kept.prevalence.mean():.0%} of their programs pass" if len(kept) else ""
    told = f"AUC {{auc}} over {{n}} problems{share} "
    few = "with both kinds"
    return [
        _over_problems(
            "Programs that pass and that fail interleave by log-probability",
            "Fig. 12 (order)",
            (table, kept, few),
            told + f"(decided at {_ORDERED:g}; 1 is a perfect order)",
            ("auc", _ORDERED, False),
        ),
        _over_problems(
            "Log-probability puts programs that pass first more often than chance",
            OURS,
            (table, kept, few),
            told + "(decided at 0.5)",
            ("auc", 0.5, True),
        ),
    ]


def _drawn_shape(table: pd.DataFrame) -> Finding:
    kept = measures.shape_by_problem(table) if len(table) else pd.DataFrame({"passing": []})
    return _over_problems(
        "Few of the drawn programs that pass hold most of their mass",
        "Fig. 12 (shape)",
        (table, kept[kept.passing >= _MANY], f"with {_MANY} different passing programs"),
        "the top three hold {top_3} of it, the top one {top_1}, over {n} problems with at least "
        f"{_MANY} different ones (decided for three at 0.5)",
        ("top_3", 0.5, True),
    )


def _whole_shape(table: pd.DataFrame) -> Finding:
    kept = same_program(table)
    return _over_problems(
        "Few programs hold most of the mass of all that pass, undrawn ones included",
        "Fig. 12 (shape)",
        (table, kept[kept.passing >= _DRAWS], f"with {_DRAWS} passing draws"),
        "two draws that pass are the same program with probability {same}, over {n} problems with "
        f"at least {_DRAWS} of them (decided at 1/{_FEW}, as if {_FEW} programs were equally "
        "likely)",
        ("same", 1 / _FEW, True),
    )


def _over_problems(claim: str, source: str, rows: tuple, told: str, rule: tuple) -> Finding:
    """A claim about the mean of a column over problems, decided by its interval.

    Args:
        rows: the programs, the table of problems that count, and which these are in words.
        told: what is found, with fields for columns and for `n`, the number of problems.
        rule: the column, the number it is decided at, and whether more or less is claimed.
    """
    table, kept, which = rows
    if len(kept) < _PROBLEMS:
        few = f"problems {which}: {len(kept)}, {_PROBLEMS} are needed"
        return Finding(claim, source, few if len(table) else NOT_RUN, NOT_TESTABLE)
    column, at, more = rule
    means = {name: over_problems(kept, name) for name in kept if f"{{{name}}}" in told}
    mean = cluster_interval(kept, column, "problem", None)
    said = decided(mean.low, mean.high, at) if more else decided(-mean.high, -mean.low, -at)
    return Finding(claim, source, told.format(n=len(kept), **means), said)

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
    rows = [
        _one_dominates(
            replies, [first], "One name outnumbers all other answers to Fig. 11's question"
        ),
        _one_dominates(
            replies,
            [question for question in others if question.prompt != first.prompt],
            "So it is when other names are asked for",
            OURS,
        ),
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


def _one_dominates(replies, asked, claim: str, source: str = "Fig. 11") -> Finding:
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
    claims = {
        "Programs that pass and that fail interleave by log-probability": "Fig. 12 (order)",
        "Log-probability puts programs that pass first more often than chance": OURS,
    }
    found = measures.order_summary(table).iloc[0] if len(table) else None
    if found is None or found.problems < _PROBLEMS:
        said = _too_few(table, 0 if found is None else int(found.problems), "with both kinds")
        return [Finding(claim, where, said, NOT_TESTABLE) for claim, where in claims.items()]
    said = (
        f"AUC {between(found.estimate, found.low, found.high)} over {found.problems:.0f} problems"
    )
    said += f", {found.prevalence:.0%} of their programs pass"
    told = (f"{said} (decided at {_ORDERED:g}; 1 is a perfect order)", f"{said} (decided at 0.5)")
    verdicts = (
        decided(-found.high, -found.low, -_ORDERED),  # smaller, so mirrored
        decided(found.low, found.high, 0.5),
    )
    return [
        Finding(claim, where, text, verdict)
        for (claim, where), text, verdict in zip(claims.items(), told, verdicts, strict=True)
    ]


def _drawn_shape(table: pd.DataFrame) -> Finding:
    claim = "Few of the drawn programs that pass hold most of their mass"
    shape = measures.shape_by_problem(table) if len(table) else pd.DataFrame({"passing": []})
    own = shape[shape.passing >= _MANY]
    if len(own) < _PROBLEMS:
        said = _too_few(table, len(own), f"with {_MANY} different passing programs")
        return Finding(claim, "Fig. 12 (shape)", said, NOT_TESTABLE)
    said = f"the top three hold {over_problems(own, 'top_3')} of it, "
    said += f"the top one {over_problems(own, 'top_1')}, over {len(own)} problems "
    said += f"with at least {_MANY} different ones (decided for three at 0.5)"
    held = cluster_interval(own, "top_3", "problem", None)
    return Finding(claim, "Fig. 12 (shape)", said, decided(held.low, held.high, 0.5))


def _whole_shape(table: pd.DataFrame) -> Finding:
    claim = "Few programs hold most of the mass of all that pass, undrawn ones included"
    drawn = same_program(table)
    own = drawn[drawn.passing >= _DRAWS]
    if len(own) < _PROBLEMS:
        said = _too_few(table, len(own), f"with {_DRAWS} passing draws")
        return Finding(claim, "Fig. 12 (shape)", said, NOT_TESTABLE)
    said = f"two draws that pass are the same program with probability {over_problems(own, 'same')}"
    said += f", over {len(own)} problems with at least {_DRAWS} of them "
    said += f"(decided at 1/{_FEW}, as if {_FEW} programs were equally likely)"
    same = cluster_interval(own, "same", "problem", None)
    return Finding(claim, "Fig. 12 (shape)", said, decided(same.low, same.high, 1 / _FEW))


def _too_few(table: pd.DataFrame, problems: int, what: str) -> str:
    return f"problems {what}: {problems}, {_PROBLEMS} are needed" if len(table) else NOT_RUN

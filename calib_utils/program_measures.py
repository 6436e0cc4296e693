"""pass@k, order and shape of programs whose log-probabilities and verdicts are known (Fig. 12).

Tables of `programs.sample_programs` in, tables and numbers out. Runs nothing.

Order and shape are those of whole sequences: a program counts once however often it was drawn, and
replies cut off at the token limit are left out, since their log-probability is that of a prefix.
Both see drawn programs only; what was never drawn is as good as absent.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from calib_utils.bootstrap import cluster_interval
from calib_utils.problems import extract_code, normalised

PASSED = "passed"


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n programs, drawn without replacement, hold one of c passing ones.

    1 - C(n-c, k) / C(n, k), the unbiased estimate of pass@k (Chen et al., arXiv:2107.03374).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_rates(table: pd.DataFrame, ks: Sequence[int] = (1, 5)) -> pd.DataFrame:
    """pass@k over problems with 95 % intervals.

    Returns:
        One row per k: estimate, low, high, problems. The interval is for problems like these:
        problems are drawn again, their programs are kept.
    """
    counts = table.groupby("problem", sort=False).outcome.agg(
        n="size", c=lambda outcome: (outcome == PASSED).sum()
    )
    rows = []
    for k in ks:
        values = [pass_at_k(int(n), int(c), k) for n, c in zip(counts.n, counts.c, strict=True)]
        rows.append({"k": k, **_over_problems(counts.index, values)})
    return pd.DataFrame(rows)


def ranked_programs(table: pd.DataFrame) -> pd.DataFrame:
    """Distinct complete replies, per problem by falling log-probability.

    Returns:
        Columns problem, rank (from 1), log_p in nats, passed, drawn (how often), text.
    """
    whole = table[table.ended.astype(bool)]
    found = (
        whole.assign(passed=whole.outcome == PASSED)
        .groupby(["problem", "text"], sort=False)
        .agg(log_p=("log_p", "max"), passed=("passed", "first"), drawn=("draw", "size"))
        .reset_index()
        .sort_values("log_p", ascending=False, kind="stable")
    )
    # Problems in the order of the table, ranks within them.
    place = {problem: i for i, problem in enumerate(dict.fromkeys(table.problem))}
    found = found.sort_values("problem", key=lambda p: p.map(place), kind="stable")
    found["rank"] = found.groupby("problem", sort=False).cumcount() + 1
    columns = ["problem", "rank", "log_p", "passed", "drawn", "text"]
    return found[columns].reset_index(drop=True)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive scores above a negative, ties half; NaN without both.

    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    score, positive = np.asarray(score, dtype=float), np.asarray(positive, dtype=bool)
    above, below = score[positive], score[~positive]
    if not len(above) or not len(below):
        return math.nan
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def order_by_problem(table: pd.DataFrame) -> pd.DataFrame:
    """How well log-probability puts passing programs first, a row per problem.

    Returns:
        Columns problem, programs (distinct and complete), prevalence (share that pass), auc; auc
        is NaN where all pass or none, and 0.5 for a random order.
    """
    rows = []
    for problem, own in ranked_programs(table).groupby("problem", sort=False):
        value = auc(own.log_p.to_numpy(), own.passed.to_numpy())
        share = float(own.passed.mean())
        rows.append({"problem": problem, "programs": len(own), "prevalence": share, "auc": value})
    return pd.DataFrame(rows, columns=["problem", "programs", "prevalence", "auc"])


def order_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean AUC over the problems that have one, with a 95 % interval over problems, and the mean
    prevalence of the same problems beside it: one row."""
    order = order_by_problem(table).dropna(subset="auc")
    found = _over_problems(order.problem, order.auc)
    prevalence = float(order.prevalence.mean()) if len(order) else math.nan
    return pd.DataFrame([{**found, "prevalence": prevalence}])


def precision_recall(log_p: np.ndarray, passed: np.ndarray) -> pd.DataFrame:
    """Precision and recall of keeping the programs at or above each log-probability.

    Returns:
        A row per cutoff that occurs, from the highest: cutoff, kept, precision, recall. Recall is
        NaN where none passes.
    """
    log_p, passed = np.asarray(log_p, dtype=float), np.asarray(passed, dtype=bool)
    order = np.argsort(-log_p, kind="stable")
    hits = np.cumsum(passed[order])
    # Equal log-probabilities fall to the same side of every cutoff.
    last = np.flatnonzero(np.append(np.diff(log_p[order]) != 0, True)) if len(log_p) else []
    kept = np.arange(1, len(log_p) + 1)[last]
    recall = hits[last] / passed.sum() if passed.any() else np.full(len(kept), np.nan)
    columns = {"cutoff": log_p[order][last], "kept": kept, "precision": hits[last] / kept}
    return pd.DataFrame({**columns, "recall": recall})


def shape_by_problem(table: pd.DataFrame, tops: Sequence[int] = (1, 3)) -> pd.DataFrame:
    """How the model spreads probability over the distinct passing programs it was seen to write.

    Replies whose programs differ in layout, comments and docstrings only are one program, and
    their probabilities add up: a lower bound, for other replies with it were not drawn.

    Returns:
        A row per problem with a passing program: passing (distinct programs), top_1, top_3, ...
        (share of their mass that the most probable hold), effective (exp of the entropy of their
        probabilities, from 1 to `passing`), log_mass (ln of their mass, in nats).
    """
    rows = []
    for problem, own in ranked_programs(table).groupby("problem", sort=False):
        own = own[own.passed]
        if own.empty:
            continue
        groups = own.groupby(own.text.map(lambda text: normalised(extract_code(text))))
        log_p = np.sort([np.logaddexp.reduce(g.to_numpy()) for _, g in groups.log_p])[::-1]
        log_mass = np.logaddexp.reduce(log_p)
        share = np.exp(log_p - log_mass)
        entropy = -(share * (log_p - log_mass)).sum()
        row = {"problem": problem, "passing": len(share)}
        row |= {f"top_{k}": float(share[:k].sum()) for k in tops}
        row |= {"effective": float(np.exp(entropy)), "log_mass": float(min(log_mass, 0.0))}
        rows.append(row)
    names = ["problem", "passing", *(f"top_{k}" for k in tops), "effective", "log_mass"]
    return pd.DataFrame(rows, columns=names)


def _over_problems(problems, values) -> dict:
    frame = pd.DataFrame({"problem": list(problems), "value": np.asarray(values, dtype=float)})
    found = cluster_interval(frame, "value", outer="problem", inner=None)
    interval = {"low": found.low, "high": found.high}
    return {"estimate": found.mean, **interval, "problems": found.n_outer}

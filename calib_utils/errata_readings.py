"""Items 10 to 18 of the errata: how to read the figures and tables (Sec. 4 and 5, App. A and C).

Knows metrics, tries, rules and the published numbers; runs no model.
"""

import numpy as np

from calib_utils import pr_baselines, pr_curves, theory
from calib_utils.errata import CARE, FAILS, digit_trie, item, ranked_trie
from calib_utils.rules import TABLE3_TEMPERATURES, table3_rules
from calib_utils.structure import diversity_of
from calib_utils.tasks import get_task
from calib_utils.tries import trie_of_strings, uniform_over_valid, weighted_by_count


@item(
    10,
    "Sec. 5.2, Fig. 6",
    "The oracle-size cutoff is the best a rank cutoff can do (a reading).",
    FAILS,
    "labels V I V by rank: keeping the 2 that are valid in number gives precision {p2:.2f} and "
    "recall {r2:.2f}, keeping 3 gives {p3:.2f} and {r3:.2f}",
)
def oracle_is_no_ceiling() -> dict[str, float]:
    """A step where one more token raises precision and recall."""
    tokens, rank = ranked_trie("VIV")
    two, three = (
        theory.factorise(tokens.trie, theory.shares(tokens, rank, np.array([size])))
        for size in (2, 3)
    )
    return {
        "p2": float(two.precision),
        "r2": float(two.recall),
        "p3": float(three.precision),
        "r3": float(three.recall),
    }


@item(
    11,
    "Sec. 5.2",
    "An oracle below (1, 1) shows that the order fails (a reading).",
    FAILS,
    "a perfectly ordered model, even over the valid tokens of each step, has Div {equals:.3f} on "
    "three digits with sum 10, {at_most:.3f} with sum at most 10, {four:.3f} on four",
)
def structural_ceiling() -> dict[str, float]:
    """Div of the law that is uniform over G, digit by digit."""
    tasks = {
        "equals": "rng-3-sum-equals-10",
        "at_most": "rng-3-sum-at-most-10",
        "four": "rng-4-sum-at-most-10",
    }
    tries = {name: digit_trie(task) for name, task in tasks.items()}
    return {name: diversity_of(trie, uniform_over_valid(trie)) for name, trie in tries.items()}


@item(
    12,
    "Fig. 6",
    "On US states the oracle reaches (1, 1).",
    CARE,
    "word by word, a law even over the valid words has Div {even:.3f}; exactly 1 takes the right "
    "weights, such as {new:.0f} times as much on New as on Ohio (then {weighted:.3f})",
)
def states_ceiling() -> dict[str, float]:
    """The states as words."""
    trie = trie_of_strings([answer.split() for answer in get_task("us-states").answers])
    top = trie.edge_count[trie.edge_node == 0].max()
    return {
        "even": diversity_of(trie, uniform_over_valid(trie)),
        "weighted": diversity_of(trie, weighted_by_count(trie)),
        "new": float(top),
    }


@item(
    13,
    "Def. 4.1, demo page",
    "Recall counts valid tokens by their continuations.",
    CARE,
    "the definition weighs tokens by the answers behind them, the authors' published points count "
    "each token once. Of the first digit with sum "
    "at most 10 (three digits), keeping 0 to 4 has recall {weighted:.2f} weighted, {count:.2f} "
    "unweighted",
)
def recall_is_weighted() -> dict[str, float]:
    """Half of the valid tokens that begin most of the answers."""
    trie = digit_trie("rng-3-sum-at-most-10")
    count = np.sort(trie.edge_count[trie.edge_node == 0])[::-1]
    return {"weighted": float(count[:5].sum() / count.sum()), "count": 5 / len(count)}


@item(
    14,
    "Fig. 2, 4 and 8",
    "The area under a precision-recall frontier tells how good an order is.",
    CARE,
    "only beside the share that is valid: at the eight prefixes of the authors' points that share "
    "is {least:.2f} to {most:.2f}, a random order has areas {random_least:.2f} to "
    "{random_most:.2f}, and the models' areas lie {gain_least:.2f} to {gain_most:.2f} above it",
)
def area_needs_prevalence() -> dict[str, float]:
    """Prevalence, random order and area from the published labels."""
    table = pr_curves.from_published()
    ends = {"": table.prevalence, "random_": table.random_area, "gain_": table.area_gain}
    return {
        f"{name}{end}": float(getattr(column, how)())
        for name, column in ends.items()
        for end, how in (("least", "min"), ("most", "max"))
    }


@item(
    15,
    "App. A.2",
    "A judge that errs little leaves the measured order nearly right.",
    CARE,
    "a perfect order of 80,000 tokens, 8,000 valid, scored with one error in ten either way seems "
    "to have area {area:.2f} and recall {recall:.2f} at precision .8",
)
def judge_noise() -> dict[str, float]:
    """The floor under which a perfect order falls when its labels are wrong."""
    floor = pr_baselines.noise_floor(80_000, 8_000, 0.1, 0.1)
    return {"area": floor.area, "recall": floor.recall_at}


@item(
    16,
    "Table 1",
    "Embedding diversity, 1 minus the cosine, lies in [0, 1].",
    CARE,
    "two opposite vectors have {opposite:g}; it ranges to 2",
)
def cosine_range() -> dict[str, float]:
    """1 - cosine of a vector and its opposite."""
    v = np.array([3.0, -4.0])
    return {"opposite": float(1 - v @ -v / (v @ v))}


@item(
    17,
    "Def. of a cutoff, Sec. 3",
    "The hardness result covers every truncation rule.",
    CARE,
    "typical sampling is not covered: with mass 1/2, of p = (.4, ten times .06) it keeps "
    "{kept:.0f} of the small ones and drops the top",
)
def typical_drops_the_top() -> dict[str, float]:
    """Locally typical sampling with mass 1/2, by its definition."""
    p = np.array([0.4, *[0.06] * 10])
    entropy = -(p * np.log(p)).sum()
    order = np.argsort(np.abs(-np.log(p) - entropy), kind="stable")
    kept = order[: int((p[order].cumsum() < 0.5).sum()) + 1]
    return {"kept": float((kept > 0).sum()), "top": float(0 in kept)}


@item(
    18,
    "Tables 1 and 3",
    "Each strategy is compared at its best setting.",
    CARE,
    "the grids have {top_k:.0f} (top-k), {top_p:.0f} (top-p), {min_p:.0f} (min-p) and {none:.0f} "
    "(none) settings, so the budgets differ; what ± stands for is not said",
)
def unequal_budgets() -> dict[str, float]:
    """Settings per strategy in Table 3."""
    names = [rule.name for rule in table3_rules()]
    return {
        name: float(names.count(name) * len(TABLE3_TEMPERATURES))
        for name in ("none", "top_k", "top_p", "min_p")
    }

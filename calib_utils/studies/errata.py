"""What holds, what needs care and what to correct in the paper: what an item is, and small steps.

The items are in `errata_theory` and `errata_readings`. Each recomputes its own numbers from
small examples, with the functions that the rest of the book uses. Knows tries; runs no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import ModuleType

import numpy as np

from calib_utils.core import metrics
from calib_utils.core.rules import TABLE3_TEMPERATURES, table3_rules
from calib_utils.core.split import TokenTable, step_losses
from calib_utils.core.tasks import get_task
from calib_utils.core.tries import (
    Sequences,
    Trie,
    build_trie,
    trie_of_strings,
    uniform_over_valid,
    weighted_by_count,
)
from calib_utils.openended import precision_recall
from calib_utils.results.evaluation import diversity_of
from calib_utils.theory import theorems

HOLDS, CARE, FAILS = "holds", "needs care", "fails as stated"


@dataclass(frozen=True)
class Item:
    """One statement of the paper, what came out, and how it stands.

    `found` names every number in `values`; `test` is the test that would fail if it were wrong.
    """

    number: int
    where: str
    statement: str
    found: str
    verdict: str
    values: dict[str, float]
    test: str


def item(number: int, where: str, statement: str, verdict: str, found: str):
    """Makes an item of a function that returns its numbers.

    The test of the item is `test_` and the function's name.
    """

    def wrap(work: Callable[[], dict[str, float]]) -> Callable[[], Item]:
        @wraps(work)
        def build() -> Item:
            values, test = work(), f"test_{work.__name__}"
            return Item(number, where, statement, found.format(**values), verdict, values, test)

        build.item_number = number
        return build

    return wrap


def items_of(*modules: ModuleType) -> list[Item]:
    """The items of some modules, worked out now, in order."""
    builders = [b for m in modules for b in vars(m).values() if hasattr(b, "item_number")]
    return [build() for build in sorted(builders, key=lambda build: build.item_number)]


def ranked_trie(*labels: str) -> tuple[TokenTable, np.ndarray]:
    """One step as a string of V and I by rank, or two: the root's, then one per valid token.

    Returns:
        The tokens, and the rank of each. [token]

    >>> ranked_trie("VIV")[1].tolist()
    [0, 2]
    """
    first = [rank for rank, label in enumerate(labels[0]) if label == "V"]
    words = [(rank,) for rank in first]
    if len(labels) > 1:
        below = dict(zip(first, labels[1:], strict=True))
        words = [(r, i) for r in first for i, label in enumerate(below[r]) if label == "V"]
    sequences = Sequences(tuple(words), tuple(range(len(words))), (), len(words))
    tokens = TokenTable(build_trie(sequences))
    return tokens, tokens.symbol  # symbols were chosen to be ranks


def digit_trie(task: str) -> Trie:
    """A trie of a digit task's answers, a symbol per digit."""
    return trie_of_strings([answer.split(",") for answer in get_task(task).answers])


# Items 1 to 9 of the errata: the definitions and theorems (Sec. 3 to 5, App. E and F).
#
# Knows theory, metrics and small tries; runs no model.


def _one_step(p: list[float], valid: list[int], keep: int) -> dict[str, float]:
    kept = np.array(p[:keep]) / sum(p[:keep])
    tokens, rank = ranked_trie("".join("V" if i in valid else "I" for i in range(len(p))))
    share = theorems.shares(tokens, rank, np.array([keep]))
    precision = float(theorems.factorise(tokens.trie, share).precision)
    return {"precision": precision, "validity": float(kept[[i for i in valid if i < keep]].sum())}


@item(
    1,
    "Def. 3.1",
    "Diversity lies in [0, 1].",
    CARE,
    "with 4 answers it runs from {least:g} to {most:g}, and is undefined (NaN) where validity is 0",
)
def diversity_range() -> dict[str, float]:
    """Extremes of Div, from a point mass to the uniform law."""
    with np.errstate(divide="ignore"):
        laws = np.log(np.array([[1, 0, 0, 0], [0.25] * 4, [0] * 4]).T)
    least, most, none = metrics.diversity(laws)
    return {"least": float(least), "most": float(most), "undefined": float(none)}


@item(
    2,
    "Sec. 4",
    "Sequence precision coincides with validity.",
    CARE,
    "only for the sampler that is uniform in the retained set: p = (.7, .2, .1), ranks 1 and 3 "
    "valid, 3 kept: precision {precision:.3f}, validity {validity:.1f}",
)
def precision_is_validity() -> dict[str, float]:
    """A step where the two differ."""
    return _one_step([0.7, 0.2, 0.1], [0, 2], 3)


@item(
    3,
    "Def. 3.1 (ours)",
    "−ln(Val · Div) = KL(p̃‖p) + KL(p̃‖U), and −ln Div is a sum over steps of divergences from the "
    "N-weighted target.",
    HOLDS,
    "to within 1e-12 on {models} random models of the sum task",
)
def identities(models: int = 50) -> dict[str, float]:
    """Both identities on random next-token distributions."""
    trie, rng = digit_trie("rng-3-sum-at-most-10"), np.random.default_rng(0)
    edge_log_p = _random_law(trie, rng, models)
    log_p = metrics.answer_log_probability(trie, metrics.sequence_log_probability(trie, edge_log_p))
    p, n = np.exp(log_p), trie.n_answers
    given = p / p.sum(0)
    kl = (given * np.log(given / p)).sum(0), (given * np.log(given * n)).sum(0)
    lost = step_losses(trie, edge_log_p)
    val, div = metrics.validity(log_p), metrics.diversity(log_p)
    gaps = [kl[0] + kl[1] + np.log(val * div), lost.diversity.sum(0) + np.log(div)]
    gaps.append(lost.validity.sum(0) + np.log(val))
    return {"residual": float(np.abs(gaps).max()), "models": models}


def _random_law(trie: Trie, rng, n: int) -> np.ndarray:
    """ln p of every edge for n random models with some mass on invalid tokens. [edge, model]"""
    mass = rng.exponential(size=(trie.n_edges, n))
    total = rng.exponential(size=(trie.n_nodes, n))
    np.add.at(total, trie.edge_node, mass)
    return np.log(mass / total[trie.edge_node])


@item(
    4,
    "Thm. E.1",
    "Sequence precision and recall are products of the steps' factors.",
    HOLDS,
    "exactly, for {looked_at}; where a step has nothing to condition on, the product is taken as "
    "{empty:g}",
)
def factorisation() -> dict[str, float]:
    """Exact check, and the empty condition: a cutoff that keeps only an invalid token."""
    check = theorems.factorisation()
    tokens, rank = ranked_trie("IV", "V")
    share = theorems.shares(tokens, rank, np.array([1, 1]))
    return {
        "looked_at": check.looked_at,
        "violation": check.violation,
        "empty": float(theorems.factorise(tokens.trie, share).precision),
    }


# The step that looks hard at every prefix and is not: few answers behind one prefix, many behind
# the other, while uniform sampling visits both alike.
_FEW, _MANY = "V" + "I" * 8 + "V", "V" + "I" * 5 + "V" * 39


@item(
    5,
    "Def. E.2, Fig. 2",
    "A trade-off at every prefix makes the step hard (a reading of Fig. 2).",
    FAILS,
    "App. E lets a cutoff keep any set: keeping just the valid tokens has precision {all_p:g} and "
    "recall {all_r:g}, so only prefixes of the ranking can be meant. Then: two prefixes each lose "
    "half their recall or more at precision .9 (recalls {few:.2f} and {many:.3f}); the step "
    "reaches precision {precision:.3f} with recall {recall:.3f}, where the bound with these "
    "constants would allow {bound:.3f}",
)
def local_is_not_global() -> dict[str, float]:
    """Alpha averages over uniform sampling, beta over answers: they can look at other prefixes."""
    tokens, rank = ranked_trie("VV", _FEW, _MANY)
    share = theorems.shares(tokens, rank, np.array([2, 1, len(_MANY)]))
    factors = theorems.factorise(tokens.trie, share)
    precision, recall = float(factors.precision), float(factors.recall)
    eta, rho = -np.log(0.9), np.log(2)
    size = tokens.trie.node_branching[tokens.trie.edge_node]
    just_valid = theorems.factorise(tokens.trie, 1 / size)
    return {
        "all_p": float(just_valid.precision),
        "all_r": float(just_valid.recall),
        "few": _recall_at(_FEW, 0.9),
        "many": _recall_at(_MANY, 0.9),
        "precision": precision,
        "recall": recall,
        "bound": float(theorems.recall_bound(precision, eta, rho, 1)),
    }


def _recall_at(labels: str, precision: float) -> float:
    """The most recall of one step over cutoffs that are this precise."""
    valid = np.array([label == "V" for label in labels])
    kept = valid.cumsum()
    precise = kept / np.arange(1, len(valid) + 1) >= precision
    return float(kept[precise].max(initial=0) / valid.sum())


@item(
    6,
    "Def. F.1, Thm. F.4",
    "The geometric law normalised over the vocabulary obeys the bound.",
    FAILS,
    "10 tokens, 9 valid, an even law: Val {val:.1f}, Div {div:.0f}, bound {bound:.3f}. The theorem "
    "needs the infinite law; over 128,000 tokens, 50 valid, the two differ by less than "
    "{large:.0e} at any Val above .05",
)
def finite_vocabulary() -> dict[str, float]:
    """The even law over 10 ranks, and how far a large vocabulary is from the infinite law."""
    val = 9 / 10
    beyond = (1 - 0.05) ** (128_000 / 50)  # mass of the infinite law past the vocabulary
    return {
        "val": val,
        "div": 1.0,
        "bound": float(theorems.diversity_bound(val, [9])),
        "large": beyond,
    }


@item(
    7,
    "Thm. 5.2",
    "The bound holds for a geometric law at each prefix, whatever the sharpness of each.",
    FAILS,
    "two steps with 2 and 1 valid tokens, local validities .5 and 1 behind the first: Val "
    "{val:.1f}, Div {div:.0f}, bound {bound:.3f}. All prefixes of a step must share one sharpness",
)
def sharpness_per_prefix() -> dict[str, float]:
    """Step 1 geometric with q = 1/2; the likelier prefix is invalid half of the time."""
    log_p = np.log([0.5 * 0.5, 0.25 * 1.0])
    val = float(metrics.validity(log_p))
    bound = float(theorems.diversity_bound(val, [2, 1]))
    return {"val": val, "div": float(metrics.diversity(log_p)), "bound": bound}


@item(
    8,
    "Cor. F.5, F.6",
    "Every branching step costs at least c(ε), which is L²/32 + O(L³).",
    HOLDS,
    "with the minimum at v = 2 it is ln 2 − h(1/(1 + √ε)), so no vocabulary enters; the remainder "
    "is O(L⁴). The bound is loose: 4 steps of 10 tokens at Val .9 have Div {true:.3f}, F.4 allows "
    "{f4:.3f}, F.5 {f5:.3f}; c reaches half of ln 2 at ε = {half:.4f}",
)
def least_loss() -> dict[str, float]:
    """Search, closed form, series, and what the bound leaves."""
    branching = [10] * 4
    nats = np.linspace(0, 20, 2_000_001)
    half = nats[np.argmax(theorems.head_loss(2, nats) >= np.log(2) / 2)]
    return {
        "violation": theorems.least_loss_is_at_two(20_000).violation,
        "series": theorems.least_loss_limits().violation,
        "true": theorems.at_validity(0.9, branching),
        "f4": float(theorems.diversity_bound(0.9, branching)),
        "f5": float(np.exp(-4 * theorems.least_loss(0.1))),
        "half": float(np.exp(-half)),
    }


@item(
    9,
    "Sec. 5, Def. F.1",
    "The geometric law stands in for a heavy tail.",
    CARE,
    "10 valid tokens at Val .9: Div {zipf:.2f} with a Zipf tail, {geometric:.2f} with a geometric "
    "one",
)
def heavy_tail() -> dict[str, float]:
    """One step with validity .9 under both laws."""
    exponent = _zipf_exponent(10, 0.9)
    p = np.arange(1, 11.0) ** -exponent
    zipf = float(metrics.diversity(np.log(p / p.sum() * 0.9)))
    return {"zipf": zipf, "geometric": theorems.at_validity(0.9, [10])}


def _zipf_exponent(v: int, mass: float) -> float:
    """The exponent at which the first v ranks of an infinite Zipf law hold this mass."""
    from scipy.optimize import brentq
    from scipy.special import zeta

    return brentq(lambda s: 1 - zeta(s, v + 1) / zeta(s, 1) - mass, 1.01, 20)


# Items 10 to 18 of the errata: how to read the figures and tables (Sec. 4 and 5, App. A and C).
#
# Knows metrics, tries, rules and the published numbers; runs no model.


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
        theorems.factorise(tokens.trie, theorems.shares(tokens, rank, np.array([size])))
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
    table = precision_recall.from_published()
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
    floor = precision_recall.noise_floor(80_000, 8_000, 0.1, 0.1)
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

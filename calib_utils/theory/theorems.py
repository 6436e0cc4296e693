"""The paper's theory as functions, and the theorems of App. E and F checked by running them.

Arrays of a trie, ranks, branching numbers and validities in; precision, recall, losses and bounds
out, in nats. Knows no model, no temperature and no file.

What a rank cutoff keeps is given as *shares*: share[edge] is the part of the retained set S(prefix)
that the edge's tokens make up, 0 where the edge is cut off. For a cutoff that keeps s tokens it is
1/s, or 2/s where two end tokens of one edge are kept. Arrays of `fractions.Fraction` (dtype object)
pass through all functions of shares and give exact results.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from calib_utils.core.split import Steps, TokenTable, require_one_sequence
from calib_utils.core.tries import Sequences, Trie, build_trie
from calib_utils.errors import InvalidRequestError

# --- Precision and recall of a rank cutoff, step by step (Def. 3.2, 4.1; App. E) ---


def shares(tokens: TokenTable, rank: np.ndarray, size: np.ndarray, exact: bool = False):
    """Shares of a rank cutoff that keeps `size` tokens at each node, at least 1. [edge]

    `rank`: from 0, of each valid token. [token] `size`: [node] `exact`: fractions, not floats.
    Raises an InvalidRequestError where a node keeps nothing.
    """
    size = np.asarray(size)
    if (size < 1).any():
        raise InvalidRequestError(
            f"node {int(np.argmin(size))} keeps {int(size.min())} tokens: a cutoff keeps at least 1"
        )
    found = np.full(tokens.trie.n_edges, Fraction(0) if exact else 0.0)
    for token in np.flatnonzero(rank < size[tokens.node]):
        kept = int(size[tokens.node[token]])
        found[tokens.edge[token]] += Fraction(1, kept) if exact else 1 / kept
    return found


def local_precision(trie: Trie, share: np.ndarray) -> np.ndarray:
    """|S and G| / |S| at every node (Def. 4.1). [node, ...]"""
    found = np.zeros((trie.n_nodes, *share.shape[1:]), share.dtype)
    np.add.at(found, trie.edge_node, share)
    return found


def local_recall(trie: Trie, share: np.ndarray) -> np.ndarray:
    """Part of the answers below a node whose next token is kept (Def. 3.2, 4.1). [node, ...]"""
    return local_precision(trie, _part_of_answers(trie, share))


def _part_of_answers(trie: Trie, share: np.ndarray) -> np.ndarray:
    """N(prefix + token) / N(prefix) where the edge is kept, else 0. [edge, ...]"""
    above = trie.node_count[trie.edge_node]
    if share.dtype == object:
        pairs = zip(trie.edge_count.tolist(), above.tolist(), strict=True)
        part = np.array([Fraction(n, of) for n, of in pairs], dtype=object)
    else:
        part = trie.edge_count / above
    return np.where(share > 0, part.reshape(-1, *[1] * (share.ndim - 1)), share.dtype.type(0))


@dataclass(frozen=True)
class Factors:
    """Theorem E.1: the factors of sequence precision (`alpha`) and recall (`beta`). [step, ...]

    alpha[t] is the mean local precision at step t of the sampler that draws uniformly from each
    retained set, given that its earlier tokens are valid; beta[t] the mean local recall over
    uniformly drawn answers whose earlier tokens are all kept. An answer that has ended counts as 1
    in both. Where nothing can be conditioned on, the factor is 0.
    """

    alpha: np.ndarray
    beta: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Sequence precision (Def. 4.1)."""
        return self.alpha.prod(0)

    @property
    def recall(self) -> np.ndarray:
        """Sequence recall (Def. 4.1)."""
        return self.beta.prod(0)


def factorise(trie: Trie, share: np.ndarray) -> Factors:
    """Both factors of every step (Thm. E.1) from shares, [edge] or [edge, setting].

    Raises:
        InvalidRequestError: an answer has several token sequences.
    """
    require_one_sequence(trie)
    return Factors(_factors(trie, share), _factors(trie, _part_of_answers(trie, share)))


def _factors(trie: Trie, edge_p: np.ndarray) -> np.ndarray:
    """P(step t stays in the tree | steps before do) for a process with these edge probabilities."""
    reach = np.zeros((trie.n_nodes, *edge_p.shape[1:]), edge_p.dtype)
    reach[0] = Fraction(1) if edge_p.dtype == object else 1.0
    depth = trie.node_depth[trie.edge_node]
    inside, ended, found = np.asarray(reach[0]), 0 * reach[0], []
    for step in range(int(trie.node_depth.max()) + 1):
        edges = np.flatnonzero(depth == step)
        passed = reach[trie.edge_node[edges]] * edge_p[edges]
        child = trie.edge_child[edges]
        inner = child >= 0
        reach[child[inner]] = passed[inner]
        ended = ended + passed[~inner].sum(0)
        after = np.asarray(passed[inner].sum(0) + ended)
        zeros = np.zeros(after.shape, edge_p.dtype)
        found.append(np.divide(after, inside, out=zeros, where=(inside > 0).astype(bool)))
        inside = after
    return np.stack(found)


def hardness(factors: Factors, eta: float) -> np.ndarray:
    """The largest rho for which each step is (eta, rho)-hard over a family of rules (Def. E.2).

    The least recall lost, -ln beta, among the rules that lose at most eta nats of precision there;
    infinite where no rule is that precise. A larger family can only lower it, so over all rank
    cutoffs a step is at most as hard as this. [step], in nats, of `factors` [step, rule].
    """
    if not eta > 0:
        raise InvalidRequestError(f"eta={eta!r}: must be above 0 nats")
    with np.errstate(divide="ignore"):
        precise = -np.log(factors.alpha.astype(float)) <= eta
        lost = -np.log(factors.beta.astype(float))
    return np.where(precise, lost, np.inf).min(1)


def recall_bound(precision, eta: float, rho: float, hard_steps: int):
    """Theorem E.3 (4.2): the most recall at a sequence precision, with so many hard steps.

    exp(-rho [m - (-ln precision) / eta]_+). An infinite rho says that no rule is so precise there.

    >>> float(recall_bound(1.0, 0.1, 0.5, 4)) == float(np.exp(-2.0))
    True
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        spare = hard_steps - (-np.log(precision)) / eta
        return np.exp(np.where(spare > 0, -rho * spare, 0.0))


def best_recall_bound(factors: Factors, precision, etas) -> np.ndarray:
    """The tightest bound of Theorem E.3 that holds for a family of rules, at each precision.

    Over all eta given and, for each, over how many of the hardest steps are counted: with m steps
    the constant is the m-th largest rho.
    """
    best = np.ones_like(np.asarray(precision, dtype=float))
    for eta in etas:
        for m, rho in enumerate(np.sort(hardness(factors, eta))[::-1], start=1):
            if rho > 0:
                best = np.minimum(best, recall_bound(precision, eta, rho, m))
    return best


def step_frontier(tokens: TokenTable, rank: np.ndarray, depth: int, weights=None) -> np.ndarray:
    """Good (alpha, beta) of one step over adaptive cutoffs there, everything kept before.

    Each point is the best for one weighting of alpha against beta, and attained by a rank cutoff;
    so a step is at most as hard (Def. E.2) as these points say. [point, (alpha, beta)], alpha
    falling.

    Args:
        rank: rank from 0 of each valid token. [token]
        depth: tokens before the step; an InvalidRequestError where an answer ends before it.
        weights: how much beta counts against alpha; by default from 1/1000 to 1000.
    """
    trie = tokens.trie
    require_one_sequence(trie)
    if (trie.node_depth[trie.edge_node[trie.sequence_edge]] < depth).any():
        raise InvalidRequestError(
            f"some answers end before step {depth + 1}: choose an earlier step"
        )
    weights = np.geomspace(1e-3, 1e3, 241) if weights is None else np.asarray(weights)
    # Uniform over the whole vocabulary, all valid prefixes of one length are equally likely.
    nodes = np.flatnonzero(trie.node_depth == depth)
    total = np.zeros((len(weights), 2))
    for node in nodes:
        own = np.arange(tokens.first[node], tokens.first[node + 1])
        own = own[np.argsort(rank[own], kind="stable")]
        precision = np.arange(1, len(own) + 1) / (rank[own] + 1)
        edges = tokens.edge[own]
        reached = np.zeros(len(own))  # a second end token of an edge reaches no further answer
        first = np.unique(edges, return_index=True)[1]
        reached[first] = trie.edge_count[edges[first]]
        options = np.stack([precision / len(nodes), reached.cumsum() / trie.n_answers], 1)
        total += options[(options[:, 0] + weights[:, None] * options[:, 1]).argmax(1)]
    return total


def order_calibrated(steps: Steps) -> np.ndarray:
    """Whether every valid token is at least as probable as every invalid one (Def. D.1). [node]

    Temperature does not change it.
    """
    pairs = [slice(*pair) for pair in itertools.pairwise(steps.tokens.first)]
    return np.array([(np.sort(steps.gap[p])[::-1] == steps.sorted_gap[p]).all() for p in pairs])


def shape_error(trie: Trie, edge_log_p: np.ndarray) -> np.ndarray:
    """Total variation between the next token's law and its N-weighted target (Def. D.1). [node]

    0 exactly where the prefix is shape calibrated; mass on invalid tokens counts, so it lies in
    [0, 1]. `edge_log_p`: ln p(symbol | prefix). [edge]
    """
    p = np.exp(edge_log_p)
    above = np.maximum(trie.edge_count / trie.node_count[trie.edge_node] - p, 0.0)
    # The target has no mass on invalid tokens, so what it has too much is all of the difference.
    return np.bincount(trie.edge_node, weights=above)


# --- The geometric model of a ranked next-token law (Def. F.1, Thm. F.4, Cor. F.5, F.6) ---
# At step t the token of rank i (from 0) has mass (1 - q) q^i with q = exp(-lambda / T), the same
# at every prefix of the step, and the v valid tokens hold the first v ranks. The law has
# infinitely many ranks: its mass beyond the vocabulary is invalid.


def head_entropy(v, a) -> np.ndarray:
    """H_v(a): entropy of p(i) proportional to exp(-a i / v) over i < v (Def. F.1), in nats.

    Closed form, so v may be a whole vocabulary. `a` may be infinite: the entropy is then 0.

    >>> bool(np.isclose(head_entropy(7, 0.0), np.log(7)))
    True
    """
    v, a = np.broadcast_arrays(np.asarray(v, dtype=float), np.asarray(a, dtype=float))
    if (v < 1).any() or (a < 0).any():
        raise InvalidRequestError(f"head_entropy({v}, {a}): needs v >= 1 and a >= 0")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        step = a / v
        log_total = np.log(-np.expm1(-a)) - np.log(-np.expm1(-step))
        mean_rank = 1 / np.expm1(step) - v / np.expm1(a)
        entropy = log_total + step * mean_rank
        # The closed form cancels where the law is nearly even; its series about 0 does not.
        even = np.log(v) - step**2 * (v**2 - 1) / 24
    entropy = np.where(a < 1e-3, even, entropy)
    return np.where(np.isinf(a) | (v == 1), 0.0, entropy)


def head_loss(v, a) -> np.ndarray:
    """Delta_v(a) = ln v - H_v(a): diversity lost by one step, nondecreasing in a (Lemma F.3)."""
    return np.log(v) - head_entropy(v, a)


def diversity_bound(validity, branching: Sequence[int]) -> np.ndarray:
    """Theorem F.4 (5.2): the most diversity at a validity, exp(-sum of Delta_v(ln 1/eps)).

    It holds without cutoff, when at every step all prefixes have the same number of valid tokens
    and the same geometric law, and valid tokens rank first. eps = 1 - validity. `branching`: v of
    every step; steps with one valid token cost nothing.
    """
    with np.errstate(divide="ignore"):
        return bound_at(-np.log1p(-np.asarray(validity, dtype=float)), branching)


def bound_at(nats, branching: Sequence[int]) -> np.ndarray:
    """`diversity_bound` by L = ln 1/eps itself, where validity has no digits left to tell it by."""
    v = np.reshape(branching, (-1, *[1] * np.ndim(nats)))
    return np.exp(-head_loss(v, nats).sum(axis=0))


def least_loss(eps) -> np.ndarray:
    """c(eps) of Corollary F.5 in closed form, ln 2 - h(1 / (1 + sqrt(eps))), in nats.

    Every step with two or more valid tokens costs at least this. It is Delta_2: the minimum over v
    lies at v = 2 wherever it was searched (`least_loss_by_search`).
    """
    with np.errstate(divide="ignore"):
        return head_loss(2, -np.log(np.asarray(eps, dtype=float)))


def least_loss_by_search(eps: float, most: int) -> tuple[float, int]:
    """(c, v): the least Delta_v(ln 1/eps) over 2 <= v <= most, and where it is attained."""
    losses = head_loss(np.arange(2, most + 1), -np.log(eps))
    return float(losses.min()), int(losses.argmin()) + 2


def at_validity(validity, branching: Sequence[int]) -> np.ndarray:
    """Div of the geometric model with equally sharp steps whose validity is this one."""
    return bound_at(-np.log1p(-(np.asarray(validity) ** (1 / len(branching)))), branching)


def heads(steps: Steps) -> pd.DataFrame:
    """How the ranks and logits of the valid tokens stand to the hypotheses of Theorem F.4.

    A row per prefix with two or more valid tokens: `step` from 1; `branching` |G|; `in_order`,
    whether they hold the first ranks; `slope`, lambda of the least-squares line through the logits
    of the first |G| ranks; `r2` of that line, NaN for two tokens, and `miss`, the most by which it
    misses a logit, in nats; `weight`, the share of V that passes here.
    """
    tokens, trie = steps.tokens, steps.tokens.trie
    rows = []
    for node in np.flatnonzero(np.diff(tokens.first) > 1):
        own = slice(tokens.first[node], tokens.first[node + 1])
        gap, v = steps.sorted_gap[own], int(tokens.first[node + 1] - tokens.first[node])
        rank, spread = np.arange(v), gap.var()
        line = np.polyfit(rank, gap, 1)
        left = gap - np.polyval(line, rank)
        r2 = 1 - np.var(left) / spread if v > 2 and spread > 0 else np.nan
        step, in_order = int(trie.node_depth[node]) + 1, bool(steps.rank[own].max() < v)
        weight, miss = trie.node_count[node] / trie.n_answers, float(np.abs(left).max())
        rows.append((step, v, in_order, -float(line[0]), r2, weight, miss))
    columns = ["step", "branching", "in_order", "slope", "r2", "weight", "miss"]
    return pd.DataFrame(rows, columns=columns)


def hypotheses(found: pd.DataFrame) -> pd.DataFrame:
    """The hypotheses of Theorem F.4 step by step, from `heads`.

    Prefixes, valid tokens (smallest and largest), the share of prefixes whose valid tokens hold the
    first ranks, the median R2 of a geometric head, the smallest and largest sharpness lambda v at
    T = 1, which the theorem takes to be one number, and the median miss of the head's line in nats.
    """
    steps = found.assign(sharpness=found.slope * found.branching).groupby("step")
    columns = {
        "prefixes": ("step", "size"),
        "fewest valid": ("branching", "min"),
        "most valid": ("branching", "max"),
        "valid first": ("in_order", "mean"),
        "median R²": ("r2", "median"),
        "least sharpness": ("sharpness", "min"),
        "median sharpness": ("sharpness", "median"),
        "most sharpness": ("sharpness", "max"),
        "median miss": ("miss", "median"),
    }
    return steps.agg(**columns).reset_index()


# --- The theorems, run: small trees with every rank cutoff there is, grids, random instances ---

_LETTERS = 4  # vocabulary of the small trees
ROUNDING = 1e-12


@dataclass(frozen=True)
class SmallTree:
    """A random trie over a few letters, and the rank of every valid token at its node. [token]"""

    tokens: TokenTable
    rank: np.ndarray

    def all_shares(self, exact: bool) -> np.ndarray:
        """The shares of every rank cutoff: each node keeps 1 to all letters. [edge, cutoff]"""
        sizes = itertools.product(range(1, _LETTERS + 1), repeat=self.tokens.trie.n_nodes)
        return np.stack([shares(self.tokens, self.rank, s, exact) for s in sizes], axis=1)


def small_tree(seed: int, most_nodes: int = 5) -> SmallTree:
    """A seeded tree with answers of unequal counts, lengths 2 and 3, and random rankings."""
    rng = np.random.default_rng(seed)
    words = [w for n in (2, 3) for w in itertools.product(range(_LETTERS), repeat=n)]
    while True:
        chosen: list[tuple[int, ...]] = []
        for index in rng.permutation(len(words)):
            word = words[index]
            if not any(word[: len(c)] == c or c[: len(word)] == word for c in chosen):
                chosen.append(word)
            if len(chosen) == rng.integers(3, 8):
                break
        tokens = TokenTable(
            build_trie(Sequences(tuple(chosen), tuple(range(len(chosen))), (), len(chosen)))
        )
        if 3 <= tokens.trie.n_nodes <= most_nodes:
            ranking = np.stack([rng.permutation(_LETTERS) for _ in range(tokens.trie.n_nodes)])
            return SmallTree(tokens, ranking[tokens.node, tokens.symbol])


@dataclass(frozen=True)
class Check:
    """A theorem, what it was run on, and by how much the worst instance breaks it."""

    theorem: str
    statement: str
    looked_at: str
    violation: float

    @property
    def verdict(self) -> str:
        """`holds` up to rounding on everything looked at, or `fails`."""
        return "holds" if self.violation <= ROUNDING else "fails"


def factorisation() -> Check:
    """Theorem E.1 in exact fractions: products of factors against sums over answers (Def. 4.1)."""
    pairs, worst, n_trees = 0, Fraction(0), 6
    for seed in range(n_trees):
        tree = small_tree(seed, most_nodes=4)
        share = tree.all_shares(exact=True)
        factors = factorise(tree.tokens.trie, share)
        precision, recall = _by_definition(tree.tokens.trie, share)
        gaps = [*(factors.precision - precision), *(factors.recall - recall)]
        worst = max(worst, *map(abs, gaps))
        pairs += share.shape[1]
    return Check(
        "E.1",
        "sequence precision and recall are products of the steps' factors",
        f"{pairs:,} cutoffs: all of {n_trees} small trees, in fractions",
        float(worst),
    )


def _by_definition(trie: Trie, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Prec_seq, Rec_seq) of each cutoff, summed over answers. [cutoff]"""
    above = {int(child): edge for edge, child in enumerate(trie.edge_child) if child >= 0}
    precision, kept = 0 * share[0], 0 * share[0]
    for last in trie.sequence_edge:
        edge, p = int(last), share[last]
        while node := int(trie.edge_node[edge]):
            edge = above[node]
            p = p * share[edge]
        precision, kept = precision + p, kept + (p > 0).astype(int)
    return precision, kept / Fraction(trie.n_answers)


def hardness_bound() -> Check:
    """Theorem E.3 with the hardness of each step over *all* rank cutoffs, on all of them."""
    pairs, worst, n_trees = 0, 0.0, 4
    for seed in range(n_trees):
        tree = small_tree(seed, most_nodes=4)
        factors = factorise(tree.tokens.trie, tree.all_shares(exact=False))
        lost = -np.log(factors.alpha[factors.alpha > 0])
        etas = np.unique(np.concatenate([[0.01, 0.1, 0.5], lost[lost > 0].round(9)]))
        bound = best_recall_bound(factors, factors.precision, etas)
        worst = max(worst, float((factors.recall - bound).max()))
        pairs += len(bound) * len(etas)
    return Check(
        "E.3 (4.2)",
        "recall is at most what the hard steps leave",
        f"{pairs:,} pairs of cutoff and η on {n_trees} small trees",
        worst,
    )


def loss_rises() -> Check:
    """Lemma F.3: Delta_v(a) never falls as a grows."""
    v = np.unique(np.geomspace(2, 262_144, 60).astype(int))
    a = np.concatenate([[0.0], np.geomspace(1e-4, 60, 400)])
    return Check(
        "F.3",
        "a step loses more the sharper it is",
        f"{len(v)} branchings up to {v[-1]:,}, {len(a)} sharpnesses",
        float(max(-np.diff(head_loss(v[:, None], a), axis=1).min(), 0.0)),
    )


def validity_bounds_diversity() -> Check:
    """Theorem F.4 on random instances of its model, sharpness free to differ between steps."""
    rng, worst, n = np.random.default_rng(0), 0.0, 4000
    for _ in range(n):
        branching = rng.integers(1, rng.choice([4, 12, 1000]), size=rng.integers(1, 7))
        z = np.exp(rng.uniform(-3, 3.5, len(branching)))
        log_val = np.log1p(-np.exp(-z)).sum()
        div = np.exp(-head_loss(branching, z).sum())
        worst = max(worst, float(div - bound_at(-np.log(-np.expm1(log_val)), branching)))
    return Check(
        "F.4 (5.2)",
        "at a validity, diversity is at most exp(−Σ Δ)",
        f"{n:,} random models of 1 to 6 steps, branching up to 999",
        worst,
    )


def least_loss_is_at_two(most: int = 262_144) -> Check:
    """Corollary F.5: the minimum over v in closed form, by search over every v."""
    worst, epsilons = 0.0, (0.999, 0.9, 0.5, 0.1, 0.01, 1e-4, 1e-9)
    for eps in epsilons:
        found, where = least_loss_by_search(eps, most)
        worst = max(worst, abs(found - float(least_loss(eps))), float(where != 2))
    return Check(
        "F.5",
        "every branching step costs at least c(ε) = Δ₂(ln 1/ε)",
        f"every v from 2 to {most:,} at {len(epsilons)} validities",
        worst,
    )


def least_loss_limits() -> Check:
    """Corollary F.6: L²/32 with a remainder of order L⁴ as L → 0, ln 2 as L → ∞."""
    small = np.geomspace(0.02, 0.3, 30)
    remainder = least_loss(np.exp(-small)) - small**2 / 32
    # The next terms of the series are -L⁴/1024 and +L⁶/36864.
    outside = np.abs(remainder + small**4 / 1024) - small**6 / 36_000
    far = np.log(2) - float(least_loss(np.exp(-80.0)))
    return Check(
        "F.6",
        "c(ε) is L²/32 + O(L⁴) for small L = ln 1/ε, and tends to ln 2",
        f"{len(small)} values of L down to {small[0]:g}, and L = 80",
        max(float(outside.max()), far, 0.0),
    )


def checks() -> pd.DataFrame:
    """Every theorem, what it was run on, the worst violation and the verdict."""
    works = (factorisation, hardness_bound, loss_rises, validity_bounds_diversity)
    found = (work() for work in (*works, least_loss_is_at_two, least_loss_limits))
    rows = [(*vars(check).values(), check.verdict) for check in found]
    columns = ["theorem", "statement", "looked at", "worst violation", "verdict"]
    return pd.DataFrame(rows, columns=columns)

"""The theorems of App. E and F checked by running them: each check says on what, and how closely.

Small trees with every rank cutoff there is, in exact fractions; grids and random instances beyond.
A check returns what it looked at and the largest violation, so that a wrong theorem, or a wrong
implementation, shows. Knows `theory` and `geometric`; nothing of models.
"""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from calib_utils import geometric, theory
from calib_utils.steps import TokenTable
from calib_utils.tries import Sequences, build_trie

_LETTERS = 4  # vocabulary of the small trees
ROUNDING = 1e-12


@dataclass(frozen=True)
class SmallTree:
    """A random trie over a few letters, and the rank of every valid token at its node. [token]"""

    tokens: TokenTable
    rank: np.ndarray

    def cutoffs(self):
        """The sizes [node] of every rank cutoff there is: each node keeps 1 to all letters."""
        return itertools.product(range(1, _LETTERS + 1), repeat=self.tokens.trie.n_nodes)

    def all_shares(self, exact: bool) -> np.ndarray:
        """The shares of every rank cutoff. [edge, cutoff]"""
        columns = [theory.shares(self.tokens, self.rank, s, exact) for s in self.cutoffs()]
        return np.stack(columns, axis=1)


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
        answers = tuple(range(len(chosen)))
        trie = build_trie(Sequences(tuple(chosen), answers, (), len(chosen)))
        if 3 <= trie.n_nodes <= most_nodes:
            break
    tokens = TokenTable(trie)
    ranking = np.stack([rng.permutation(_LETTERS) for _ in range(trie.n_nodes)])
    return SmallTree(tokens, ranking[tokens.node, tokens.symbol])


@dataclass(frozen=True)
class Check:
    """A theorem and what running it found.

    `violation` is by how much the worst instance breaks it; at most `ROUNDING` where it holds.
    """

    theorem: str
    statement: str
    looked_at: str
    violation: float

    @property
    def verdict(self) -> str:
        """`holds` on everything looked at, or `fails`."""
        return "holds" if self.violation <= ROUNDING else "fails"


def factorisation(seeds=range(6)) -> Check:
    """Theorem E.1 in exact fractions, on every rank cutoff of small trees.

    The products of the factors against sums over answers, taken straight from Def. 4.1.
    """
    pairs, worst = 0, Fraction(0)
    for seed in seeds:
        tree = small_tree(seed, most_nodes=4)
        share = tree.all_shares(exact=True)
        factors = theory.factorise(tree.tokens.trie, share)
        precision, recall = _by_definition(tree, share)
        gaps = [*(factors.precision - precision), *(factors.recall - recall)]
        worst = max(worst, *map(abs, gaps))
        pairs += share.shape[1]
    return Check(
        "E.1",
        "sequence precision and recall are products of the steps' factors",
        f"{pairs:,} cutoffs: all of {len(seeds)} small trees, in fractions",
        float(worst),
    )


def _by_definition(tree: SmallTree, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Prec_seq, Rec_seq) of each cutoff, summed over answers. [cutoff]"""
    trie = tree.tokens.trie
    above = {int(child): edge for edge, child in enumerate(trie.edge_child) if child >= 0}
    precision, kept = 0 * share[0], 0 * share[0]
    for last in trie.sequence_edge:
        edge, p = int(last), share[last] ** 0
        while True:
            p = p * share[edge]
            node = int(trie.edge_node[edge])
            if node == 0:
                break
            edge = above[node]
        precision, kept = precision + p, kept + (p > 0).astype(int)
    return precision, kept / Fraction(trie.n_answers)


def hardness_bound(seeds=range(4)) -> Check:
    """Theorem E.3 with the hardness of each step over *all* rank cutoffs, on all of them."""
    pairs, worst = 0, -np.inf
    for seed in seeds:
        tree = small_tree(seed, most_nodes=4)
        factors = theory.factorise(tree.tokens.trie, tree.all_shares(exact=False))
        lost = -np.log(factors.alpha[factors.alpha > 0])
        etas = np.unique(np.concatenate([[0.01, 0.1, 0.5], lost[lost > 0].round(9)]))
        bound = theory.best_recall_bound(factors, factors.precision, etas)
        worst = max(worst, float((factors.recall - bound).max()))
        pairs += len(bound) * len(etas)
    return Check(
        "E.3 (4.2)",
        "recall is at most what the hard steps leave",
        f"{pairs:,} pairs of cutoff and η on {len(seeds)} small trees",
        max(worst, 0.0),
    )


def loss_rises() -> Check:
    """Lemma F.3: Delta_v(a) never falls as a grows."""
    v = np.unique(np.geomspace(2, 262_144, 60).astype(int))
    a = np.concatenate([[0.0], np.geomspace(1e-4, 60, 400)])
    losses = geometric.head_loss(v[:, None], a)
    return Check(
        "F.3",
        "a step loses more the sharper it is",
        f"{len(v)} branchings up to {v[-1]:,}, {len(a)} sharpnesses",
        float(max(-np.diff(losses, axis=1).min(), 0.0)),
    )


def validity_bounds_diversity(n: int = 4000, seed: int = 0) -> Check:
    """Theorem F.4 on random instances of its model, sharpness free to differ between steps."""
    rng, worst = np.random.default_rng(seed), -np.inf
    for _ in range(n):
        branching = rng.integers(1, rng.choice([4, 12, 1000]), size=rng.integers(1, 7))
        z = np.exp(rng.uniform(-3, 3.5, len(branching)))
        log_val = np.log1p(-np.exp(-z)).sum()
        div = np.exp(-sum(geometric.head_loss(v, a) for v, a in zip(branching, z, strict=True)))
        bound = geometric.bound_at(-np.log(-np.expm1(log_val)), branching)
        worst = max(worst, float(div - bound))
    return Check(
        "F.4 (5.2)",
        "at a validity, diversity is at most exp(−Σ Δ)",
        f"{n:,} random models of 1 to 6 steps, branching up to 999",
        max(worst, 0.0),
    )


def least_loss_is_at_two(most: int = 262_144) -> Check:
    """Corollary F.5: the minimum over v in closed form, by search over every v."""
    worst, epsilons = 0.0, (0.999, 0.9, 0.5, 0.1, 0.01, 1e-4, 1e-9)
    for eps in epsilons:
        found, where = geometric.least_loss_by_search(eps, most)
        worst = max(worst, abs(found - float(geometric.least_loss(eps))), float(where != 2))
    return Check(
        "F.5",
        "every branching step costs at least c(ε) = Δ₂(ln 1/ε)",
        f"every v from 2 to {most:,} at {len(epsilons)} validities",
        worst,
    )


def least_loss_limits() -> Check:
    """Corollary F.6: L²/32 with a remainder of order L⁴ as L → 0, ln 2 as L → ∞."""
    small = np.geomspace(0.02, 0.3, 30)
    remainder = geometric.least_loss(np.exp(-small)) - small**2 / 32
    # The next terms of the series are -L⁴/1024 and +L⁶/36864.
    outside = np.abs(remainder + small**4 / 1024) - small**6 / 36_000
    far = np.log(2) - float(geometric.least_loss(np.exp(-80.0)))
    return Check(
        "F.6",
        "c(ε) is L²/32 + O(L⁴) for small L = ln 1/ε, and tends to ln 2",
        f"{len(small)} values of L down to {small[0]:g}, and L = 80",
        max(float(outside.max()), far, 0.0),
    )


def checks() -> pd.DataFrame:
    """Every theorem, what it was run on, the worst violation and the verdict."""
    found = [
        factorisation(),
        hardness_bound(),
        loss_rises(),
        validity_bounds_diversity(),
        least_loss_is_at_two(),
        least_loss_limits(),
    ]
    rows = [
        {
            "theorem": check.theorem,
            "statement": check.statement,
            "looked at": check.looked_at,
            "worst violation": check.violation,
            "verdict": check.verdict,
        }
        for check in found
    ]
    return pd.DataFrame(rows)

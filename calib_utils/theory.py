"""Precision and recall of a rank cutoff, step by step (Def. 3.2, 4.1; App. E).

A trie and what a cutoff keeps of every edge in, local and sequence measures out, as floats or as
exact fractions: arrays of `fractions.Fraction` (dtype object) pass through every function. Knows
tries and tables of valid tokens; nothing of models, temperatures or files.

What a cutoff keeps is given as *shares*: share[edge] is the part of the retained set S(prefix) that
the edge's tokens make up, 0 where the edge is cut off. For a cutoff that keeps s tokens it is 1/s,
or 2/s where two end tokens of one edge are kept.
"""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from calib_utils.errors import InvalidRequestError
from calib_utils.steps import Steps, TokenTable, require_one_sequence
from calib_utils.tries import Trie


def shares(tokens: TokenTable, rank: np.ndarray, size: np.ndarray, exact: bool = False):
    """Shares of a rank cutoff, from the ranks of the valid tokens.

    Args:
        rank: rank from 0 of each valid token. [token]
        size: how many tokens are kept at each node, at least 1. [node]
        exact: fractions instead of floats.

    Returns:
        [edge]

    Raises:
        InvalidRequestError: a node keeps nothing.
    """
    size = np.asarray(size)
    if (size < 1).any():
        raise InvalidRequestError(
            f"node {int(np.argmin(size))} keeps {int(size.min())} tokens: a cutoff keeps at least 1"
        )
    found = _zeros(tokens.trie.n_edges, exact)
    for token in np.flatnonzero(rank < size[tokens.node]):
        kept = int(size[tokens.node[token]])
        found[tokens.edge[token]] += Fraction(1, kept) if exact else 1 / kept
    return found


def _zeros(shape, exact: bool) -> np.ndarray:
    return np.full(shape, Fraction(0), dtype=object) if exact else np.zeros(shape)


def local_precision(trie: Trie, share: np.ndarray) -> np.ndarray:
    """|S and G| / |S| at every node (Def. 4.1). [node, ...]"""
    found = _zeros((trie.n_nodes, *share.shape[1:]), share.dtype == object)
    np.add.at(found, trie.edge_node, share)
    return found


def local_recall(trie: Trie, share: np.ndarray) -> np.ndarray:
    """Part of the answers below a node whose next token is kept (Def. 4.1). [node, ...]

    Every valid token counts by its continuations N (Def. 3.2).
    """
    found = _zeros((trie.n_nodes, *share.shape[1:]), share.dtype == object)
    np.add.at(found, trie.edge_node, _part_of_answers(trie, share))
    return found


def _part_of_answers(trie: Trie, share: np.ndarray) -> np.ndarray:
    """N(prefix + token) / N(prefix) where the edge is kept, else 0. [edge, ...]"""
    above = trie.node_count[trie.edge_node]
    if share.dtype == object:
        pairs = zip(trie.edge_count.tolist(), above.tolist(), strict=True)
        part = np.array([Fraction(n, of) for n, of in pairs], dtype=object)
    else:
        part = trie.edge_count / above
    part = part.reshape(-1, *[1] * (share.ndim - 1))
    return np.where(share > 0, part, Fraction(0) if share.dtype == object else 0.0)


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
    """Both factors of every step (Thm. E.1).

    Args:
        share: [edge] or [edge, setting].

    Raises:
        InvalidRequestError: an answer has several token sequences.
    """
    require_one_sequence(trie)
    return Factors(_factors(trie, share), _factors(trie, _part_of_answers(trie, share)))


def _factors(trie: Trie, edge_p: np.ndarray) -> np.ndarray:
    """P(step t stays in the tree | steps before do) for a process with these edge probabilities."""
    exact = edge_p.dtype == object
    n_steps = int(trie.node_depth.max()) + 1
    reach = _zeros((trie.n_nodes, *edge_p.shape[1:]), exact)
    reach[0] = Fraction(1) if exact else 1.0
    depth = trie.node_depth[trie.edge_node]
    inside, found = reach[0], []
    ended = _zeros(edge_p.shape[1:], exact)
    for step in range(n_steps):
        edges = np.flatnonzero(depth == step)
        passed = reach[trie.edge_node[edges]] * edge_p[edges]
        child = trie.edge_child[edges]
        inner = child >= 0
        reach[child[inner]] = passed[inner]
        ended = ended + passed[~inner].sum(0)
        after = passed[inner].sum(0) + ended
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(_ratio(after, inside))
        inside = after
    return np.array(found, dtype=edge_p.dtype)


def _ratio(part, whole):
    if np.ndim(part) == 0:
        return part / whole if whole > 0 else part * 0
    return np.array([_ratio(p, w) for p, w in zip(part, whole, strict=True)], dtype=part.dtype)


def hardness(factors: Factors, eta: float) -> np.ndarray:
    """The largest rho for which each step is (eta, rho)-hard over a family of rules (Def. E.2).

    The least recall lost, -ln beta, among the rules that lose at most eta nats of precision there;
    infinite where no rule is that precise. A larger family can only lower it, so over all rank
    cutoffs a step is at most as hard as this.

    Args:
        factors: of the family, a column per rule. [step, rule]
        eta: in nats.

    Returns:
        [step], in nats.
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

    Returns:
        Shape of `precision`, in [0, 1].
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
    so a step is at most as hard (Def. E.2) as these points say.

    Args:
        rank: rank from 0 of each valid token. [token]
        depth: tokens before the step.
        weights: how much beta counts against alpha; by default from 1/1000 to 1000.

    Returns:
        [point, (alpha, beta)], alpha falling.

    Raises:
        InvalidRequestError: some answers end before the step, or have several token sequences.
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
    tokens = steps.tokens
    found = []
    for first, last in itertools.pairwise(tokens.first):
        valid = np.sort(steps.gap[first:last])[::-1]
        found.append(bool((valid == steps.sorted_gap[first:last]).all()))
    return np.array(found)


def shape_error(trie: Trie, edge_log_p: np.ndarray) -> np.ndarray:
    """Total variation between the next token's law and its N-weighted target (Def. D.1). [node]

    0 exactly where the prefix is shape calibrated; mass on invalid tokens counts, so it lies in
    [0, 1].

    Args:
        edge_log_p: ln p(symbol | prefix). [edge]
    """
    p = np.exp(edge_log_p)
    above = np.maximum(trie.edge_count / trie.node_count[trie.edge_node] - p, 0.0)
    # The target has no mass on invalid tokens, so what it has too much is all of the difference.
    return np.bincount(trie.edge_node, weights=above)

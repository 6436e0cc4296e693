"""Validity, diversity, sequence precision and recall (Def. 3.1, 4.1) from log-probabilities.

Arrays in, arrays out, all logarithms in nats. Knows the trie's shape; nothing of models or rules.
"""

import numpy as np

from calib_utils.tries import Trie


def sequence_log_probability(trie: Trie, edge_log_p: np.ndarray) -> np.ndarray:
    """Log-probability of every sequence, the sum over its edges.

    Args:
        trie: the answers' prefix tree.
        edge_log_p: [edge, setting], ln p(symbol | prefix) of every edge, -inf where cut off.

    Returns:
        [sequence, setting]
    """
    node_log_p = np.zeros((trie.n_nodes, edge_log_p.shape[1]))
    inner = np.flatnonzero(trie.edge_child >= 0)
    depth = trie.node_depth[trie.edge_child[inner]]
    for level in range(1, int(trie.node_depth.max()) + 1):
        edges = inner[depth == level]
        parents = node_log_p[trie.edge_node[edges]]
        node_log_p[trie.edge_child[edges]] = parents + edge_log_p[edges]
    last = trie.sequence_edge
    return node_log_p[trie.edge_node[last]] + edge_log_p[last]


def answer_log_probability(trie: Trie, sequence_log_p: np.ndarray) -> np.ndarray:
    """Log-probability of every answer, summed over its sequences: [answer, setting]."""
    total = np.full((trie.n_answers, sequence_log_p.shape[1]), -np.inf)
    np.logaddexp.at(total, trie.sequence_answer, sequence_log_p)
    return total


def validity(answer_log_p: np.ndarray) -> np.ndarray:
    """Val(p) = sum of p(y) over the valid answers (Def. 3.1), in [0, 1].

    >>> float(validity(np.log([0.5, 0.25])))
    0.75
    """
    # Rounding in the last of 16 digits may carry a sum of 1 above it.
    return np.minimum(np.exp(np.logaddexp.reduce(answer_log_p, axis=0)), 1.0)


def diversity(answer_log_p: np.ndarray) -> np.ndarray:
    """Div(p) = exp(H(p given valid)) / |V| (Def. 3.1), in [1/|V|, 1]; NaN where Val is 0.

    >>> float(diversity(np.log([0.2, 0.2])))
    1.0
    """
    n_answers = answer_log_p.shape[0]
    total = np.logaddexp.reduce(answer_log_p, axis=0)
    with np.errstate(invalid="ignore"):
        conditional = answer_log_p - total
        p = np.exp(conditional)
        entropy = -np.where(p > 0, p * conditional, 0.0).sum(axis=0)
    value = np.clip(np.exp(entropy) / n_answers, 1 / n_answers, 1.0)
    return np.where(np.exp(total) > 0, value, np.nan)


def sequence_precision(uniform_log_p: np.ndarray) -> np.ndarray:
    """Prec_seq (Def. 4.1): validity when each step is drawn uniformly from what is kept.

    Args:
        uniform_log_p: [answer, setting], log-probability of every answer under that sampler.
    """
    return validity(uniform_log_p)


def sequence_recall(uniform_log_p: np.ndarray) -> np.ndarray:
    """Rec_seq (Def. 4.1): the share of answers whose every token survives the cutoff."""
    return np.isfinite(uniform_log_p).mean(axis=0)


def pareto_frontier(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point beats in both coordinates, by rising `first`.

    NaN points are left out; of equal points one stays.

    >>> pareto_frontier(np.array([0.1, 0.5, 0.4, 0.9]), np.array([0.9, 0.5, 0.4, 0.2])).tolist()
    [0, 1, 3]
    """
    order = np.lexsort((-second, -first))
    frontier, best = [], -np.inf
    for index in order:
        if np.isfinite(first[index]) and second[index] > best:
            frontier.append(int(index))
            best = second[index]
    return np.array(frontier[::-1], dtype=np.int64)


def frontier_area(validity: np.ndarray, diversity: np.ndarray) -> float:
    """Area under the best diversity attainable at each validity level, in [0, 1].

    The integral over v from 0 to 1 of max{Div of a point with Val >= v}, 0 where no point
    reaches v: a staircase through the Pareto frontier, level on the left of its first point and
    zero on the right of its last. No interpolation, so every value was attained.

    >>> frontier_area(np.array([0.5, 1.0]), np.array([0.8, 0.2]))
    0.5
    """
    frontier = pareto_frontier(validity, diversity)
    if not len(frontier):
        return 0.0
    steps = np.diff(validity[frontier], prepend=0.0)
    return float((steps * diversity[frontier]).sum())

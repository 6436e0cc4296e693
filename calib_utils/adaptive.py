"""The best that any rank cutoff could do, adaptive ones included, by dynamic programming.

A trie and the rank of every valid token in, the frontier of sequence precision and recall out
(Def. 4.1). A cutoff may keep another number of tokens at every prefix, so there are exponentially
many; what each subtree can offer is kept as a convex hull, and hulls add up from the leaves.
Knows tries; nothing of models or probabilities, since both measures depend on ranks alone.
"""

import numpy as np

from calib_utils.steps import TokenTable, require_one_sequence


def adaptive_frontier(tokens: TokenTable, rank: np.ndarray) -> np.ndarray:
    """Supported points of the precision-recall frontier over all adaptive rank cutoffs.

    Supported: best for some weighting of sequence precision against sequence recall, so corners of
    the convex hull. Each is attained by a cutoff; between them the hull is an upper bound.

    Args:
        rank: rank from 0 of each valid token at its node. [token]

    Returns:
        [point, 2], precision falling and recall rising.

    Raises:
        InvalidRequestError: an answer has several token sequences.
    """
    trie = tokens.trie
    require_one_sequence(trie)
    hulls: list[np.ndarray | None] = [None] * trie.n_nodes
    for node in range(trie.n_nodes - 1, -1, -1):  # children come after their parent
        own = slice(tokens.first[node], tokens.first[node + 1])
        order = np.argsort(rank[own], kind="stable")
        hulls[node] = _best_of_node(tokens, hulls, np.arange(own.start, own.stop)[order], rank)
        for child in trie.edge_child[tokens.edge[own]]:
            if child >= 0:
                hulls[child] = None
    return hulls[0] / [1.0, trie.n_answers]


def _best_of_node(tokens: TokenTable, hulls: list, ranked: np.ndarray, rank: np.ndarray):
    """Corners [point, (precision, answers)] of a node, its valid tokens given by rank."""
    running, options, seen = np.zeros((1, 2)), [], set()
    for token in ranked:
        edge = int(tokens.edge[token])
        child = tokens.trie.edge_child[edge]
        # A second end token of one edge raises precision, and reaches no further answer.
        own = np.array([[1.0, float(edge not in seen)]]) if child < 0 else hulls[child]
        seen.add(edge)
        running = _minkowski(running, own)
        options.append(running / [rank[token] + 1.0, 1.0])
    return _corners(np.concatenate(options)) if len(options) > 1 else options[0]


def _minkowski(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Corners of all sums of a point of `a` and one of `b`: edges merged by slope."""
    if len(a) == 1 or len(b) == 1:
        return a + b
    edges = np.concatenate([np.diff(a, axis=0), np.diff(b, axis=0)])
    edges = edges[np.argsort(-edges[:, 0] / edges[:, 1], kind="stable")]
    return np.concatenate([[a[0] + b[0]], a[0] + b[0] + edges.cumsum(0)])


def _corners(points: np.ndarray) -> np.ndarray:
    """Corners of the upper right hull: precision falls, recall rises, ever more steeply."""
    points = points[np.lexsort((-points[:, 1], -points[:, 0]))]
    rises = points[:, 1] > np.concatenate([[-np.inf], np.maximum.accumulate(points[:-1, 1])])
    kept: list[np.ndarray] = []
    for point in points[rises]:
        while len(kept) > 1 and _is_inside(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return np.array(kept)


def _is_inside(before: np.ndarray, middle: np.ndarray, after: np.ndarray) -> bool:
    """Whether `middle` does not lie outside the line from `before` to `after`."""
    (x0, y0), (x1, y1), (x2, y2) = before, middle, after
    return (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) <= 0

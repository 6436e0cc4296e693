"""What one pass keeps of a task's trie, and where diversity and validity go, step by step.

Ranks of valid tokens and the window each setting leaves in; step probabilities, losses in nats,
their split between order and shape, and the best adaptive cutoff out. Knows tries; no models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calib_utils.core.tries import Trie
from calib_utils.errors import InvalidRequestError

# What is repaired of a decoder, see `Steps.edge_log_p`.
REPAIRS = ("none", "order", "shape", "both")


def require_one_sequence(trie: Trie) -> None:
    """InvalidRequestError where N counts answers but steps part sequences."""
    if len(trie.sequence_answer) != trie.n_answers:
        raise InvalidRequestError(
            "step losses and the adaptive frontier need one token sequence an answer: use "
            "tokenizations='canonical' and surface='exact'"
        )


class TokenTable:
    """The valid tokens of every node, together; an end edge has a token for each end symbol.

    `edge`, `symbol` and `node` (ascending) of each [token]; `first`: where each node's tokens
    begin, then their number.
    """

    def __init__(self, trie: Trie):
        self.trie = trie
        ends = np.asarray(trie.end_symbols, dtype=np.int64)
        width = np.where(trie.edge_symbol < 0, max(len(ends), 1), 1)
        edge = np.repeat(np.arange(trie.n_edges), width)
        place = np.arange(len(edge)) - np.repeat(np.cumsum(width) - width, width)
        symbol = trie.edge_symbol[edge]
        if len(ends):
            symbol = np.where(symbol < 0, ends[np.minimum(place, len(ends) - 1)], symbol)
        order = np.argsort(trie.edge_node[edge], kind="stable")
        self.edge, self.symbol = edge[order], symbol[order]
        self.node = trie.edge_node[self.edge]
        self.first = np.searchsorted(self.node, np.arange(trie.n_nodes + 1))

    def of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(token [n], row [n]): the tokens of some nodes, and which of them each belongs to."""
        bounds = [(self.first[node], self.first[node + 1]) for node in nodes]
        token = np.concatenate([np.arange(a, b) for a, b in bounds])
        return token, np.repeat(np.arange(len(nodes)), [b - a for a, b in bounds])

    def sum_by_edge(self, log_values: np.ndarray) -> np.ndarray:
        """ln of the sum of exp(log_values) over the tokens of each edge. [edge, setting]"""
        order = np.argsort(self.edge, kind="stable")
        first = np.searchsorted(self.edge[order], np.arange(self.trie.n_edges))
        if len(first) == len(order):  # a token an edge: nothing to add
            return log_values[order]
        return np.logaddexp.reduceat(log_values[order], first)


@dataclass(frozen=True)
class Steps:
    """Where the valid tokens rank, and what each setting keeps. Logarithms in nats.

    `rank`, `gap` [token]: rank from 0 and logit less the node's highest. `sorted_gap` [token]:
    that difference for the ranks 0 .. |G|-1 of the node; NaN where the pass ranked nothing.
    `start`, `stop`, `log_mass` [node, setting]: the window of ranks kept, and ln of its mass
    relative to the top token. `temperature`, `is_rank_cutoff` [setting].
    """

    tokens: TokenTable
    rank: np.ndarray
    gap: np.ndarray
    sorted_gap: np.ndarray
    temperature: np.ndarray
    is_rank_cutoff: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    log_mass: np.ndarray

    def edge_log_p(self, columns: Sequence[int] | slice, repair: str = "none") -> np.ndarray:
        """ln p(symbol | prefix) of every edge under some settings, -inf where cut off.

        Args:
            repair: `order` puts the node's valid tokens, in their own order, on its first ranks,
                with the same sorted probabilities and the same window. `shape` shares what the
                valid tokens of the window hold in proportion to N. `both`: one, then the other.

        Raises:
            InvalidRequestError: an order repair of what is no rank cutoff or was not ranked.
        """
        if repair not in REPAIRS:
            raise InvalidRequestError(f"repair={repair!r} does not exist: choose from {REPAIRS}")
        columns = np.arange(len(self.temperature))[columns]
        ordered = repair in ("order", "both")
        if ordered and not self.is_rank_cutoff[columns].all():
            raise InvalidRequestError(
                "order is repaired where a top prefix of the ranking is kept: leave typical out"
            )
        if ordered and np.isnan(self.sorted_gap).any():
            raise InvalidRequestError("this pass ranked nothing: measure with ranks=True")
        node, rank, gap = self.tokens.node, self.rank, self.gap
        if ordered:
            rank = self._valid_rank
            gap = self.sorted_gap[self.tokens.first[node] + rank]
        inside = self._inside(rank, columns)
        log_p = gap[:, None] / self.temperature[columns] - self.log_mass[node][:, columns]
        by_edge = self.tokens.sum_by_edge(np.where(inside, log_p, -np.inf))
        return self._reshaped(by_edge) if repair in ("shape", "both") else by_edge

    def edge_uniform_log_p(self, columns: Sequence[int] | slice) -> np.ndarray:
        """The same for the sampler that is uniform in the window (Def. 4.1). [edge, setting]"""
        columns = np.arange(len(self.temperature))[columns]
        node = self.tokens.node
        size = (self.stop - self.start)[node][:, columns]
        inside = self._inside(self.rank, columns)
        return self.tokens.sum_by_edge(np.where(inside, -np.log(size), -np.inf))

    def _inside(self, rank: np.ndarray, columns: np.ndarray) -> np.ndarray:
        node = self.tokens.node
        above = rank[:, None] >= self.start[node][:, columns]
        return above & (rank[:, None] < self.stop[node][:, columns])

    @cached_property
    def _valid_rank(self) -> np.ndarray:
        """Rank of each token among its node's valid ones. [token]"""
        order = np.lexsort((self.rank, self.tokens.node))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return place - self.tokens.first[self.tokens.node]

    def _reshaped(self, edge_log_p: np.ndarray) -> np.ndarray:
        trie = self.tokens.trie
        kept = np.where(np.isfinite(edge_log_p), trie.edge_count[:, None], 0)
        order = np.argsort(trie.edge_node, kind="stable")
        first = np.searchsorted(trie.edge_node[order], np.arange(trie.n_nodes))
        held = np.logaddexp.reduceat(edge_log_p[order], first)[trie.edge_node]
        count = np.add.reduceat(kept[order], first)[trie.edge_node]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(kept > 0, held + np.log(kept / count), -np.inf)


@dataclass(frozen=True)
class StepLosses:
    """What each step loses in nats, [step, setting]; sums are -ln Val, -ln Div; NaN if Val is 0."""

    validity: np.ndarray
    diversity: np.ndarray


def step_losses(trie: Trie, edge_log_p: np.ndarray) -> StepLosses:
    """Where validity and diversity go, step by step, for any model and task.

    With p~ the model given that its answer is valid and N the answers below a prefix:
    -ln Val is the sum over steps of E_p~ KL(p~(.|prefix) || p(.|prefix)), and
    -ln Div that of E_p~ KL(p~(.|prefix) || N-weighted target at the prefix).

    Args:
        edge_log_p: [edge, setting], ln p(symbol | prefix), -inf where cut off.

    Raises:
        InvalidRequestError: an answer has several token sequences.
    """
    require_one_sequence(trie)
    n_settings = edge_log_p.shape[1]
    depth = trie.node_depth[trie.edge_node]
    order = np.lexsort((trie.edge_node, depth))  # by depth, those of a node together
    levels = np.split(order, np.searchsorted(depth[order], np.arange(1, depth.max() + 1)))
    below = np.zeros((trie.n_nodes, n_settings))  # ln of the valid mass below each node
    joint = np.empty_like(edge_log_p)
    for edges in reversed(levels):
        child = trie.edge_child[edges]
        tail = np.where((child >= 0)[:, None], below[child], 0.0)
        joint[edges] = edge_log_p[edges] + tail
        nodes, first = np.unique(trie.edge_node[edges], return_index=True)
        below[nodes] = np.logaddexp.reduceat(joint[edges], first)
    reach = np.zeros((trie.n_nodes, n_settings))
    reach[0] = 1.0
    lost = np.zeros((2, len(levels), n_settings))
    with np.errstate(invalid="ignore"):
        for step, edges in enumerate(levels):
            node, child = trie.edge_node[edges], trie.edge_child[edges]
            log_share = joint[edges] - below[node]
            weight = reach[node] * np.exp(log_share)
            target = np.log(trie.edge_count[edges] / trie.node_count[node])[:, None]
            for place, reference in enumerate((edge_log_p[edges], target)):
                terms = np.where(weight > 0, weight * (log_share - reference), 0.0)
                lost[place, step] = terms.sum(0)
            inner = child >= 0
            reach[child[inner]] = weight[inner]
    lost[:, :, ~np.isfinite(below[0])] = np.nan
    return StepLosses(*lost)


@dataclass(frozen=True)
class Split:
    """A loss in nats between two causes, and the rest that both repairs together leave."""

    total: np.ndarray
    order: np.ndarray
    shape: np.ndarray
    rest: np.ndarray


def shapley(losses: Mapping[str, np.ndarray]) -> Split:
    """Shares a loss between order and shape by Shapley's value.

    Each part is what its repair saves, averaged over whether it is repaired first or second.

    Args:
        losses: in nats, for each of `split.REPAIRS`; arrays of one shape.

    >>> found = shapley({"none": 1.0, "order": 0.4, "shape": 0.7, "both": 0.0})
    >>> round(float(found.order), 3), round(float(found.shape), 3)
    (0.65, 0.35)
    """
    none, order, shape, both = (np.asarray(losses[repair], dtype=float) for repair in REPAIRS)
    return Split(
        none, ((none - order) + (shape - both)) / 2, ((none - shape) + (order - both)) / 2, both
    )


def adaptive_frontier(tokens: TokenTable, rank: np.ndarray) -> np.ndarray:
    """Supported points of the precision-recall frontier over all adaptive rank cutoffs (Def. 4.1).

    An adaptive cutoff may keep another number of tokens at every prefix. Supported points are the
    corners of the convex hull: each is attained by a cutoff; between them the hull is an upper
    bound. Hulls of subtrees add up from the leaves.

    Args:
        rank: rank from 0 of each valid token at its node. [token]

    Returns:
        [point, 2], precision falling and recall rising; InvalidRequestError as `step_losses`.
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
    kept: list[tuple[float, float]] = []
    for x2, y2 in points[rises]:
        while len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            if (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) > 0:
                break  # the last point lies outside the line from the one before to this one
            kept.pop()
        kept.append((x2, y2))
    return np.array(kept)

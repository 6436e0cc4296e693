"""What one pass keeps of a task's trie: ranks of valid tokens, and the window each setting leaves.

Numbers per node and per valid token, never a vocabulary, so memory is flat in answers x
vocabulary. From them every step probability follows, counterfactual ones included. Knows tries;
nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calib_utils.errors import InvalidRequestError
from calib_utils.tries import Trie

# What is repaired of a decoder, see `Steps.edge_log_p`.
REPAIRS = ("none", "order", "shape", "both")


def require_one_sequence(trie: Trie) -> None:
    """Refuses tries in which N counts answers where steps part sequences.

    Raises:
        InvalidRequestError: an answer has several token sequences.
    """
    if len(trie.sequence_answer) != trie.n_answers:
        raise InvalidRequestError(
            "step losses and the adaptive frontier need one token sequence an answer: use "
            "tokenizations='canonical' and surface='exact'"
        )


@dataclass(frozen=True)
class TokenTable:
    """The valid tokens of every node. An end edge stands for several where several tokens end.

    Tokens of a node lie together; `token` counts them over the whole trie. [token]
    """

    trie: Trie

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        trie = self.trie
        ends = np.asarray(trie.end_symbols, dtype=np.int64)
        width = np.where(trie.edge_symbol < 0, max(len(ends), 1), 1)
        edge = np.repeat(np.arange(trie.n_edges), width)
        place = np.arange(len(edge)) - np.repeat(np.cumsum(width) - width, width)
        symbol = trie.edge_symbol[edge]
        if len(ends):
            symbol = np.where(symbol < 0, ends[np.minimum(place, len(ends) - 1)], symbol)
        order = np.argsort(trie.edge_node[edge], kind="stable")
        return edge[order], symbol[order], trie.edge_node[edge][order]

    @property
    def edge(self) -> np.ndarray:
        """The edge of each token."""
        return self._rows[0]

    @property
    def symbol(self) -> np.ndarray:
        """Its symbol, an end symbol where the edge ends."""
        return self._rows[1]

    @property
    def node(self) -> np.ndarray:
        """Its node, ascending."""
        return self._rows[2]

    @cached_property
    def first(self) -> np.ndarray:
        """Where each node's tokens begin, and the total at the end. [node + 1]"""
        return np.searchsorted(self.node, np.arange(self.trie.n_nodes + 1))

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
    that difference for the ranks 0 .. |G|-1 of the node; NaN where the pass ranked nothing,
    `rank` then holds zeros. `start`, `stop`, `log_mass`
    [node, setting]: the window of ranks kept, and ln of its mass relative to the top token.
    `temperature` and `is_rank_cutoff` [setting].
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
                valid tokens of the window hold in proportion to N. `both` does one, then the
                other.

        Returns:
            [edge, setting]

        Raises:
            InvalidRequestError: an order repair of a rule that is no rank cutoff, or after a pass
                that ranked nothing.
        """
        if repair not in REPAIRS:
            raise InvalidRequestError(f"repair={repair!r} does not exist: choose from {REPAIRS}")
        columns = np.arange(len(self.temperature))[columns]
        ordered = repair in ("order", "both")
        if ordered and not self.is_rank_cutoff[columns].all():
            raise InvalidRequestError(
                "order is repaired for rules that keep a top prefix of the ranking; leave typical "
                "sampling out"
            )
        if ordered and np.isnan(self.sorted_gap).any():
            raise InvalidRequestError(
                "no rule of this pass needed ranks, so there is no order to repair: measure with "
                "ranks=True"
            )
        rank, gap = (self._valid_rank, self._ranked_gap) if ordered else (self.rank, self.gap)
        node = self.tokens.node
        inside = self._inside(rank, columns)
        log_p = gap[:, None] / self.temperature[columns] - self.log_mass[node][:, columns]
        by_edge = self.tokens.sum_by_edge(np.where(inside, log_p, -np.inf))
        if repair in ("shape", "both"):
            by_edge = self._reshaped(by_edge)
        return by_edge

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

    @property
    def _ranked_gap(self) -> np.ndarray:
        return self.sorted_gap[self.tokens.first[self.tokens.node] + self._valid_rank]

    def _reshaped(self, edge_log_p: np.ndarray) -> np.ndarray:
        trie = self.tokens.trie
        kept = np.where(np.isfinite(edge_log_p), trie.edge_count[:, None], 0)
        order = np.argsort(trie.edge_node, kind="stable")
        first = np.searchsorted(trie.edge_node[order], np.arange(trie.n_nodes))
        held = np.logaddexp.reduceat(edge_log_p[order], first)[trie.edge_node]
        count = np.add.reduceat(kept[order], first)[trie.edge_node]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(kept > 0, held + np.log(kept / count), -np.inf)

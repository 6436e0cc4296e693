"""The prefix tree of a finite answer set, with N(prefix) and G(prefix) at every node (Def. 3.2).

Symbol sequences in, integer arrays out. Symbols may be token ids, words or letters; knows nothing
of models, prompts or probabilities.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from calib_utils.errors import TokenizationError


@dataclass(frozen=True)
class Sequences:
    """All symbol sequences that mean a valid answer.

    `answer[i]` is the answer that `symbols[i]` spells; several sequences may spell one answer. Any
    of `end_symbols` closes a sequence; without one it counts as soon as its last symbol is there.
    """

    symbols: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    end_symbols: tuple[int, ...]
    n_answers: int

    def fingerprint(self) -> str:
        """SHA-256 over every sequence, its answer and the end symbols."""
        content = repr((self.symbols, self.answer, self.end_symbols, self.n_answers))
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Trie:
    """A prefix tree as flat arrays. Node 0 is the empty prefix; a parent precedes its children.

    A *node* is a prefix after which some symbol is valid, so a model has to be asked there. An
    *edge* leaves a node by one valid symbol, or by the end of the answer; it leads to a node, or
    to nowhere (-1) where the answer is complete. Shapes: [node], [edge], [sequence].
    """

    node_parent: np.ndarray  # -1 at the root
    node_symbol: np.ndarray  # the symbol that leads here; -1 at the root
    node_depth: np.ndarray
    node_count: np.ndarray  # N: answers that begin with this prefix
    node_branching: np.ndarray  # |G|: valid next symbols, each end symbol counted
    edge_node: np.ndarray
    edge_symbol: np.ndarray  # -1 on an end edge
    edge_child: np.ndarray  # -1 where the answer is complete
    edge_count: np.ndarray  # N(prefix + symbol)
    sequence_edge: np.ndarray  # the last edge of each sequence
    sequence_answer: np.ndarray
    n_answers: int
    end_symbols: tuple[int, ...]

    @property
    def n_nodes(self) -> int:
        return len(self.node_parent)

    @property
    def n_edges(self) -> int:
        return len(self.edge_node)

    def children(self) -> list[np.ndarray]:
        """For each node the nodes right below it, in order."""
        inner = self.edge_child >= 0
        order = np.argsort(self.edge_node[inner], kind="stable")
        child = self.edge_child[inner][order]
        bounds = np.searchsorted(self.edge_node[inner][order], np.arange(1, self.n_nodes))
        return np.split(child, bounds)

    def prefix(self, node: int) -> list[int]:
        """The symbols that lead from the root to a node."""
        symbols = []
        while node > 0:
            symbols.insert(0, int(self.node_symbol[node]))
            node = int(self.node_parent[node])
        return symbols

    def valid_symbols(self, node: int) -> list[int]:
        """G(prefix): every valid next symbol of a node, ascending."""
        symbols = self.edge_symbol[self.edge_node == node]
        ends = list(self.end_symbols) if (symbols < 0).any() else []
        return sorted([int(s) for s in symbols if s >= 0] + ends)


def build_trie(sequences: Sequences) -> Trie:
    """The prefix tree of `sequences`.

    Raises:
        TokenizationError: one output would count for two answers, or not end where it should.
    """
    _check_unambiguous(sequences)
    closes = bool(sequences.end_symbols)
    length = np.array([len(symbols) for symbols in sequences.symbols])
    steps = (length + closes)[:, None]
    place = np.arange(steps.max())
    # What fills a row up also stands for its end, and sorts before every symbol.
    table = np.full((len(length), len(place)), -1)
    table[place < length[:, None]] = np.fromiter(chain.from_iterable(sequences.symbols), np.int64)
    # In lexical order every parent comes before its children, and siblings come together.
    order = np.lexsort(table.T[::-1])
    table, steps, answer = table[order], steps[order], np.array(sequences.answer)
    passes, last = place < steps, place == steps - 1
    is_new = passes.copy()  # the step is an edge that the row before does not have
    is_new[1:] &= np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
    leads = is_new & ~last
    edge, node = (np.cumsum(made).reshape(made.shape) for made in (is_new, leads))
    # Other steps are those of the row above, which has the same prefix.
    edge = np.maximum.accumulate(np.where(is_new, edge - 1, -1))
    below = np.maximum.accumulate(np.where(leads, node, 0))
    edge_node = np.pad(below, ((0, 0), (1, 0)))[:, :-1][is_new]
    edge_symbol, edge_child = table[is_new], np.where(leads, node, -1)[is_new]
    inner = edge_child >= 0
    n_owners = answer.max() + 1
    passed = np.unique((edge * n_owners + answer[order, None])[passes])  # (edge, answer)
    edge_count = np.bincount(passed // n_owners)
    sequence_edge = np.empty_like(order)
    sequence_edge[order] = edge[last]
    width = np.where(edge_symbol < 0, len(sequences.end_symbols), 1)
    return Trie(
        node_parent=np.append(-1, edge_node[inner]),
        node_symbol=np.append(-1, edge_symbol[inner]),
        node_depth=np.append(0, np.nonzero(is_new)[1][inner] + 1),
        node_count=np.append(len(np.unique(answer)), edge_count[inner]),
        node_branching=np.bincount(edge_node, weights=width).astype(np.int64),
        edge_node=edge_node,
        edge_symbol=edge_symbol,
        edge_child=edge_child,
        edge_count=edge_count,
        sequence_edge=sequence_edge,
        sequence_answer=answer,
        n_answers=sequences.n_answers,
        end_symbols=sequences.end_symbols,
    )


def trie_of_strings(answers: Sequence[Sequence]) -> Trie:
    """A trie over letters of strings, or over words of lists; an end closes every answer.

    >>> trie_of_strings(["New York".split(), "New Mexico".split(), "Ohio".split()]).n_nodes
    5
    """
    symbol = {s: i + 1 for i, s in enumerate(sorted({s for a in answers for s in a}))}
    coded = tuple(tuple(symbol[s] for s in a) for a in answers)
    return build_trie(Sequences(coded, tuple(range(len(coded))), (0,), len(coded)))


def _check_unambiguous(sequences: Sequences) -> None:
    if not sequences.symbols:
        raise TokenizationError("there are no answers to build a trie of: give at least one")
    owner, ends = {}, frozenset(sequences.end_symbols)
    for symbols, answer in zip(sequences.symbols, sequences.answer, strict=True):
        if not symbols:
            raise TokenizationError(f"answer {answer} has no tokens: remove it from the task")
        if owner.setdefault(symbols, answer) != answer:
            raise TokenizationError(
                f"answers {owner[symbols]} and {answer} have the same tokens {symbols}: the model "
                "cannot tell them apart; keep one of them"
            )
        if clash := ends.intersection(symbols):
            raise TokenizationError(
                f"answer {answer} contains the end token(s) {sorted(clash)}: remove it from the "
                "task, or choose another end policy"
            )
    if len(owner) < len(sequences.symbols):
        raise TokenizationError("the same token sequence is listed twice for one answer")
    if not sequences.end_symbols:
        for symbols, answer in owner.items():
            for stop in range(1, len(symbols)):
                if symbols[:stop] in owner:
                    raise TokenizationError(
                        f"answer {owner[symbols[:stop]]} begins answer {answer}; without an end "
                        "token an output would count for both: use end='eos' or end='line'"
                    )


def uniform_over_valid(trie: Trie) -> np.ndarray:
    """Log-probability of every edge for a model that is uniform over G at each prefix. [edge]

    All mass is valid, but blind to N: the structural ceiling of a rank cutoff that knows |G|.
    """
    width = np.where(trie.edge_symbol < 0, max(len(trie.end_symbols), 1), 1)
    return np.log(width / trie.node_branching[trie.edge_node])


def weighted_by_count(trie: Trie) -> np.ndarray:
    """Log-probability of every edge for a shape-calibrated model: p proportional to N. [edge]

    Def. D.1 over token sequences: an answer with several of them counts as often.
    """
    total = np.bincount(trie.edge_node, weights=trie.edge_count)
    return np.log(trie.edge_count / total[trie.edge_node])

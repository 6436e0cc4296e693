"""Next-token distributions that are known by formula, and what a law is.

A prefix's valid tokens and their N in (Def. 3.2), logits over a vocabulary out, and beside them
the valid tokens' probabilities at any temperature. Knows tries; nothing of tokenizers or torch.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from calib_utils.errors import InvalidRequestError
from calib_utils.rules import is_number
from calib_utils.steps import TokenTable


@dataclass(frozen=True)
class Node:
    """One prefix as a law sees it.

    `prefix` holds token ids after the prompt. `symbols` [valid] is G(prefix), `counts` [valid] the
    N of each; where several end tokens close an answer they share its 1 evenly.
    """

    prefix: tuple[int, ...]
    symbols: np.ndarray
    counts: np.ndarray
    n_vocab: int

    @property
    def n_valid(self) -> int:
        return len(self.symbols)

    @property
    def n_invalid(self) -> int:
        return self.n_vocab - len(self.symbols)


class Law(ABC):
    """A distribution over the next token at every prefix that begins an answer.

    A law of your own needs `logits` and `valid_log_p`, and a `repr` that tells it from others: a
    frozen dataclass has one. It may look at `node.prefix`.
    """

    @abstractmethod
    def logits(self, node: Node) -> np.ndarray:
        """ln p of every token up to a constant, -inf for what is impossible: float64 [vocab]."""

    @abstractmethod
    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        """ln p of the valid tokens at a temperature, by formula, in nats: float64 [valid]."""

    def require_fits(self, node: Node) -> None:
        """Refuses a node on which the law is not defined.

        Raises:
            InvalidRequestError: naming the value that does not fit.
        """
        return


@dataclass(frozen=True)
class UniformOverV(Law):
    """Uniform over the answers: p proportional to N, no invalid mass (shape calibrated, Def. D.1).

    Known: Val = Div = 1 at T = 1. Val = 1 at every T; Div stays 1 where siblings have equal N.
    """

    def logits(self, node: Node) -> np.ndarray:
        return _placed(node, np.log(node.counts / node.counts.max()), -math.inf)

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        log_n = np.log(node.counts) / temperature
        return log_n - np.logaddexp.reduce(log_n)


@dataclass(frozen=True)
class UniformOverG(Law):
    """Uniform over the valid next tokens: perfectly ordered, blind to N, no invalid mass.

    Known, at every temperature: Val = 1 and Div = the structural ceiling (`structure`), which is 1
    only where siblings have equal N.
    """

    def logits(self, node: Node) -> np.ndarray:
        return _placed(node, np.zeros(node.n_valid), -math.inf)

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        return np.full(node.n_valid, -math.log(node.n_valid))


@dataclass(frozen=True)
class LeakyShape(Law):
    """The valid tokens hold a share of the mass in proportion to N; the others the rest, evenly.

    Known at T = 1, for answers of L steps (end included): Val = local_validity^L and Div = 1. With
    lengths L_y that differ, p(y) = local_validity^L_y / |V|. Order calibrated exactly where
    local_validity min N / sum N >= (1 - local_validity) / (number of invalid tokens).

    Args:
        local_validity: mass of the valid tokens at each prefix, above 0 and at most 1.
    """

    local_validity: float

    def __post_init__(self):
        if not is_number(self.local_validity) or not 0 < self.local_validity <= 1:
            raise InvalidRequestError(
                f"local_validity={self.local_validity!r}: must be above 0 and at most 1"
            )
        object.__setattr__(self, "local_validity", float(self.local_validity))

    def logits(self, node: Node) -> np.ndarray:
        inside, outside = self._log_masses(node)
        return _placed(node, inside - inside.max(), outside - inside.max())

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        inside, outside = (part / temperature for part in self._log_masses(node))
        tail = outside + math.log(node.n_invalid) if node.n_invalid else -math.inf
        return inside - np.logaddexp(np.logaddexp.reduce(inside), tail)

    def _log_masses(self, node: Node) -> tuple[np.ndarray, float]:
        """ln p of the valid tokens [valid], and of each of the others."""
        inside = np.log(self.local_validity * node.counts / node.counts.sum())
        rest = 1 - self.local_validity
        return inside, math.log(rest / node.n_invalid) if rest else -math.inf

    def require_fits(self, node: Node) -> None:
        if self.local_validity < 1 and not node.n_invalid:
            raise InvalidRequestError(
                f"local_validity={self.local_validity!r}: all {node.n_vocab} tokens are valid "
                f"after {node.prefix}, so none can hold the rest: take 1, or a larger vocabulary"
            )


@dataclass(frozen=True)
class ByStep(Law):
    """Another law at each step of the answer; the last one goes on."""

    laws: tuple[Law, ...]

    def __post_init__(self):
        object.__setattr__(self, "laws", tuple(self.laws))
        if not self.laws or not all(isinstance(law, Law) for law in self.laws):
            raise InvalidRequestError(f"laws={self.laws!r}: must be one law or more")

    def _at(self, node: Node) -> Law:
        return self.laws[min(len(node.prefix), len(self.laws) - 1)]

    def logits(self, node: Node) -> np.ndarray:
        return self._at(node).logits(node)

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        return self._at(node).valid_log_p(node, temperature)

    def require_fits(self, node: Node) -> None:
        self._at(node).require_fits(node)


def node_of(tokens: TokenTable, node: int, n_vocab: int) -> Node:
    """A node of a trie as a law sees it, its valid tokens in the order of `tokens`."""
    own, trie = slice(tokens.first[node], tokens.first[node + 1]), tokens.trie
    edge = tokens.edge[own]
    counts = trie.edge_count[edge] / (edge[:, None] == edge).sum(1)
    return Node(tuple(trie.prefix(node)), tokens.symbol[own], counts, n_vocab)


def _placed(node: Node, valid: np.ndarray, elsewhere: float) -> np.ndarray:
    found = np.full(node.n_vocab, elsewhere)
    found[node.symbols] = valid
    return found

"""Laws that hand out mass by rank: to the right tokens, or by a known permutation to wrong ones.

Knows what `laws` knows. The *perfect order* of a prefix: valid tokens by falling N, then the
invalid ones, ties by token id. It is order calibrated (Def. D.1).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from calib_utils.errors import InvalidRequestError, whole_number
from calib_utils.laws import Law, Node
from calib_utils.rules import is_number


class Ranked(Law):
    """Mass by rank, handed out in the perfect order: order calibrated, and blind to N's size.

    Known, with s(r) the mass of rank r to the power 1/T, S(n) its sum over the first n ranks, and
    v_t valid tokens at every prefix of step t (Assumption 5.1): Val = prod S(v_t) / S(|vocabulary|)
    and Div = prod exp(H_t) / v_t, with H_t the entropy of s over the first v_t ranks.
    """

    @abstractmethod
    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        """ln of the mass of a rank from 0, up to a constant of the node's."""

    def log_total(self, node: Node, temperature: float) -> float:
        """ln of the sum of all ranks' tempered masses, with the constant of `log_mass`."""
        masses = self.log_mass(node, np.arange(node.n_vocab))
        return float(np.logaddexp.reduce(masses / temperature))

    def ranks(self, node: Node) -> np.ndarray:
        """The rank that each token of the perfect order gets. [vocab]"""
        return np.arange(node.n_vocab)

    def logits(self, node: Node) -> np.ndarray:
        valid = node.symbols[_by_falling_count(node)]
        invalid = np.delete(np.arange(node.n_vocab), valid)
        found = np.empty(node.n_vocab)
        found[np.concatenate([valid, invalid])] = self.log_mass(node, self.ranks(node))
        return found

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        mass = self.log_mass(node, self.ranks(node)[: node.n_valid]) / temperature
        found = np.empty(node.n_valid)
        found[_by_falling_count(node)] = mass - self.log_total(node, temperature)
        return found


@dataclass(frozen=True)
class Geometric(Ranked):
    """Def. F.1: mass q^rank with q = exp(-decay / T), normalised over the vocabulary.

    The paper's masses (1 - q) q^rank leave q^|vocabulary| beyond the last rank. A softmax cannot
    leave mass out, and a token that held it would not follow temperature, so here the masses are
    divided by 1 - q^|vocabulary|: Val = prod (1 - q^v_t) / (1 - q^|vocabulary|). The two agree to
    1e-15 where decay |vocabulary| / T > 35; well below that Thm F.4 can fail for this law.

    Args:
        decay: lambda of Def. F.1, nats a rank at T = 1, above 0.
    """

    decay: float

    def __post_init__(self):
        object.__setattr__(self, "decay", _positive("decay", self.decay))

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return -self.decay * rank

    def log_total(self, node: Node, temperature: float) -> float:
        return _log_geometric_sum(self.decay / temperature, node.n_vocab)


@dataclass(frozen=True)
class EquallySharp(Ranked):
    """Geometric at every prefix, with the decay that makes its sharpness the same everywhere.

    decay = sharpness / |G(prefix)|, so the valid tokens hold 1 - exp(-sharpness / T) however many
    they are (over infinitely many ranks; the rest as for `Geometric`): for answers of L steps
    Val = (1 - exp(-sharpness / T))^L. Thm F.4 asks for one decay a step, which this law has under
    Assumption 5.1 only.

    Args:
        sharpness: z of Def. F.1 at T = 1, above 0.
    """

    sharpness: float

    def __post_init__(self):
        object.__setattr__(self, "sharpness", _positive("sharpness", self.sharpness))

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return -self.sharpness / node.n_valid * rank

    def log_total(self, node: Node, temperature: float) -> float:
        return _log_geometric_sum(self.sharpness / node.n_valid / temperature, node.n_vocab)


@dataclass(frozen=True)
class Zipf(Ranked):
    """A heavy tail: mass (rank + 1)^(-exponent / T), normalised over the vocabulary.

    Val = prod h(v_t) / h(|vocabulary|) with h(n) the sum of i^(-exponent / T) for i = 1 .. n.

    Args:
        exponent: above 0.
    """

    exponent: float

    def __post_init__(self):
        object.__setattr__(self, "exponent", _positive("exponent", self.exponent))

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return -self.exponent * np.log(rank + 1.0)


@dataclass(frozen=True)
class _Reordered(Ranked):
    """A ranked law whose masses go to the wrong tokens."""

    law: Ranked

    def __post_init__(self):
        if not isinstance(self.law, Ranked):
            raise InvalidRequestError(
                f"law={self.law!r} has no ranks to exchange: take Geometric, Zipf or another Ranked"
            )

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return self.law.log_mass(node, rank)

    def log_total(self, node: Node, temperature: float) -> float:
        return self.law.log_total(node, temperature)

    def require_fits(self, node: Node) -> None:
        self.law.require_fits(node)


@dataclass(frozen=True)
class Displaced(_Reordered):
    """A ranked law in which `k` valid tokens and `k` invalid ones have changed ranks.

    Wherever there is a choice (two valid tokens or more) the last k valid tokens of the perfect
    order get the ranks v .. v+k-1 and the first k invalid ones the ranks v-k .. v-1.

    Known under Assumption 5.1: the oracle size has Prec_seq = Rec_seq = prod (v_t - k) / v_t over
    the steps with a choice; Val = prod (S(v_t - k) + S(v_t + k) - S(v_t)) / S(|vocabulary|) there.
    Repairing the order gives back `law`.

    Args:
        law: the ordered law.
        k: at least 1, and at most the valid and the invalid tokens of any prefix with a choice.
    """

    k: int = 1

    def __post_init__(self):
        super().__post_init__()
        whole_number("k", self.k)

    def ranks(self, node: Node) -> np.ndarray:
        ranks, v = self.law.ranks(node).copy(), node.n_valid
        if v > 1:
            last, first = slice(v - self.k, v), slice(v, v + self.k)
            ranks[last], ranks[first] = ranks[first].copy(), ranks[last].copy()
        return ranks

    def require_fits(self, node: Node) -> None:
        super().require_fits(node)
        if node.n_valid > 1 and (most := min(node.n_valid, node.n_invalid)) < self.k:
            raise InvalidRequestError(
                f"k={self.k}: after {node.prefix} there are {node.n_valid} valid and "
                f"{node.n_invalid} invalid tokens to exchange: take at most {most}"
            )


@dataclass(frozen=True)
class Permuted(_Reordered):
    """A ranked law whose first ranks are permuted, the same way at every prefix.

    Known: the oracle size keeps what the permutation sends below |G|.

    Args:
        law: the ordered law.
        to: the token with rank i in `law` gets rank `to[i]`; ranks from len(to) on stay.
    """

    to: tuple[int, ...] = (1, 0)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "to", tuple(self.to))
        if sorted(self.to) != list(range(len(self.to))):
            raise InvalidRequestError(
                f"to={self.to!r}: must hold every rank from 0 to {len(self.to) - 1} once"
            )

    def ranks(self, node: Node) -> np.ndarray:
        to = np.concatenate([self.to, np.arange(len(self.to), node.n_vocab)]).astype(np.int64)
        return to[self.law.ranks(node)]

    def require_fits(self, node: Node) -> None:
        super().require_fits(node)
        if len(self.to) > node.n_vocab:
            raise InvalidRequestError(
                f"to has {len(self.to)} ranks, the vocabulary {node.n_vocab}: permute fewer"
            )


def _by_falling_count(node: Node) -> np.ndarray:
    """Places of the node's valid tokens in the perfect order. [valid]"""
    return np.lexsort((node.symbols, -node.counts))


def _log_geometric_sum(rate: float, n: int) -> float:
    """ln of the sum of exp(-rate i) for i = 0 .. n-1."""
    return math.log(math.expm1(-rate * n) / math.expm1(-rate))


def _positive(name: str, value: float) -> float:
    if not is_number(value) or not 0 < value < math.inf:
        raise InvalidRequestError(f"{name}={value!r}: must be a finite number above 0")
    return float(value)

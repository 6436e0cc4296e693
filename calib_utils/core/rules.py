"""Cutoff rules: which of the ranked tokens survive at each prefix (Sec. 3, Table 3), and chains.

A ranked, tempered step in (`ranking.Step`), a smaller one out. Knows nothing of models,
tasks or answers. Temperature comes first, then the cutoff on the tempered distribution.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from calib_utils.errors import InvalidRuleError, UnknownNameError

_LARGEST_K = 2**63 - 1  # of int64
TABLE3_TEMPERATURES = (0.01, 0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0)
TABLE3_TOP_K = (10, 20, 50, 80, 100, 500)
TABLE3_TOP_P = (0.1, 0.5, 0.7, 0.9, 0.95)
TABLE3_MIN_P = (0.01, 0.1, 0.5, 0.9)


class Sampler(ABC):
    """What turns logits into the distribution that is drawn from: a `Rule`, or `Processors`."""

    name: str  # as in tables
    parameter: float = math.nan  # the sampler's number, if it has one

    @property
    def key(self) -> str:
        """`name` or `name=parameter`, as `parse_rule` reads it."""
        number = float(self.parameter)
        if math.isnan(number):
            return self.name
        return f"{self.name}={int(number) if number.is_integer() else number!r}"


class Rule(Sampler):
    """A cutoff strategy S: keeps a top prefix of the ranking at every prefix y_<t.

    A subclass has a `name`, at most one number, `parameter`, and `n_kept`. All settings are
    evaluated from one sort of the logits.
    """

    uses_ranks: ClassVar[bool] = True  # False spares the sort where no other rule needs it
    is_rank_cutoff: bool = True  # False where what is kept need not begin at rank 0
    temperature_first: bool = True  # False cuts the distribution at T = 1 and tempers what is left

    @abstractmethod
    def n_kept(self, step):
        """How many of a `ranking.Step`'s top tokens survive, at least 1: int64 tensor [node]."""

    def keep(self, step):
        """The step with only what survives: a `ranking.Step`.

        Raises:
            InvalidRuleError: a rule of a user's own gives no number of tokens for every node.
        """
        kept, wanted = self.n_kept(step), tuple(step.size.shape)
        if type(self) not in FAMILIES.values():
            form = str(getattr(kept, "dtype", type(kept).__name__)), getattr(kept, "shape", None)
            if form[0] != "torch.int64" or tuple(form[1]) != wanted:
                raise InvalidRuleError(
                    f"rule {self.name!r}: n_kept gave {form[0]} of shape {form[1]}, where an int64 "
                    f"tensor of shape {wanted} is needed, a number of tokens for every node"
                )
            wrong = (kept < 1) | (kept > step.size)
            if wrong.any():
                raise InvalidRuleError(
                    f"rule {self.name!r}: n_kept gave {int(kept[wrong][0])} of "
                    f"{int(step.size[wrong][0])} tokens: keep at least 1 and at most all"
                )
        return step.within(step.start, step.start + kept)


class NumberedRule(Rule):
    """A rule with one number, its only field: by default above 0, at most 1 and below `below`."""

    below: ClassVar[float] = math.inf

    def __post_init__(self):
        ((field, value),) = vars(self).items()
        object.__setattr__(self, field, self.checked(value))

    @property
    def parameter(self) -> float:
        return float(*vars(self).values())

    def checked(self, value):
        """The number as it is kept; InvalidRuleError where it is out of range."""
        if not is_number(value) or not 0 < value <= 1 or value >= self.below:
            limit = "at most 1" if self.below > 1 else f"below {self.below:g}"
            raise InvalidRuleError(f"{self.name}={value!r}: must be above 0 and {limit}")
        return float(value)


@dataclass(frozen=True)
class NoCutoff(Rule):
    """Keeps the whole vocabulary: temperature alone."""

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "temperature alone"
    uses_ranks: ClassVar[bool] = False

    def n_kept(self, step):
        return step.size


@dataclass(frozen=True)
class TopK(NumberedRule):
    """Keeps the min(k, |vocabulary|) most probable tokens; ties go to the lower token id.

    `TopKLogitsWarper` of transformers keeps all tokens tied with the k-th. Logits of a bfloat16
    model tie often, so it may keep more there; use `dtype="float32"` to compare the two.
    """

    k: int
    name: ClassVar[str] = "top_k"
    label: ClassVar[str] = "top-k"

    def checked(self, value):
        if not is_number(value) or not 1 <= value <= _LARGEST_K or value != int(value):
            limit = f"k must be a whole number, from 1 to {_LARGEST_K}"
            raise InvalidRuleError(f"top_k={value!r}: {limit}")
        return int(value)

    def n_kept(self, step):
        return step.size.clamp(max=self.k)


@dataclass(frozen=True)
class TopP(NumberedRule):
    """Keeps the smallest top set with mass of at least p, the crossing token included."""

    p: float
    name: ClassVar[str] = "top_p"
    label: ClassVar[str] = "top-p"

    def n_kept(self, step):
        return step.size if self.p >= 1 else step.count_reaching(self.p)


@dataclass(frozen=True)
class MinP(NumberedRule):
    """Keeps every token with p(v) >= min_p * max p; tied tokens stay or go together."""

    min_p: float
    name: ClassVar[str] = "min_p"
    label: ClassVar[str] = "min-p"

    def n_kept(self, step):
        return step.count_within(-math.log(self.min_p))


@dataclass(frozen=True)
class OracleSize(Rule):
    """Keeps the top |G(y_<t)| tokens: knows how many are valid, not which (Sec. 5, Fig. 6)."""

    name: ClassVar[str] = "oracle_size"
    label: ClassVar[str] = "oracle size"

    def n_kept(self, step):
        return step.size.minimum(step.branching)


def table3_rules() -> list[Rule]:
    """The cutoffs of the paper's Table 3, and the oracle-size cutoff."""
    grids = (TopK, TABLE3_TOP_K), (TopP, TABLE3_TOP_P), (MinP, TABLE3_MIN_P)
    return [NoCutoff(), *(rule(n) for rule, grid in grids for n in grid), OracleSize()]


def is_number(value) -> bool:
    """Whether a value is a real number; truth values are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


# --- Rules that transformers ships beside Table 3, top-nσ, and chains of rules ---

TOP_H_CANDIDATES = 100  # transformers looks no further; so do we, to be equal
# Which families an engine has, in its order, and whether temperature comes before them.
# transformers 5 `GenerationMixin._get_logits_processor`; vLLM `v1/sample/sampler.py`;
# llama.cpp `common_params_sampling.samplers`.
ORDERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "transformers": (("top_h", "top_k", "top_p", "min_p", "typical", "epsilon", "eta"), True),
    "vllm": (("min_p", "top_k", "top_p"), True),
    "llama.cpp": (("top_nsigma", "top_k", "typical", "top_p", "min_p"), False),
}


@dataclass(frozen=True)
class Typical(NumberedRule):
    """Keeps the tokens whose surprisal is nearest to the entropy, with mass of at least `mass`.

    Locally typical sampling (Meister et al. 2023). What it keeps need not begin at the top of the
    ranking, so the paper's result on rank cutoffs does not cover it. A setting takes about
    twice as long as one of top-p: it needs the entropy and a running sum of all tokens.
    """

    mass: float
    name: ClassVar[str] = "typical"
    label: ClassVar[str] = "typical"
    below: ClassVar[float] = 1.0
    is_rank_cutoff: ClassVar[bool] = False

    def n_kept(self, step):
        return self.keep(step).size

    def keep(self, step):
        return step.within(*step.nearest(-step.entropy, self.mass))


@dataclass(frozen=True)
class Epsilon(NumberedRule):
    """Keeps every token with p(v) >= epsilon, at least the most probable (Hewitt et al. 2022)."""

    epsilon: float
    name: ClassVar[str] = "epsilon"
    label: ClassVar[str] = "epsilon"
    below: ClassVar[float] = 1.0

    def n_kept(self, step):
        return step.count_above(self.threshold(step)).maximum(step.count_within(0.0))

    def threshold(self, step):
        return math.log(self.epsilon)


@dataclass(frozen=True)
class Eta(Epsilon):
    """Keeps p(v) >= min(epsilon, sqrt(epsilon) e^-H), H the entropy (Hewitt et al. 2022)."""

    name: ClassVar[str] = "eta"
    label: ClassVar[str] = "eta"

    def threshold(self, step):
        log_epsilon = math.log(self.epsilon)
        return (log_epsilon / 2 - step.entropy).clamp(max=log_epsilon)


@dataclass(frozen=True)
class TopH(NumberedRule):
    """Keeps top tokens that hold at most `top_h` of the entropy (Potraghloo et al. 2025).

    As transformers computes it: among the 100 most probable tokens, renormalised.
    """

    top_h: float
    name: ClassVar[str] = "top_h"
    label: ClassVar[str] = "top-H"

    def n_kept(self, step):
        log_p = step.first_log_p(TOP_H_CANDIDATES).log_softmax(-1)
        p = log_p.exp()
        running = -torch.where(p > 0, log_p * p, 0.0).cumsum(-1)
        # Where all but the top underflow the entropy is 0, and no sum is above a share of it.
        kept = (running <= self.top_h * running[:, -1:]) & (p > 0)
        return kept.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class TopNSigma(NumberedRule):
    """Keeps logits within n standard deviations of the highest (Tang et al. 2024).

    The deviation is that of all of the model's logits, so temperature does not change what is kept.
    """

    n: float
    name: ClassVar[str] = "top_nsigma"
    label: ClassVar[str] = "top-nσ"

    def checked(self, value):
        if not is_number(value) or not 0 < value < math.inf:
            raise InvalidRuleError(f"top_nsigma={value!r}: must be a finite number above 0")
        return float(value)

    def n_kept(self, step):
        return step.count_within(self.n * step.deviation / step.temperature)


@dataclass(frozen=True)
class Chain(Rule):
    """Several rules, each on what the one before left, as one rule.

    Args:
        order: an engine in `ORDERS`, whose order then replaces that of `rules`; empty keeps the
            order given, with temperature first.

    Raises:
        InvalidRuleError: no rules, a family twice, or one the engine does not have.
        UnknownNameError: no such engine.
    """

    rules: tuple[Rule, ...]
    order: str = ""

    def __post_init__(self):
        rules = tuple(self.rules) if isinstance(self.rules, Iterable) else ()
        families = [rule.name for rule in rules if isinstance(rule, Rule)]
        if not rules or len(families) < len(rules) or any(isinstance(r, Chain) for r in rules):
            raise InvalidRuleError(f"a chain needs plain rules, at least one, not {self.rules!r}")
        if len(set(families)) < len(families):
            raise InvalidRuleError(f"chain {families}: a family occurs twice; keep one of each")
        if self.order:
            if self.order not in ORDERS:
                raise UnknownNameError("order", self.order, ORDERS)
            known = ORDERS[self.order][0]
            if missing := [name for name in families if name not in known]:
                raise InvalidRuleError(
                    f"{self.order} has no {', '.join(missing)}: leave it out, or choose another "
                    f"order (it has {', '.join(known)})"
                )
            rules = tuple(sorted(rules, key=lambda rule: known.index(rule.name)))
        object.__setattr__(self, "rules", rules)

    @property
    def name(self) -> str:
        return "+".join(rule.key for rule in self.rules) + (f"@{self.order}" if self.order else "")

    @property
    def is_rank_cutoff(self) -> bool:
        return all(rule.is_rank_cutoff for rule in self.rules)

    @property
    def temperature_first(self) -> bool:
        return ORDERS[self.order][1] if self.order else True

    def n_kept(self, step):
        return self.keep(step).size

    def keep(self, step):
        for rule in self.rules:
            step = rule.keep(step)
        return step


_ALL = (NoCutoff, TopK, TopP, MinP, OracleSize, Typical, Epsilon, Eta, TopH, TopNSigma)
FAMILIES: dict[str, type[Rule]] = {rule.name: rule for rule in _ALL}


def rule_name(rule: str) -> str:
    """A family as people say it; any other name as it is.

    >>> rule_name("top_p"), rule_name("mine")
    ('top-p', 'mine')
    """
    return FAMILIES[rule].label if rule in FAMILIES else rule


# Sweeps beside Table 3, from values that the rules' authors or engines suggest.
MORE_GRIDS: dict[str, tuple[Rule, ...]] = {
    "typical": tuple(map(Typical, (0.2, 0.5, 0.9, 0.95))),
    "epsilon": tuple(map(Epsilon, (0.0003, 0.001, 0.01, 0.05))),
    "eta": tuple(map(Eta, (0.0003, 0.001, 0.01, 0.05))),
    "top_h": tuple(map(TopH, (0.2, 0.4, 0.6, 0.8))),
    "top_nsigma": tuple(map(TopNSigma, (0.5, 1.0, 1.5, 2.0))),
}

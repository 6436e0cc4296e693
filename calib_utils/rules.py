"""Cutoff rules: which of the ranked tokens survive at each prefix (Sec. 3, Table 3).

A ranked, tempered step in (`calib_utils.ranking.Step`), a smaller one out. Knows nothing of models,
tasks or answers. Temperature comes first, then the cutoff on the tempered distribution.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from calib_utils.errors import InvalidRuleError

_LARGEST_K = 2**63 - 1  # of int64
TABLE3_TEMPERATURES = (0.01, 0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0)
TABLE3_TOP_K = (10, 20, 50, 80, 100, 500)
TABLE3_TOP_P = (0.1, 0.5, 0.7, 0.9, 0.95)
TABLE3_MIN_P = (0.01, 0.1, 0.5, 0.9)


class Sampler(ABC):
    """What turns a model's logits into the distribution that is drawn from.

    Two kinds: a `Rule` keeps a window of the ranking and is evaluated for every setting from one
    sort; `calib_utils.processors.Processors` may do anything, and costs a pass each.
    """

    name: str

    @property
    def parameter(self) -> float:
        """The sampler's number, or NaN when it has none."""
        return math.nan

    @property
    def key(self) -> str:
        """`name` or `name=parameter`, as `parse_rule` reads it."""
        if math.isnan(self.parameter):
            return self.name
        number = int(self.parameter) if self.parameter.is_integer() else self.parameter
        return f"{self.name}={number!r}"


class Rule(Sampler):
    """A cutoff strategy S: keeps a top prefix of the ranking at every prefix y_<t.

    A subclass names itself with `name`, has at most one number, `parameter`, and says in
    `n_kept` how many tokens it keeps.
    """

    uses_ranks: ClassVar[bool] = True  # False spares the sort where no other rule needs it
    is_rank_cutoff: bool = True  # False where what is kept need not begin at rank 0
    temperature_first: bool = True  # False cuts the distribution at T = 1 and tempers what is left

    @abstractmethod
    def n_kept(self, step):
        """How many of the step's top-ranked tokens survive, at least 1.

        Args:
            step: a `calib_utils.ranking.Step`, n nodes by descending logit at one temperature.

        Returns:
            int64 tensor [node].
        """

    def keep(self, step):
        """The step with only what survives: a `calib_utils.ranking.Step`."""
        return step.within(step.start, step.start + self.n_kept(step))


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
        """The number as it is kept.

        Raises:
            InvalidRuleError: out of range.
        """
        if not is_number(value) or not 0 < value <= 1 or value >= self.below:
            limit = "at most 1" if self.below > 1 else f"below {self.below:g}"
            raise InvalidRuleError(f"{self.name}={value!r}: must be above 0 and {limit}")
        return float(value)


@dataclass(frozen=True)
class NoCutoff(Rule):
    """Keeps the whole vocabulary: temperature alone."""

    name: ClassVar[str] = "none"
    uses_ranks: ClassVar[bool] = False

    def n_kept(self, step):
        return step.size


@dataclass(frozen=True)
class TopK(NumberedRule):
    """Keeps the min(k, |vocabulary|) most probable tokens; ties go to the lower token id."""

    k: int
    name: ClassVar[str] = "top_k"

    def checked(self, value):
        if not is_number(value) or not 1 <= value <= _LARGEST_K or value != int(value):
            raise InvalidRuleError(
                f"top_k={value!r}: k must be a whole number, from 1 to {_LARGEST_K}"
            )
        return int(value)

    def n_kept(self, step):
        return step.size.clamp(max=self.k)


@dataclass(frozen=True)
class TopP(NumberedRule):
    """Keeps the smallest top set with mass of at least p, the crossing token included."""

    p: float
    name: ClassVar[str] = "top_p"

    def n_kept(self, step):
        return step.size if self.p >= 1 else step.count_reaching(self.p)


@dataclass(frozen=True)
class MinP(NumberedRule):
    """Keeps every token with p(v) >= min_p * max p; tied tokens stay or go together."""

    min_p: float
    name: ClassVar[str] = "min_p"

    def n_kept(self, step):
        return step.count_within(-math.log(self.min_p))


@dataclass(frozen=True)
class OracleSize(Rule):
    """Keeps the top |G(y_<t)| tokens: knows how many are valid, not which (Sec. 5, Fig. 6)."""

    name: ClassVar[str] = "oracle_size"

    def n_kept(self, step):
        return step.size.minimum(step.branching)


def table3_rules() -> list[Rule]:
    """The cutoffs of the paper's Table 3, and the oracle-size cutoff."""
    return [
        NoCutoff(),
        *map(TopK, TABLE3_TOP_K),
        *map(TopP, TABLE3_TOP_P),
        *map(MinP, TABLE3_MIN_P),
        OracleSize(),
    ]


def is_number(value) -> bool:
    """Whether a value is a real number; truth values are not."""
    return isinstance(value, Real) and not isinstance(value, bool)

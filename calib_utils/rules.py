"""Cutoff rules (Sec. 3): how many of the top-ranked tokens survive at each prefix.

A ranked, tempered step in (`calib_utils.ranking.Step`), counts out. Knows nothing of models, tasks
or answers. Temperature comes first, then the cutoff on the tempered distribution.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from calib_utils.errors import InvalidRuleError, InvalidTemperatureError, UnknownNameError

TABLE3_TEMPERATURES = (0.01, 0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0)
TABLE3_TOP_K = (10, 20, 50, 80, 100, 500)
TABLE3_TOP_P = (0.1, 0.5, 0.7, 0.9, 0.95)
TABLE3_MIN_P = (0.01, 0.1, 0.5, 0.9)


class Rule(ABC):
    """A cutoff strategy S: keeps a top prefix of the ranking at every prefix y_<t.

    A subclass names itself with `name`, has at most one number, `parameter`, and says in
    `n_kept` how many tokens it keeps.
    """

    name: ClassVar[str]
    uses_ranks: ClassVar[bool] = True  # False spares the sort where no other rule needs it

    @property
    def parameter(self) -> float:
        """The rule's number, or NaN when it has none."""
        return math.nan

    @abstractmethod
    def n_kept(self, step):
        """How many top-ranked tokens survive, at least 1.

        Args:
            step: a `calib_utils.ranking.Step`, n nodes by descending logit at one temperature.

        Returns:
            int64 tensor [node].
        """

    @property
    def key(self) -> str:
        """`name` or `name=parameter`, as `parse_rule` reads it."""
        if math.isnan(self.parameter):
            return self.name
        number = int(self.parameter) if self.parameter.is_integer() else self.parameter
        return f"{self.name}={number!r}"


@dataclass(frozen=True)
class NoCutoff(Rule):
    """Keeps the whole vocabulary: temperature alone."""

    name: ClassVar[str] = "none"
    uses_ranks: ClassVar[bool] = False

    def n_kept(self, step):
        return step.constant(step.n_vocab)


@dataclass(frozen=True)
class TopK(Rule):
    """Keeps the min(k, |vocabulary|) most probable tokens; ties go to the lower token id."""

    k: int
    name: ClassVar[str] = "top_k"

    def __post_init__(self):
        if not _is_number(self.k) or self.k < 1 or not float(self.k).is_integer():
            raise InvalidRuleError(f"top_k={self.k!r}: k must be a whole number, at least 1")
        object.__setattr__(self, "k", int(self.k))

    @property
    def parameter(self) -> float:
        return float(self.k)

    def n_kept(self, step):
        return step.constant(min(self.k, step.n_vocab))


@dataclass(frozen=True)
class TopP(Rule):
    """Keeps the smallest top set whose mass reaches p, the crossing token included."""

    p: float
    name: ClassVar[str] = "top_p"

    def __post_init__(self):
        object.__setattr__(self, "p", _share("top_p", self.p))

    @property
    def parameter(self) -> float:
        return float(self.p)

    def n_kept(self, step):
        return step.constant(step.n_vocab) if self.p >= 1 else step.count_reaching(self.p)


@dataclass(frozen=True)
class MinP(Rule):
    """Keeps every token with p(v) >= min_p * max p; tied tokens stay or go together."""

    min_p: float
    name: ClassVar[str] = "min_p"

    def __post_init__(self):
        object.__setattr__(self, "min_p", _share("min_p", self.min_p))

    @property
    def parameter(self) -> float:
        return float(self.min_p)

    def n_kept(self, step):
        return step.count_within(-math.log(self.min_p))


@dataclass(frozen=True)
class OracleSize(Rule):
    """Keeps the top |G(y_<t)| tokens: knows how many are valid, not which (Sec. 5, Fig. 6)."""

    name: ClassVar[str] = "oracle_size"

    def n_kept(self, step):
        return step.branching


_FAMILIES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (NoCutoff, TopK, TopP, MinP, OracleSize)
}


def parse_rule(text: str) -> Rule:
    """A rule from `name` or `name=number`.

    >>> parse_rule("top_k=50")
    TopK(k=50)

    Raises:
        UnknownNameError: no such rule.
        InvalidRuleError: a number is missing, superfluous, unreadable or out of range.
    """
    name, equals, number = text.partition("=")
    if name not in _FAMILIES:
        raise UnknownNameError("rule", name, _FAMILIES)
    family = _FAMILIES[name]
    if family in (NoCutoff, OracleSize):
        if equals:
            raise InvalidRuleError(f"rule {text!r}: {name} takes no number; write just {name!r}")
        return family()
    try:
        value = float(number)
    except ValueError:
        raise InvalidRuleError(
            f"rule {text!r}: {name} needs a number, as in '{name}=50'"
            if name == "top_k"
            else f"rule {text!r}: {name} needs a number, as in '{name}=0.9'"
        ) from None
    return family(value)


def table3_rules() -> list[Rule]:
    """The cutoffs of the paper's Table 3, and the oracle-size cutoff."""
    return [
        NoCutoff(),
        *map(TopK, TABLE3_TOP_K),
        *map(TopP, TABLE3_TOP_P),
        *map(MinP, TABLE3_MIN_P),
        OracleSize(),
    ]


def check_rules(rules: Iterable[Rule]) -> list[Rule]:
    """The rules as a list.

    Raises:
        InvalidRuleError: none given, not a rule, or one given twice.
    """
    rules = [rules] if isinstance(rules, Rule | str) else list(rules)
    rules = [parse_rule(rule) if isinstance(rule, str) else rule for rule in rules]
    if not rules:
        raise InvalidRuleError("no rules given: pass at least cu.NoCutoff()")
    seen = set()
    for rule in rules:
        if not isinstance(rule, Rule):
            raise InvalidRuleError(f"{rule!r} is not a rule: use cu.TopK(50), 'top_k=50', ...")
        if rule.key in seen:
            raise InvalidRuleError(f"rule {rule.key!r} is given twice: remove one")
        seen.add(rule.key)
    return rules


def check_temperatures(temperatures: Sequence[float] | float) -> list[float]:
    """The temperatures as a list of floats.

    Raises:
        InvalidTemperatureError: none given, one not finite, not above zero, or given twice.
    """
    values = [temperatures] if isinstance(temperatures, Real) else list(temperatures)
    if not values:
        raise InvalidTemperatureError("no temperatures given: pass at least 1.0")
    for value in values:
        if not _is_number(value):
            raise InvalidTemperatureError(f"temperature {value!r} is not a number")
        if not (math.isfinite(value) and value > 0):
            raise InvalidTemperatureError(
                f"temperature {value!r}: must be a finite number above 0 (greedy decoding is "
                "the limit T -> 0; use a small one such as 0.01)"
            )
    values = [float(value) for value in values]
    if len(set(values)) < len(values):
        raise InvalidTemperatureError(f"temperatures {values} repeat a value: remove it")
    return values


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _share(name: str, value: float) -> float:
    if not _is_number(value) or not 0 < value <= 1:
        raise InvalidRuleError(f"{name}={value!r}: must be above 0 and at most 1")
    return float(value)

"""What a user asks for, checked before any work: samplers from text, lists of them, temperatures.

Knows the rules by name. Knows nothing of models.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

from calib_utils.errors import InvalidRuleError, InvalidTemperatureError, UnknownNameError
from calib_utils.rules import NoCutoff, OracleSize, Rule, Sampler, is_number
from calib_utils.samplers import FAMILIES, ORDERS, Chain

_WITHOUT_NUMBER = (NoCutoff, OracleSize)
_EXAMPLES = {"top_k": "50", "top_nsigma": "1.0", "epsilon": "0.001", "eta": "0.001"}


def parse_rule(text: str) -> Rule:
    """A rule from `name` or `name=number`; a chain from rules joined by `+`, with `@order` or not.

    >>> parse_rule("top_k=50")
    TopK(k=50)
    >>> parse_rule("top_p=0.95+top_k=40@llama.cpp").name
    'top_k=40+top_p=0.95@llama.cpp'

    Raises:
        UnknownNameError: no such rule or order.
        InvalidRuleError: a number is missing, superfluous, unreadable or out of range.
    """
    if not isinstance(text, str):
        raise InvalidRuleError(f"{text!r} is no text: write a rule such as 'top_p=0.9'")
    joined, at, order = text.partition("@")
    parts = joined.split("+")
    if at and not order:
        raise UnknownNameError("order", order, ORDERS)
    if len(parts) > 1 or at:
        return Chain(tuple(map(parse_rule, parts)), order)
    name, equals, number = text.partition("=")
    if name not in FAMILIES:
        raise UnknownNameError("rule", name, FAMILIES)
    family = FAMILIES[name]
    if family in _WITHOUT_NUMBER:
        if equals:
            raise InvalidRuleError(f"rule {text!r}: {name} takes no number; write just {name!r}")
        return family()
    try:
        value = float(number)
    except ValueError:
        raise InvalidRuleError(
            f"rule {text!r}: {name} needs a number, as in '{name}={_EXAMPLES.get(name, '0.9')}'"
        ) from None
    return family(value)


def check_rules(rules: Iterable[Sampler | str]) -> list[Sampler]:
    """The samplers as a list.

    Raises:
        InvalidRuleError: none given, not a sampler, or one given twice.
    """
    if not isinstance(rules, Sampler | str | Iterable):
        raise InvalidRuleError(f"rules={rules!r}: give a list, such as ['none', 'top_p=0.9']")
    rules = [rules] if isinstance(rules, Sampler | str) else list(rules)
    rules = [parse_rule(rule) if isinstance(rule, str) else rule for rule in rules]
    if not rules:
        raise InvalidRuleError("no rules given: pass at least cu.NoCutoff()")
    seen = set()
    for rule in rules:
        if not isinstance(rule, Sampler):
            raise InvalidRuleError(
                f"{rule!r} is not a rule: use cu.TopK(50), 'top_k=50', or cu.Processors([...]) "
                "around logits processors of transformers"
            )
        if rule.name in FAMILIES and type(rule) is not FAMILIES[rule.name]:
            raise InvalidRuleError(f"{rule!r} takes the name of the rule {rule.name!r}: rename it")
        if rule.key in seen:
            raise InvalidRuleError(f"rule {rule.key!r} is given twice: remove one")
        seen.add(rule.key)
    return rules


def check_temperatures(temperatures: Sequence[float] | float) -> list[float]:
    """The temperatures as a list of floats.

    Raises:
        InvalidTemperatureError: none given, one not finite, not above zero, or given twice.
    """
    if not isinstance(temperatures, Real | Iterable):
        raise InvalidTemperatureError(f"temperatures={temperatures!r}: give a list, such as [1.0]")
    values = [temperatures] if isinstance(temperatures, Real) else list(temperatures)
    if not values:
        raise InvalidTemperatureError("no temperatures given: pass at least 1.0")
    for value in values:
        if not is_number(value):
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

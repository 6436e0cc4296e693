"""Samplers that a user brings or asks for: logits processors, rules from text, checked lists.

Knows the rules by name and transformers' calling convention: token ids so far and scores in, scores
out, at every node of a trie with its own prefix. Knows nothing of models.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real

import torch

from calib_utils import files
from calib_utils.core.rules import FAMILIES, ORDERS, Chain, NumberedRule, Sampler, is_number
from calib_utils.errors import (
    CalibUtilsError,
    InvalidRequestError,
    InvalidRuleError,
    UnknownNameError,
)

# (input_ids [row, length], scores [row, vocab]) -> scores [row, vocab]
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Processors(Sampler):
    """Logits processors in a row, with temperature among them, as `generate` would run them.

    Args:
        processors: `transformers.LogitsProcessor` objects, or functions called like them. They
            see the prompt and the prefix, one row a node, must treat rows apart, keep nothing
            between calls, and run without gradients. A score more than 10^6 below the highest
            counts as dropped.
        name: for tables; no `=`, `+` or `@`.
        parameter: a number for tables.
        temperature_at: how many of the processors come before temperature. In `generate`,
            penalties come before it and cutoffs after, so 0 suits cutoffs. None leaves temperature
            to the processors; evaluate at 1.0 then.

    Rows are never stored or reused: what a processor does cannot be read off its name.

    Raises:
        InvalidRuleError: an argument that is none of these.
    """

    def __init__(
        self,
        processors: Sequence[Processor] | Processor,
        name: str,
        parameter: float = math.nan,
        temperature_at: int | None = 0,
    ):
        given = [processors] if callable(processors) else processors
        processors = list(given) if isinstance(given, Iterable) else []
        if not processors or not all(map(callable, processors)):
            raise InvalidRuleError(
                f"sampler {name!r}: give logits processors, called as f(input_ids, scores); got "
                f"{given!r}"
            )
        if kinds := [p.__name__ for p in processors if isinstance(p, type)]:
            raise InvalidRuleError(
                f"sampler {name!r}: {kinds[0]} is a class: give an object, {kinds[0]}(...)"
            )
        if not isinstance(name, str) or not name or set(name) & set("=+@"):
            raise InvalidRuleError(f"sampler name {name!r}: use a word without '=', '+' and '@'")
        if not is_number(parameter):
            raise InvalidRuleError(f"sampler {name!r}: parameter={parameter!r} is not a number")
        if temperature_at is not None and temperature_at not in range(len(processors) + 1):
            raise InvalidRuleError(
                f"sampler {name!r}: temperature_at={temperature_at!r} must be None or from 0 to "
                f"{len(processors)}, the number of processors"
            )
        self.processors, self.name, self.temperature_at = processors, name, temperature_at
        self.parameter, self._calls = float(parameter), 0
        self._unused = [_copied(processor) for processor in processors]

    def log_p(self, ids: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """ln p of every token after the processors, -inf where dropped: float64 [row, vocab].

        Args:
            ids: the prompt and the prefix, int64 [row, length].
            logits: the model's, float32 [row, vocab].

        Raises:
            InvalidRuleError: the processors fail, drop every token, or answer otherwise than unused
                copies of them that get the rows in reverse and in two parts.
        """
        scores = self._scores(self.processors, ids, logits, temperature)
        self._calls += 1
        if self._calls & (self._calls - 1) == 0:  # at the 1st, 2nd, 4th, 8th ...
            try:
                again = self._again(ids, logits, temperature)
                same = torch.allclose(scores, again, rtol=1e-3, atol=1e-3, equal_nan=True)
            except Exception:
                same = False
            if not same:
                raise InvalidRuleError(
                    f"sampler {self.name!r} answers otherwise when it is asked again: scores must "
                    "depend on the prefix of their row alone, not on earlier calls, rows or chance"
                )
        top = scores.max(dim=-1, keepdim=True).values
        if not torch.isfinite(top).all():
            raise InvalidRuleError(
                f"sampler {self.name!r} drops every token, or gives NaN, after "
                f"{ids[~torch.isfinite(top[:, 0])][0, -8:].tolist()} (last tokens): it must keep "
                "at least one"
            )
        masked = scores < top - _MASKED / min(temperature, 1.0)
        return scores.double().masked_fill(masked, -math.inf).log_softmax(-1)

    def _again(self, ids, logits, temperature: float) -> torch.Tensor:
        parts = zip(ids.flip(0).tensor_split(2), logits.flip(0).tensor_split(2), strict=True)
        found = [
            self._scores(list(map(_copied, self._unused)), *part, temperature)
            for part in parts
            if len(part[0])
        ]
        return torch.cat(found).flip(0)

    @torch.no_grad()
    def _scores(self, processors, ids, logits, temperature: float) -> torch.Tensor:
        scores = logits.float().clone()
        for position, processor in enumerate([*processors, None]):
            if position == self.temperature_at and temperature != 1.0:
                scores = scores / temperature
            if processor is not None:
                which = f"sampler {self.name!r}, processor {position + 1},"
                try:
                    scores = processor(ids, scores)
                except Exception as error:
                    raise InvalidRuleError(
                        f"{which} failed ({type(error).__name__}: {error}): it is called as "
                        "f(input_ids, scores), one row a prefix, and keeps nothing between calls"
                    ) from error
                if not isinstance(scores, torch.Tensor) or scores.shape != logits.shape:
                    raise InvalidRuleError(
                        f"{which} returned {type(scores).__name__} instead of scores of the shape "
                        f"{tuple(logits.shape)} that it got"
                    )
        return scores


def _copied(processor: Processor) -> Processor:
    """A copy with attributes of its own, though not what they hold; itself if it has none."""
    try:
        return copy.copy(processor)
    except Exception:
        return processor


_MASKED = 1e6  # how far below the highest a score is that a processor has masked, at T of 1 or more
# Below it, all that has any mass lies within the rounding of one float32 logit.
_COLDEST = 1e-6
EXAMPLES = {"top_k": "50", "min_p": "0.1", "top_nsigma": "1.0", "epsilon": "0.001", "eta": "0.001"}


def parse_rule(text: str, imports: bool = False) -> Sampler:
    """A rule from `name` or `name=number`; a chain from rules joined by `+`, with `@order` or not.

    With `imports`, `module:name` is of a module on Python's path, which is run: a class of rules,
    which the number goes to, or a rule or `Processors` as they are. Never for what was downloaded.

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
        return Chain(tuple(parse_rule(part, imports) for part in parts), order)
    name, equals, number = text.partition("=")
    if imports and ":" in name:
        return _own_rule(text, files.imported(name), number if equals else None)
    if (family := FAMILIES.get(name)) is None:
        raise UnknownNameError("rule", name, FAMILIES)
    if not issubclass(family, NumberedRule):
        if equals:
            raise InvalidRuleError(f"rule {text!r}: {name} takes no number; write just {name!r}")
        return family()
    return family(_number(text, number, f"{name}={EXAMPLES.get(name, '0.9')}"))


def _number(text: str, number: str, example: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise InvalidRuleError(
            f"rule {text!r}: {example.partition('=')[0]} needs a number, as in {example!r}"
        ) from None


def _own_rule(text: str, own, number: str | None) -> Sampler:
    given = [] if number is None else [_number(text, number, f"{text.partition('=')[0]}=1.0")]
    try:
        made = own(*given) if isinstance(own, type) or given else own
    except CalibUtilsError:
        raise
    except Exception as error:
        raise InvalidRuleError(
            f"rule {text!r} cannot be made ({type(error).__name__}: {error}): its class is called "
            f"with {'that number' if given else 'nothing; give a number after ='}"
        ) from error
    if not isinstance(made, Sampler):
        raise InvalidRuleError(f"rule {text!r} is {made!r}: name a cu.Rule or cu.Processors")
    return made


def is_known(sampler: Sampler) -> bool:
    """Whether the sampler is this project's, so that its name says what it does."""
    if type(sampler) is Chain:
        return all(map(is_known, sampler.rules))
    return type(sampler) in FAMILIES.values()


def _require_named(sampler: Sampler) -> None:
    """Refuses a sampler of a user's own that a table could not tell from others."""
    for rule in sampler.rules if type(sampler) is Chain else [sampler]:
        name, number = getattr(rule, "name", None), rule.parameter
        if not isinstance(name, str) or not name:
            raise InvalidRuleError(f"{rule!r} has name={name!r}: give its class a name, as text")
        if name in FAMILIES and not is_known(rule):
            raise InvalidRuleError(f"{rule!r} takes the name of the rule {name!r}: rename it")
        if not isinstance(number, Real):
            raise InvalidRuleError(f"{rule!r} has parameter={number!r}: give a number, or none")


def check_rules(rules: Iterable[Sampler | str]) -> list[Sampler]:
    """The samplers as a list.

    Raises:
        InvalidRuleError: none given, not a sampler, one without a name, or one given twice.
    """
    if not isinstance(rules, Sampler | str | Iterable):
        raise InvalidRuleError(f"rules={rules!r}: give a list, such as ['none', 'top_p=0.9']")
    if not (rules := [rules] if isinstance(rules, Sampler | str) else list(rules)):
        raise InvalidRuleError("no rules given: pass at least cu.NoCutoff()")
    found: dict[str, Sampler] = {}
    for rule in rules:
        rule = parse_rule(rule, imports=True) if isinstance(rule, str) else rule
        if not isinstance(rule, Sampler):
            raise InvalidRuleError(
                f"{rule!r} is not a rule: use cu.TopK(50), 'top_k=50', or cu.Processors([...]) "
                "around logits processors of transformers"
            )
        _require_named(rule)
        if rule.key in found:
            raise InvalidRuleError(f"rule {rule.key!r} is given twice: remove one")
        found[rule.key] = rule
    return list(found.values())


def check_temperatures(temperatures: Sequence[float] | float) -> list[float]:
    """The temperatures as a list of floats.

    Raises:
        InvalidRequestError: none given, one not finite, not above zero, or given twice.
    """
    if getattr(temperatures, "ndim", None) == 0:  # an array without a dimension
        temperatures = temperatures.item()
    values = list(temperatures) if isinstance(temperatures, Iterable) else [temperatures]
    if not values:
        raise InvalidRequestError("no temperatures given: pass at least 1.0")
    found = []
    for value in values:
        if not is_number(value):
            raise InvalidRequestError(f"temperature {value!r} is not a number: such as 1.0")
        try:
            found.append(float(value))
        except OverflowError:
            found.append(math.inf)
        if not _COLDEST <= found[-1] < math.inf:
            raise InvalidRequestError(
                f"temperature {found[-1]}: must be a finite number, at least {_COLDEST:g} "
                "(greedy decoding is the limit T -> 0; use a small one such as 0.01)"
            )
    if len(set(found)) < len(found):
        raise InvalidRequestError(f"temperatures {found} repeat a value: remove it")
    return found

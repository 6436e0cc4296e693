"""Any logits processor of transformers as a sampler, prefix-dependent ones included.

Knows transformers' calling convention: token ids so far and scores in, scores out. Evaluated at
every node of a trie with the node's own prefix, so there is no sampling error.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch

from calib_utils.errors import InvalidRuleError
from calib_utils.rules import Sampler, is_number

# (input_ids [row, length], scores [row, vocab]) -> scores [row, vocab]
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Processors(Sampler):
    """Logits processors in a row, with temperature among them, as `generate` would run them.

    Args:
        processors: `transformers.LogitsProcessor` objects, or functions called like them. They
            see the prompt and the prefix, one row a node, and must treat rows apart.
        name: for tables; no `=`, `+` or `@`.
        parameter: a number for tables.
        temperature_at: how many of the processors come before temperature. In `generate`,
            penalties come before it and cutoffs after, so 0 suits cutoffs. None leaves temperature
            to the processors; evaluate at 1.0 then.

    Rows are never stored or reused: what a processor does cannot be read off its name.

    Raises:
        InvalidRuleError: no processors, a name unfit for tables, or a position out of range.
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
        self._parameter = float(parameter)

    @property
    def parameter(self) -> float:
        return self._parameter

    def log_p(self, ids: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """ln p of every token after the processors, -inf where dropped: float64 [row, vocab].

        Args:
            ids: the prompt and the prefix, int64 [row, length].
            logits: the model's, float32 [row, vocab].

        Raises:
            InvalidRuleError: the processors drop every token, or return something else.
        """
        scores = logits.float().clone()
        for position, processor in enumerate([*self.processors, None]):
            if position == self.temperature_at and temperature != 1.0:
                scores = scores / temperature
            if processor is not None:
                scores = processor(ids, scores)
                if not isinstance(scores, torch.Tensor) or scores.shape != logits.shape:
                    raise InvalidRuleError(
                        f"sampler {self.name!r}, processor {position + 1}, returned "
                        f"{type(scores).__name__} instead of scores of the shape "
                        f"{tuple(logits.shape)} that it got"
                    )
        top = scores.max(dim=-1).values
        if not torch.isfinite(top).all():
            raise InvalidRuleError(
                f"sampler {self.name!r} drops every token, or gives NaN, after "
                f"{ids[~torch.isfinite(top)][0, -8:].tolist()} (last tokens): it must keep at "
                "least one"
            )
        return scores.double().log_softmax(-1)

"""An open prompt as one model sees it, and many continuations of it: greedy or sampled.

Token ids in, token ids and their log-probabilities out. Knows torch models and their caches; knows
nothing of sweeps, judges or stored files.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from calib_utils.core import prompts
from calib_utils.core.prompts import Policies
from calib_utils.core.tasks import OpenPrompt, Task
from calib_utils.errors import InvalidRequestError, ModelFormatError, whole_number
from calib_utils.models.loading import Model
from calib_utils.models.scoring import Batch, can_be_filled, continue_rows, forward, read_shared

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Start:
    """Token ids of a prompt, and the tokens of which any closes a text."""

    ids: Tokens
    end_ids: Tokens


def start_of(model: Model, prompt: OpenPrompt, end: str = "eos") -> Start:
    """The prompt under the project's conventions (`prompts`).

    A text is closed by the end of turn or of text, with `end="line"` by a line break as well, and
    by whatever the model's own generation settings stop at.
    """
    # `prompts.render` wants a task with an answer; what they are called makes no difference.
    rendered = prompts.render(model.tokenizer, Task("open", prompt.prompt, ["x"]), Policies(end))
    return Start(rendered.ids, tuple(sorted({*rendered.end_ids, *own_end_ids(model)})))


def own_end_ids(model: Model) -> tuple[int, ...]:
    """The tokens at which the model's own generation settings stop, ascending."""
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(model.folder)
    except OSError:  # the file is optional
        settings = GenerationConfig.from_model_config(_config(model))
    found = settings.eos_token_id
    return () if found is None else tuple(sorted({found} if isinstance(found, int) else {*found}))


def vocabulary_size(model: Model) -> int:
    """Logits per position."""
    return _config(model).get_text_config().vocab_size


def _config(model: Model):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.folder, trust_remote_code=False)


# The prompt is forwarded once. Rows share its keys where `scoring.read_shared` knows how; else
# each continues a copy of its cache, recurrent state too. So what follows is right for every
# architecture that `scoring`'s branched way is right for.


@dataclass(frozen=True)
class Pace:
    """How batches go on a kind of device."""

    rows: int = 128  # per forward pass; on a CPU, doubling them beyond this gains little
    logits_bytes: float = 160e6  # per forward pass, which may mean fewer rows
    block: int = 16  # rows reduced in float64 at a time; on a CPU more of them cost page faults
    steps: int = 1  # from one read by the host, which waits for the device, to the next
    gone: float = 0.0  # the share of rows that has to end before the others go on alone
    exact: str | None = None  # where float64 is, if not on the device itself


# Logits on MPS go to the host at every step, so there rare reads would gain nothing.
_CUDA = Pace(rows=512, logits_bytes=2e9, block=128, steps=8, gone=0.25)
PACES = {"cpu": Pace(), "mps": Pace(exact="cpu"), "cuda": _CUDA}


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt. Log-probabilities are natural, at temperature 1."""

    prefix: Tokens  # what was forced
    prefix_log_p: tuple[float, ...]  # of it; empty where it was not to be scored
    sample: int  # which draw this is; 0 for greedy
    token_ids: Tokens  # what the model added, its end token included
    log_p: tuple[float, ...]
    ended: bool  # by an end token, rather than the limit


class Continuations:
    """A prompt forwarded once, for any number of continuations.

    Args:
        batch_size: rows per forward pass; halved on its own when memory runs out.
        scored: give ln p of forced tokens; without, logits are computed after the last one alone.

    Raises:
        OutOfMemoryError: the prompt, or later not even one row, fits.
    """

    def __init__(
        self,
        model: Model,
        prompt_ids: Sequence[int],
        batch_size: int | None = None,
        scored: bool = True,
    ):
        if not len(prompt_ids):
            raise InvalidRequestError("prompt_ids is empty: give at least one token")
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)
        self._network, self._scored = model.network, scored
        self._logits, self._cache = read_shared(self._network, prompt_ids)
        self._device, self.vocab_size = self._cache.ids.device, self._logits.shape[1]
        self._pace = _pace(self._device)
        rows = min(self._pace.rows, int(self._pace.logits_bytes / (4 * self.vocab_size)))
        self._batch = Batch(batch_size or max(1, rows), self._device)
        self._can_be_filled = can_be_filled(self._network)

    @torch.inference_mode()
    def candidates(self, prefixes: Sequence[Tokens], ranks: Sequence[int]) -> np.ndarray:
        """The tokens at `ranks` (from 0, ties by ascending id) after each prefix: [prefix, rank].

        Raises:
            InvalidRequestError: a rank that the vocabulary does not have.
        """
        if not len(ranks) or min(ranks) < 0 or max(ranks) >= self.vocab_size:
            raise InvalidRequestError(
                f"ranks {list(ranks)[:3]}... up to {max(ranks, default=None)}: must be from 0 to "
                f"{self.vocab_size - 1}, the last of this vocabulary"
            )
        return self._candidates(prefixes, ranks)

    def _candidates(self, prefixes: Sequence[Tokens], ranks: Sequence[int]) -> np.ndarray:
        found = np.empty((len(prefixes), len(ranks)), dtype=np.int64)
        columns = torch.tensor(list(ranks), device=self._device)

        def ranked(places: list[int]):
            _, logits, _ = self._force([prefixes[i] for i in places], scored=False)
            order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
            return places, order.index_select(1, columns).cpu().numpy()

        for places, tokens in self._in_batches(prefixes, ranked):
            found[places] = tokens
        return found

    @torch.inference_mode()
    def complete(
        self,
        prefixes: Iterable[Tokens],
        max_tokens: int,
        end_ids: Iterable[int] = (),
        n_samples: int = 0,
        temperature: float = 1.0,
        seed: int = 0,
        advance: Callable[[int], object] | None = None,
    ) -> list[Completion]:
        """Every prefix completed; a prefix that ends in an end token is complete as it is.

        A draw depends on its seed, prefix and number alone, not on what else is in the batch.

        Args:
            prefixes: tuples of forced tokens, of any lengths; empty is allowed.
            max_tokens: of the completion, forced tokens not counted.
            n_samples: 0 completes greedily; k draws k times at `temperature`, without cutoff.
            advance: called with the number of completions whenever some are done.

        Returns:
            Completions in the order of the prefixes, the draws of one prefix together.

        Raises:
            InvalidRequestError: a number out of range.
        """
        whole_number("max_tokens", max_tokens)
        whole_number("n_samples", n_samples, 0)
        if not (math.isfinite(temperature) and temperature > 0):
            raise InvalidRequestError(f"temperature {temperature!r}: must be finite and above 0")
        prefixes, quiet = list(map(tuple, prefixes)), (lambda n: None)
        drawing = n_samples, temperature, seed, advance or quiet
        return self._complete(prefixes, max_tokens, {*end_ids}, *drawing)

    def _complete(self, prefixes, max_tokens, ends, n_samples, temperature, seed, advance):
        rows = [(prefix, sample) for prefix in prefixes for sample in range(max(1, n_samples))]
        ends = np.array(sorted(ends), dtype=np.int64)
        done: list[Completion | None] = [None] * len(rows)

        def finished(places: list[int]):
            batch = [rows[i] for i in places]
            uniforms = None
            if n_samples:
                uniforms = np.stack([_uniforms(seed, *row, max_tokens) for row in batch])
            return places, list(self._finish(batch, max_tokens, ends, uniforms, temperature))

        for places, found in self._in_batches([prefix for prefix, _ in rows], finished):
            for place, completion in zip(places, found, strict=True):
                done[place] = completion
            advance(len(places))
        return done

    def _in_batches(self, prefixes: list[Tokens], work: Callable[[list[int]], object]) -> Iterator:
        """What `work` gives for places of prefixes that go together."""
        groups: dict[int, list[int]] = {}
        for place in sorted(range(len(prefixes)), key=lambda place: len(prefixes[place])):
            n = len(prefixes[place])
            groups.setdefault(min(n, 1) if self._can_be_filled else n, []).append(place)
        for places in groups.values():
            yield from self._batch.each(places, work)

    def _force(self, prefixes: list[Tokens], scored: bool):
        """Forwards prefixes: log-probabilities of each one's tokens, logits [row, vocab], state."""
        state = continue_rows(self._cache, self._index(np.zeros(len(prefixes), dtype=np.int64)))
        longest = max(map(len, prefixes))
        if not longest:
            return [()] * len(prefixes), self._logits.expand(len(prefixes), -1), state
        blank = np.array([longest - len(prefix) for prefix in prefixes])
        if blank.any():
            there = np.arange(longest) >= blank[:, None]
            seen = np.pad(there, ((0, 0), (state.ids.shape[1], 0)), constant_values=True)
            state = replace(state, seen=self._index(seen.astype(np.int64)))
        filled = [(0,) * n + prefix for n, prefix in zip(blank.tolist(), prefixes, strict=True)]
        ids = self._index(np.array(filled))
        logits, state = forward(self._network, ids, state, keep=longest if scored else 1)
        if not scored:
            return [()] * len(prefixes), logits[:, -1], state
        first = self._index(np.array([[prefix[0] for prefix in prefixes]]))
        later = [_log_p(logits[:, t - 1], ids[:, t, None])[:, 0] for t in range(1, longest)]
        log_p = _read([_log_p(self._logits, first)[0], *later])
        log_p[np.arange(len(prefixes)), blank] = log_p[:, 0].copy()
        found = [tuple(row[n:]) for row, n in zip(log_p.tolist(), blank, strict=True)]
        _require_numbers(np.concatenate(found))
        return found, logits[:, -1], state

    def _finish(self, rows, max_tokens, ends, uniforms, temperature) -> Iterable[Completion]:
        """One batch of (prefix, sample). Rows that ended leave between reads; until then they write
        on, and what they write is cut off."""
        prefixes = [prefix for prefix, _ in rows]
        forced_log_p, logits, cache = self._force(prefixes, self._scored)
        closed = np.isin([prefix[-1] if prefix else -1 for prefix in prefixes], ends)
        length = np.where(closed, 0, max_tokens + 1)  # the latter until an end is found
        tokens = np.zeros((len(rows), max_tokens), dtype=np.int64)
        log_p = np.zeros(tokens.shape)
        going, chosen = np.arange(len(rows)), None  # the rows that are forwarded
        for start in range(0, max_tokens, self._pace.steps):
            live = np.flatnonzero(length[going] > max_tokens)
            if not len(live):
                break
            if start and len(going) - len(live) >= max(1, self._pace.gone * len(going)):
                index = self._index(live)
                going, chosen, cache = going[live], chosen[index], continue_rows(cache, index)
            steps = np.arange(start, min(start + self._pace.steps, max_tokens))
            cells, found = np.ix_(going, steps), []
            if uniforms is not None:
                u = torch.as_tensor(uniforms[cells], device=self._pace.exact or self._device)
            for column, step in enumerate(steps):
                if step:
                    logits, cache = forward(self._network, chosen[:, None], cache, keep=1)
                    logits = logits[:, -1]
                if uniforms is None:
                    chosen = logits.argmax(dim=-1)
                    value = _log_p(logits, chosen[:, None])[:, 0]
                else:
                    chosen, value = _draw(logits, u[:, column], temperature)
                found.append((chosen, value))
            tokens[cells], log_p[cells] = map(_read, zip(*found, strict=True))
            closing = np.isin(tokens[cells], ends) & (length[going] > max_tokens)[:, None]
            closed = closing.any(axis=1)
            length[going[closed]] = start + 1 + closing[closed].argmax(axis=1)
            _require_numbers(log_p[cells][steps < length[going, None]])
        for row, (prefix, sample) in enumerate(rows):
            n = length[row]
            done = (tuple(values[row, :n].tolist()) for values in (tokens, log_p))
            yield Completion(prefix, forced_log_p[row], sample, *done, bool(n <= max_tokens))

    def _index(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(numbers, device=self._device)


def _uniforms(seed: int, prefix: Tokens, sample: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, sample, *prefix)).random(n)


def _read(columns: Iterable[torch.Tensor]) -> np.ndarray:
    """Values [row] of several steps, on the host: [row, step]."""
    return torch.stack(list(columns), dim=1).cpu().numpy()


def _require_numbers(log_p: np.ndarray) -> None:
    if np.isnan(log_p).any():
        raise ModelFormatError(
            "the model returned NaN or infinite logits: try dtype='float32', or check that the "
            "weight files are intact"
        )


def _pace(device: torch.device) -> Pace:
    return PACES.get(device.type, PACES["cpu"])


def _blocks(logits: torch.Tensor, few: torch.Tensor):
    """Of some rows at a time: a float64 copy of the logits, and what is given beside them."""
    pace = _pace(logits.device)
    device = pace.exact or logits.device
    for block, beside in zip(logits.split(pace.block), few.split(pace.block), strict=True):
        yield block.to(device).to(torch.float64, copy=True), beside.to(device)


def _log_p(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """ln p of some tokens of each row: float64 [row, token], from logits [row, vocab]."""
    parts = _blocks(logits, ids)
    return torch.cat([part.gather(1, few) - part.logsumexp(1, keepdim=True) for part, few in parts])


def _draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float):
    """One token per row from the tempered distribution, by inverting its distribution function.

    Returns:
        The tokens, int64 [row], and their ln p at temperature 1, float64 [row].
    """
    tokens, log_p = [], []
    for gap, u in _blocks(logits, uniforms[:, None]):
        gap -= gap.amax(dim=1, keepdim=True)
        p = gap.exp()
        total = (p if temperature == 1 else (gap / temperature).exp_()).cumsum(dim=1)
        # Below the last sum even where that is rounded, so some token is always found. Among NaN
        # it is clamped to one that exists: they are reported only when the host reads them.
        token = torch.searchsorted(total, u * total[:, -1:], right=True)
        tokens.append(token.clamp_(max=total.shape[1] - 1))
        log_p.append(gap.gather(1, tokens[-1]) - p.sum(dim=1, keepdim=True).log())
    return torch.cat(tokens)[:, 0].to(logits.device), torch.cat(log_p)[:, 0]

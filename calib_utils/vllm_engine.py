"""Continuations by a vLLM server: the requests and records of `generation`, another engine.

Knows vLLM's completions API, token ids in and out. Knows nothing of sweeps or files.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from calib_utils import generation
from calib_utils.endpoint import Endpoint
from calib_utils.errors import (
    EndpointError,
    InvalidRequestError,
    RefusedRequestError,
)
from calib_utils.generation import Completion, Tokens
from calib_utils.models import Model
from calib_utils.starts import vocabulary_size

# Beyond the last rank, so that ties across it show.
_MARGIN = 16
_MIN_TEMPERATURE = 0.01  # vLLM raises what is lower, silently
# Each is sent, since a server fills what is left open from the model's own settings.
_PLAIN = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,  # what ends a text is sent with each request
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}


@dataclass(frozen=True)
class Engine:
    """A vLLM server and the model that it was found to serve; `vllm_sweeps.connect` makes one.

    Args:
        model: the same weights and dtype, for its tokenizer, prompts and identity.
        fingerprint: what the server says of itself: version, and a hash of its settings.
        apart: largest difference of a known text's log-probabilities from float32 here, in nats;
            None where that was not checked.
    """

    model: Model
    endpoint: Endpoint
    fingerprint: str
    apart: float | None = None

    @property
    def version(self) -> str:
        """Engine and version, as in records."""
        return " ".join(self.fingerprint.split("-")[:2])


class ServedContinuations:
    """`generation.Continuations` by a server: same methods, same records, same order.

    Args:
        batch_size: requests under way; the endpoint's `concurrency` by default.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        prompt_ids: Sequence[int],
        batch_size: int | None = None,
    ):
        if not len(prompt_ids):
            raise InvalidRequestError("prompt_ids is empty: give at least one token")
        self._engine, self._ids = engine, list(map(int, prompt_ids))
        self.batch_size = batch_size or engine.endpoint.concurrency
        self.vocab_size = vocabulary_size(model)
        # ln p of the last token of a prefix, for those that `candidates` has come across.
        self._known: dict[Tokens, float] = {}

    def candidates(self, prefixes: Sequence[Tokens], ranks: Sequence[int]) -> np.ndarray:
        """The tokens at `ranks` (from 0, ties by ascending id) after each prefix: [prefix, rank].

        Raises:
            InvalidRequestError: a rank that the vocabulary does not have.
            EndpointError: the server gives fewer log-probabilities than that.
        """
        if not len(ranks) or min(ranks) < 0 or max(ranks) >= self.vocab_size:
            raise InvalidRequestError(
                f"ranks up to {max(ranks, default=None)}: must be from 0 to {self.vocab_size - 1}"
            )

        def rank(prefix: Tokens, stop) -> list[int]:
            order = self._order(prefix, max(ranks) + 1, stop)
            for token, log_p in (order[r] for r in ranks):
                self._known[*prefix, token] = log_p
            return [order[r][0] for r in ranks]

        found = list(self._each(rank, list(map(tuple, prefixes))))
        return np.array(found, dtype=np.int64).reshape(len(prefixes), len(ranks))

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
        """As `generation.Continuations.complete`; the server draws with numbers of its own.

        A draw depends on its seed, prefix and number, and on the other requests of that moment
        only through rounding.
        """
        generation._check(max_tokens, n_samples, temperature)
        if n_samples and temperature < _MIN_TEMPERATURE:
            raise InvalidRequestError(
                f"temperature {temperature!r}: vLLM draws at {_MIN_TEMPERATURE} or more; for less "
                "leave out n_samples, which is greedy"
            )
        ends, samples = sorted(set(end_ids)), max(1, n_samples)
        wanted = {"max_tokens": max_tokens, "stop_token_ids": ends, "n": samples, "logprobs": 0}
        wanted["temperature"] = temperature if n_samples else 0

        def finish(prefix: Tokens, stop) -> list[Completion]:
            forced = self._forced(prefix, stop)
            if prefix and prefix[-1] in ends:
                return [Completion(prefix, forced, i, (), (), True) for i in range(samples)]
            choices = self._ask(prefix, {**wanted, "seed": _seed(seed, prefix)}, stop)
            return [
                Completion(prefix, forced, i, *_tokens(choice), choice["token_ids"][-1] in ends)
                for i, choice in enumerate(choices)
            ]

        done = []
        for completions in self._each(finish, list(map(tuple, prefixes))):
            done += completions
            if advance is not None:
                advance(len(completions))
        return done

    def _each(self, work: Callable, prefixes: list[Tokens]):
        """`work` of every prefix, in order; what is not yet sent is dropped after an error."""
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.batch_size, thread_name_prefix="vllm")
        try:
            yield from pool.map(partial(work, stop=stop), prefixes)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _order(self, prefix: Tokens, n: int, stop) -> list[tuple[int, float]]:
        """At least the first `n` tokens after a prefix by rank, with their log-probabilities."""
        wanted = min(n + _MARGIN, self.vocab_size)
        while True:
            fields = {"max_tokens": 1, "temperature": 0, "logprobs": wanted}
            try:
                (choice,) = self._ask(prefix, fields, stop)
            except RefusedRequestError as error:
                raise EndpointError(
                    f"{error}: ranks up to {n - 1} need a server with --max-logprobs -1, and "
                    f"{len(self._ids) + len(prefix) + 1} tokens a --max-model-len that has them"
                ) from error
            (top,) = choice["logprobs"]["top_logprobs"]
            order = sorted(((_id(key), p) for key, p in top.items()), key=lambda x: (-x[1], x[0]))
            # Tokens as likely as the last one may be missing, and have lower ids.
            if wanted == self.vocab_size or order[n - 1][1] > order[-1][1]:
                return order
            wanted = min(2 * wanted, self.vocab_size)

    def _forced(self, prefix: Tokens, stop) -> tuple[float, ...]:
        known = [self._known.get(prefix[: i + 1]) for i in range(len(prefix))]
        if None in known:
            fields = {"max_tokens": 1, "temperature": 0, "logprobs": 0, "prompt_logprobs": 0}
            (choice,) = self._ask(prefix, fields, stop)
            given = choice["prompt_logprobs"][-len(prefix) :]
            known = [at[str(token)]["logprob"] for at, token in zip(given, prefix, strict=True)]
        return tuple(known)

    def _ask(self, prefix: Tokens, fields: dict, stop) -> list[dict]:
        asked = {**_PLAIN, "prompt": [*self._ids, *map(int, prefix)], **fields}
        read = partial(_choices, self._engine, fields)
        return self._engine.endpoint.post("completions", asked, read, stop)


def _choices(engine: Engine, fields: dict, answer) -> list[dict]:
    if answer["system_fingerprint"] != engine.fingerprint:
        raise EndpointError(
            f"{engine.endpoint.base_url} is now {answer['system_fingerprint']!r}, it was "
            f"{engine.fingerprint!r}: another server has taken its place; connect again"
        )
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if len(choices) != fields.get("n", 1):
        raise ValueError("another number of completions")
    for choice in choices:
        if not all(map(math.isfinite, _tokens(choice)[1])):
            raise ValueError("a log-probability that is not finite")
    return choices


def _tokens(choice: dict) -> tuple[Tokens, tuple[float, ...]]:
    ids, log_p = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if [_id(token) for token in choice["logprobs"]["tokens"]] != ids or len(log_p) != len(ids):
        raise ValueError("log-probabilities of other tokens")
    return tuple(ids), tuple(log_p)


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _seed(seed: int, prefix: Tokens) -> int:
    """Below 2**62: the server adds a draw's number to it. One for all would couple the prefixes."""
    digest = hashlib.sha256(f"{seed}/{prefix}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 2

"""A second backend of `generation`: continuations by a server's completions API.

The API is that of OpenAI with token ids in and out, as vLLM has it. vLLM pins its own torch and
transformers, so it runs in an environment of its own. Knows no sweep and no file.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calib_utils.errors import EndpointError, LogProbabilityError, RefusedRequestError
from calib_utils.models.endpoint import Endpoint
from calib_utils.models.generation import Completion, Continuations, Tokens, vocabulary_size
from calib_utils.models.loading import Model, load_model

KNOWN_TEXT = "The three primary colours are red, yellow and"
# Nats a token. float32 in two engines is apart by rounding (5e-5 measured), bfloat16 by 0.19, and
# by up to 0.4 between two ways of batching.
EXACT, TOLERANCE = 1e-3, 0.5
_MARGIN = 16  # log-probabilities asked for beyond the last rank, so that ties across it show
_MORE = "start vLLM with --max-logprobs -1 and a --max-model-len for the longest text"
# Each is sent, since a server fills what is left open from the model's own settings.
_PLAIN = {
    **{"temperature": 0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
    **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    **{"ignore_eos": True, "logprobs": 1, "return_tokens_as_token_ids": True},
}


@dataclass(frozen=True)
class Engine:
    """A server and the model that it was found to serve; `connect` makes one."""

    model: Model
    endpoint: Endpoint
    version: str
    apart: float | None = None  # most nats from float32 here, on a known text; None: not checked

    def continuations(self, model: Model, prompt_ids: Sequence[int], batch_size=None):
        """In place of `Continuations`; the endpoint's `concurrency` is the batch."""
        return ServedContinuations(self, prompt_ids)


def serve_command(model: Model | str, port: int = 8000) -> list[str]:
    """The command, in vLLM's environment, of a server that `connect` accepts for this model."""
    model = load_model(model)
    settings = ["--served-model-name", model.key, "--dtype", model.dtype, "--max-logprobs", "-1"]
    # A seeded draw whose prompt is read in parts ends a server on CPUs ("CPU Generator does not use
    # offset", 0.32); the prompts of sweeps are short, so reading them whole costs nothing.
    place = ["--no-enable-chunked-prefill", "--host", "127.0.0.1", "--port", str(port)]
    return ["vllm", "serve", str(model.folder), *settings, *place]


def connect(
    model: Model | str, base_url: str, name: str | None = None, *, check: bool = True, **settings
) -> Engine:
    """A server, asked whether it computes this model in this model's dtype.

    Args:
        model: with the dtype that the server computes in, `load_model(name, dtype="bfloat16")`.
        name: under which the server knows the model; the model's key by default.
        check: compares a known text with a float32 forward pass here. Without, as for models too
            large for this machine, weights and dtype are taken on trust, as is recorded.
        settings: of `Endpoint`, as is `base_url`.

    Raises:
        EndpointError: the server cannot be used.
        LogProbabilityError: it gives none, or those of other weights, precision or tokens.
    """
    model = load_model(model)
    settings = {"timeout": 600.0, "concurrency": 64, **settings}
    endpoint = Endpoint(base_url, name or model.key, **settings)
    ((_, version),) = _answers(endpoint, [{"prompt": KNOWN_TEXT, "max_tokens": 1}], _version)
    engine, serve = Engine(model, endpoint, version), " ".join(serve_command(model))
    ids = tuple(model.tokenizer(KNOWN_TEXT)["input_ids"])
    tree = ServedContinuations(engine, ids)
    try:
        (scored,) = ServedContinuations(engine, ids[:1]).complete([ids[1:]], 1)
        # A token has one probability, drawn at whatever temperature or given.
        (drawn,) = tree.complete([()], 24, n_samples=1, temperature=1.5)
        (given,) = tree.complete([drawn.token_ids], 1)
    except EndpointError as error:
        raise LogProbabilityError(
            f"{base_url} does not score the tokens of {model.name} ({error}): start it with {serve}"
            " (a judge, which reads text only, may use it as it is)"
        ) from error
    float32, apart = model.dtype == "float32", None
    repeated = _apart(drawn.log_p, given.prefix_log_p)
    faults = [(repeated > (EXACT if float32 else TOLERANCE), "scores its own draws anew", repeated)]
    if check:
        (here,) = Continuations(replace(model, dtype="float32"), ids[:1]).complete([ids[1:]], 1)
        apart = _apart(here.prefix_log_p, scored.prefix_log_p)
        faults.insert(0, (apart > TOLERANCE, f"serves another model than {model.name}", apart))
        faults.append(((apart <= EXACT) != float32, f"does not compute in {model.dtype}", apart))
    for is_so, fault, nats in faults:
        if is_so:
            raise LogProbabilityError(
                f"{base_url} {fault}: a log-probability differs by {nats:.5f} nats; start it with "
                f"{serve}, or load the model with the dtype that it computes in"
            )
    return replace(engine, apart=apart)


class ServedContinuations(Continuations):
    """`Continuations` by a server: same records in the same order, drawn with its own numbers."""

    def __init__(self, engine: Engine, prompt_ids: Sequence[int]):
        self._endpoint, self._ids = engine.endpoint, tuple(map(int, prompt_ids))
        self.vocab_size = vocabulary_size(engine.model)

    def _candidates(self, prefixes: Sequence[Tokens], ranks: Sequence[int]) -> np.ndarray:
        found = np.empty((len(prefixes), len(ranks)), dtype=np.int64)
        places, n = list(range(len(prefixes))), max(ranks) + 1
        wanted = n + _MARGIN
        while places:
            wanted, tied = min(wanted, self.vocab_size), []
            requests = [(prefixes[i], {"max_tokens": 1, "logprobs": wanted}) for i in places]
            for at, ((_, _, (top,)),) in self._ask(requests):
                order = sorted((-log_p, _id(token)) for token, log_p in top.items())
                if len(order) < n:
                    raise EndpointError(f"{len(order)} log-probabilities in place of {n}: {_MORE}")
                # Tokens as likely as the last one may be missing, and have lower ids.
                if wanted < self.vocab_size and order[n - 1][0] == order[-1][0]:
                    tied.append(places[at])
                found[places[at]] = [order[rank][1] for rank in ranks]
            places, wanted = tied, 2 * wanted
        return found

    def _complete(self, prefixes, max_tokens, ends, n_samples, temperature, seed, advance):
        # An echo has the log-probabilities of what was forced.
        fields = {"echo": True, "n": max(1, n_samples), "stop_token_ids": sorted(ends)}
        fields["temperature"] = temperature if n_samples else 0
        requests = []
        for prefix in prefixes:
            length = 1 if ends & {*prefix[-1:]} else max_tokens
            requests.append((prefix, {**fields, "max_tokens": length, "seed": _seed(seed, prefix)}))
        done = {}
        for at, choices in self._ask(requests):
            if len(choices) != fields["n"]:
                raise EndpointError(f"{len(choices)} completions in place of {fields['n']}")
            done[at] = [self._completion(prefixes[at], ends, i, *c) for i, c in enumerate(choices)]
            advance(len(choices))
        return [completion for at in range(len(prefixes)) for completion in done[at]]

    def _completion(self, prefix: Tokens, ends: set[int], sample: int, ids, log_p, _) -> Completion:
        start, given = len(self._ids) + len(prefix), (*self._ids, *prefix)
        if ids[:start] != given:
            raise EndpointError(f"{self._endpoint.base_url} scored other tokens than it was given")
        closing = range(start - bool(prefix), len(ids))  # a prefix may end the text
        stop = next((i + 1 for i in closing if ids[i] in ends), None)
        forced, added = log_p[len(self._ids) : start], slice(start, stop)
        return Completion(prefix, forced, sample, ids[added], log_p[added], stop is not None)

    def _ask(self, requests: Iterable[tuple[Tokens, dict]]) -> Iterator[tuple[int, list[tuple]]]:
        """Choices as they arrive: (position, [(token ids, log-probabilities, the top ones)])."""
        full = [{**_PLAIN, "prompt": [*self._ids, *map(int, p)], **more} for p, more in requests]
        return _answers(self._endpoint, full, _choices)


def _answers(endpoint: Endpoint, requests: Iterable[Mapping], read: Callable):
    for position, found in endpoint.answers("completions", requests, read):
        if isinstance(found, RefusedRequestError):
            raise EndpointError(f"{found}: {_MORE}") from found
        yield position, found


def _version(answer: dict) -> str:
    """Engine and version; what follows in vLLM's fingerprint is a hash of its settings."""
    return " ".join(str(answer["choices"] and answer.get("system_fingerprint")).split("-")[:2])


def _choices(answer: dict) -> list[tuple]:
    choices = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        found = choice["logprobs"]
        ids, (first, *others) = tuple(map(_id, found["tokens"])), found["token_logprobs"]
        log_p = (first or 0.0, *others)  # the first of a prompt has none
        if len(ids) != len(log_p) or not all(-math.inf < p < 1e-6 for p in log_p):
            raise ValueError("log-probabilities that are none")
        choices.append((ids, log_p, found["top_logprobs"]))
    return choices


def _id(token: str) -> int:
    return int(token.split("token_id:")[1])  # a server that writes the token's text is refused


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())


def _seed(seed: int, prefix: Tokens) -> int:
    """Below 2**62: the server adds a draw's number to it. One for all would couple the prefixes."""
    digest = hashlib.sha256(f"{seed}/{prefix}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 2

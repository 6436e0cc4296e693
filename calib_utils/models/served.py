"""Models behind OpenAI-compatible servers: chats, and a second backend of `generation`.

Knows requests, keys and errors. Knows no rubric, sweep or file. The key is read from an environment
variable, is sent to that server alone, and is removed from what the server sends back.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from urllib.parse import urlsplit

import numpy as np

from calib_utils import paths
from calib_utils.errors import EndpointError, LogProbabilityError, RefusedRequestError
from calib_utils.models import generation
from calib_utils.models.generation import Completion, Continuations, Tokens, vocabulary_size
from calib_utils.models.loading import Model, load_model

KEY_VARIABLE = "CALIB_UTILS_JUDGE_KEY"
_REFUSED = (400, 413, 422)  # the request is at fault, as a text longer than the model's context
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Reply:
    """What a model answered; `ended` is False where its token limit cut it off."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server (vLLM, `transformers serve`, a hosted one).

    Args:
        base_url: up to and including the version, such as `http://localhost:8000/v1`.
        model: the name under which the server knows the model.
        key_variable: environment variable of the key, which may be unset; None sends no key.
        max_tokens: limit of a reply; a thinking model needs thousands.
        options: further fields of every chat, such as `{"temperature": 0.6}` (0 by default); None
            leaves a field out, as in `{"max_tokens": None, "max_completion_tokens": 900}`.
        timeout: seconds of silence of an attempt; all together get `attempts` times as long.
        attempts: how often a request is sent when the server is busy, failing or slow.
        concurrency: requests under way at once.

    Raises:
        EndpointError: a URL with a password or query, a key instead of its variable's name.
    """

    base_url: str
    model: str
    key_variable: str | None = KEY_VARIABLE
    max_tokens: int = 2048
    options: Mapping = field(default_factory=dict)
    timeout: float = 120.0
    attempts: int = 6
    concurrency: int = 4

    def __post_init__(self):
        url = urlsplit(self.base_url)
        # No message repeats what it refuses: it may be a secret.
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
            raise EndpointError("base_url must be http(s)://host[:port]/path without a password")
        if url.query or url.fragment:
            raise EndpointError("base_url must have no query: a key belongs in the environment")
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable or KEY_VARIABLE):
            raise EndpointError(
                "key_variable must be the name of an environment variable (capitals, digits, _), "
                f"such as {KEY_VARIABLE}, not the key"
            )
        for name in ("max_tokens", "attempts", "concurrency"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise EndpointError(f"{name}={getattr(self, name)!r}: must be an integer above 0")
        self._check_key()

    def _check_key(self) -> None:
        """Again before each run: the key may be set after the endpoint was made."""
        url, key = urlsplit(self.base_url), self._key()
        if not key:
            return
        if not re.fullmatch(r"[!#-\[\]-~]+", key):
            raise EndpointError(f"{self.key_variable} holds a character that no key has")
        if key in json.dumps(self.identity):
            raise EndpointError(f"an argument repeats the key that {self.key_variable} holds")
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise EndpointError(
                f"{self.key_variable} is set, but {url.hostname} is asked without encryption: "
                "use https, or key_variable=None to send no key"
            )

    @property
    def identity(self) -> dict:
        """What an answer depends on, without the key."""
        found = {"base_url": self.base_url.rstrip("/"), "model": self.model}
        return {**found, "max_tokens": self.max_tokens, "options": dict(self.options)}

    def replies(self, messages: Iterable[str]) -> Iterator[tuple[int, Reply | RefusedRequestError]]:
        """Answers to single user messages, as they arrive: (position, reply); as `answers`."""
        common = {"max_tokens": self.max_tokens, "temperature": 0, **self.options}
        common = {name: value for name, value in common.items() if value is not None}
        chats = ({"messages": [{"role": "user", "content": text}], **common} for text in messages)
        return self.answers("chat/completions", chats, self._reply)

    def answers(
        self, path: str, requests: Iterable[Mapping], read: Callable
    ) -> Iterator[tuple[int, object]]:
        """Answers to any requests, as they arrive: (position, `read` of its JSON or a refusal).

        `read` raises LookupError, TypeError or ValueError where the JSON is no such answer.

        Raises:
            EndpointError: the server cannot be used; requests not yet answered are dropped.
        """
        client, todo, running = self._client(), iter(enumerate(requests)), {}
        from anyio.from_thread import start_blocking_portal  # openai depends on it

        with start_blocking_portal() as portal:
            try:
                while True:
                    for position, fields in islice(todo, self.concurrency - len(running)):
                        asked = portal.start_task_soon(self._answer, client, path, fields, read)
                        running[asked] = position
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(done), done.result()
            finally:
                for asked in running:
                    asked.cancel()
                portal.call(client.close)

    async def _answer(self, client, path: str, fields: Mapping, read: Callable):
        import anyio
        import openai

        body = {"model": self.model, **fields}
        # "from None": the cause's frames hold the request's headers.
        try:
            with anyio.fail_after(self.attempts * self.timeout):
                answer = await client.post(f"/{path}", body=body, cast_to=object)
        except openai.APIStatusError as error:
            if error.status_code not in _REFUSED:
                raise EndpointError(self._explained(error)) from None
            return RefusedRequestError(self._explained(error))
        except (openai.APIConnectionError, TimeoutError) as error:
            raise EndpointError(
                f"{self.base_url} gave no answer in {self.attempts} attempts of "
                f"{self.timeout:g} s ({self._clean(error)}). Is the server up, and does it serve "
                f"{self.model!r}?"
            ) from None
        except (ValueError, RecursionError):
            answer = None
        try:
            return read(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise EndpointError(
                f"{self.base_url} answers {path} in another form ({type(error).__name__}): check "
                "that base_url leads to an OpenAI-compatible server, and run it again"
            ) from None

    def _client(self):
        self._check_key()
        try:
            import openai
        except ImportError:
            remedy = "pip install 'calib-utils[judge]'"
            raise EndpointError(f"asking a server needs the package openai: {remedy}") from None
        # A redirect would carry the key to another place; a proxy has no way to this machine.
        direct = urlsplit(self.base_url).hostname in _LOOPBACK
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not direct)
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",  # else the library looks for another in the environment
            timeout=self.timeout,
            max_retries=self.attempts - 1,
            http_client=http,
        )

    def _reply(self, answer) -> Reply:
        choice = answer["choices"][0]
        # null where a thinking model was cut off before its answer.
        text = choice["message"]["content"] or ""
        if isinstance(text, list):  # parts, of which thinking is another kind
            texts = (p if isinstance(p, str) else p["type"] == "text" and p["text"] for p in text)
            text = "".join(filter(None, texts))
        if not isinstance(text, str):
            raise TypeError("content that is no text")
        return Reply(self._without_key(text), choice.get("finish_reason") != "length")

    def _explained(self, error) -> str:
        remedy = {
            401: f"set the key in the environment variable {self.key_variable}",
            403: f"check what the key in {self.key_variable} may do",
            404: f"check base_url (it ends in /v1 as a rule) and the model's name {self.model!r}",
            **dict.fromkeys(_REFUSED, "change the request; in options, None leaves a field out"),
            **dict.fromkeys(range(300, 400), "redirects are not followed, check base_url"),
        }.get(error.status_code, f"see whether the server is well ({self.attempts} attempts)")
        answer = self._clean(error.body)
        return f"{self.base_url} answered HTTP {error.status_code} ({answer}): {remedy}"

    def _key(self) -> str | None:
        return paths.secret(self.key_variable) if self.key_variable else None

    def _without_key(self, text: str) -> str:
        """The key goes however it is spelled: a reply may hold it in escapes, decoded later."""
        letters = ((re.escape(letter), f"u{ord(letter):04x}") for letter in self._key() or "")
        pattern = "".join(rf"(?:\\*{plain}|\\+(?i:{escaped}))" for plain, escaped in letters)
        return re.sub(pattern, "[key]", text) if pattern else text

    def _clean(self, text) -> str:
        return " ".join(self._without_key(str(text)).split())[:300]


# The second backend of `generation`: the completions API of OpenAI, with token ids in and out as
# vLLM has it. vLLM pins its own torch and transformers, so it runs in an environment of its own.

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
    endpoint = Endpoint(
        base_url, name or model.key, **{"timeout": 600.0, "concurrency": 64, **settings}
    )
    asked = {"prompt": KNOWN_TEXT, "max_tokens": 1}
    ((_, version),) = endpoint.answers("completions", [asked], _version)
    if isinstance(version, RefusedRequestError):
        raise version
    engine, serve = Engine(model, endpoint, version), " ".join(serve_command(model))
    ids = tuple(model.tokenizer(KNOWN_TEXT)["input_ids"])
    tree, known = ServedContinuations(engine, ids), [ids[1:]]
    try:
        (scored,) = ServedContinuations(engine, ids[:1]).complete(known, 1)
        # A token has one probability, drawn at whatever temperature or given.
        (drawn,) = tree.complete([()], 24, n_samples=1, temperature=1.5)
        (given,) = tree.complete([drawn.token_ids], 1)
    except EndpointError as error:
        raise LogProbabilityError(
            f"{base_url} does not score the tokens of {model.name} ({error}): start it with {serve}"
            " (a judge, which reads text only, may use it as it is)"
        ) from error
    float32, apart = model.dtype == "float32", None
    repeated = float(np.abs(np.subtract(drawn.log_p, given.prefix_log_p)).max())
    faults = [(repeated > (EXACT if float32 else TOLERANCE), "scores its own draws anew", repeated)]
    if check:
        (here,) = generation.complete(replace(model, dtype="float32"), ids[:1], known, 1)
        apart = float(np.abs(np.subtract(here.prefix_log_p, scored.prefix_log_p)).max())
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
            done[at] = [self._completion(prefixes[at], ends, i, *c) for i, c in enumerate(choices)]
            if len(choices) != fields["n"]:
                raise EndpointError(f"{len(choices)} completions in place of {fields['n']}")
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
        for position, choices in self._endpoint.answers("completions", full, _choices):
            if isinstance(choices, RefusedRequestError):
                raise EndpointError(f"{choices}: {_MORE}") from choices
            yield position, choices


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


def _seed(seed: int, prefix: Tokens) -> int:
    """Below 2**62: the server adds a draw's number to it. One for all would couple the prefixes."""
    digest = hashlib.sha256(f"{seed}/{prefix}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 2

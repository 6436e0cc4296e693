"""A model behind an OpenAI-compatible server: requests, their answers, and the key.

The key is read from an environment variable, is sent to that server alone, and is removed from what
the server sends back. Knows no model of this process, no rubric and no file.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import urlsplit

from calib_utils import paths
from calib_utils.errors import EndpointError, RefusedRequestError

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
        self._checked_key()

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

        # "from None": the cause's frames hold the request's headers.
        try:
            with anyio.fail_after(self.attempts * self.timeout):
                body = {"model": self.model, **fields}
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
        key = self._checked_key()  # again: it may be set after the endpoint was made
        try:
            import openai
        except ImportError:
            remedy = "pip install 'calib-utils[judge]'"
            raise EndpointError(f"asking a server needs the package openai: {remedy}") from None
        # A redirect would carry the key to another place; a proxy has no way to this machine.
        direct = urlsplit(self.base_url).hostname in _LOOPBACK
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=key or "none",  # else the library looks for another in the environment
            timeout=self.timeout,
            max_retries=self.attempts - 1,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, trust_env=not direct
            ),
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

    def _checked_key(self) -> str | None:
        url, key = urlsplit(self.base_url), self._key()
        if key and not re.fullmatch(r"[!#-\[\]-~]+", key):
            raise EndpointError(f"{self.key_variable} holds a character that no key has")
        if key and key in json.dumps(self.identity):
            raise EndpointError(f"an argument repeats the key that {self.key_variable} holds")
        if key and url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise EndpointError(
                f"{self.key_variable} is set, but {url.hostname} is asked without encryption: "
                "use https, or key_variable=None to send no key"
            )
        return key

    def _key(self) -> str | None:
        return paths.secret(self.key_variable) if self.key_variable else None

    def _without_key(self, text: str) -> str:
        """The key goes however it is spelled: a reply may hold it in escapes, decoded later."""
        letters = ((re.escape(letter), f"u{ord(letter):04x}") for letter in self._key() or "")
        pattern = "".join(rf"(?:\\*{plain}|\\+(?i:{escaped}))" for plain, escaped in letters)
        return re.sub(pattern, "[key]", text) if pattern else text

    def _clean(self, text) -> str:
        return " ".join(self._without_key(str(text)).split())[:300]

"""Models behind OpenAI-compatible servers, asked many things at once through the `openai` library.

Knows requests, keys and errors. Knows no rubric and no token. The key is read from an environment
variable for each round of requests, is sent to that server alone, and is removed from what the
server sends back.
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
# The request itself is at fault, for example a text longer than the model's context.
_REFUSED = {400, 413, 422}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SHOWN = 300  # characters of a server's error message


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
        key_variable: name of the environment variable that holds the key, if it is set; None
            sends no key.
        max_tokens: limit of a reply; a thinking model needs thousands.
        options: further fields of every chat, such as `{"temperature": 0.6}` or
            `{"chat_template_kwargs": {"enable_thinking": True}}`. Temperature is 0 by default.
        timeout: seconds of silence after which an attempt is given up. All attempts together get
            `attempts` times as long, however slowly the server talks.
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
        if not self._key():
            return
        if not re.fullmatch(r"[!#-\[\]-~]+", self._key()):
            raise EndpointError(f"{self.key_variable} holds a character that no key has")
        if self._key() in json.dumps(self.identity):
            raise EndpointError(f"an argument repeats the key that {self.key_variable} holds")
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise EndpointError(
                f"{self.key_variable} is set, but {url.hostname} is asked without encryption: "
                "use https, or key_variable=None to send no key"
            )

    @property
    def identity(self) -> dict:
        """What an answer depends on, without the key."""
        return {
            "base_url": self.base_url.rstrip("/"),
            "model": self.model,
            "max_tokens": self.max_tokens,
            "options": dict(self.options),
        }

    def replies(self, messages: Iterable[str]) -> Iterator[tuple[int, Reply | RefusedRequestError]]:
        """Answers to single user messages, as they arrive: (position, reply).

        Raises:
            EndpointError: the server cannot be used, or sends no chat completion.
        """
        common = {"max_tokens": self.max_tokens, "temperature": 0, **self.options}
        chats = ({"messages": [{"role": "user", "content": text}], **common} for text in messages)
        return self.answers("chat/completions", chats, self._reply)

    def answers(
        self, path: str, requests: Iterable[Mapping], read: Callable
    ) -> Iterator[tuple[int, object]]:
        """Answers to any requests, as they arrive: (position, `read` of its JSON or a refusal).

        Only `concurrency` requests are under way or waiting at a time, however many there are.

        Args:
            read: takes the decoded JSON; a LookupError, TypeError or ValueError from it means
                that this is not the kind of answer that was asked for.

        Raises:
            EndpointError: the server cannot be used; requests not yet answered are dropped.
        """
        client = self._client()
        from anyio.from_thread import start_blocking_portal  # openai depends on it

        todo, running = iter(enumerate(requests)), {}
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
        try:
            import openai
        except ImportError:
            raise EndpointError(
                "asking a server needs the package openai: pip install 'calib-utils[judge]'"
            ) from None
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
        if not isinstance(text, str):
            raise TypeError("content that is no string")
        return Reply(self._without_key(text), choice.get("finish_reason") != "length")

    def _explained(self, error) -> str:
        remedy = {
            401: f"set the key in the environment variable {self.key_variable}",
            403: f"check what the key in {self.key_variable} may do",
            404: f"check base_url (it ends in /v1 as a rule) and the model's name {self.model!r}",
            **dict.fromkeys(_REFUSED, "change the request"),
            **dict.fromkeys(range(300, 400), "redirects are not followed, check base_url"),
        }.get(error.status_code, f"see whether the server is well ({self.attempts} attempts)")
        answer = self._clean(error.body)
        return f"{self.base_url} answered HTTP {error.status_code} ({answer}): {remedy}"

    def _key(self) -> str | None:
        return paths.secret(self.key_variable) if self.key_variable else None

    def _without_key(self, text: str) -> str:
        return text.replace(self._key(), "[key]") if self._key() else text

    def _clean(self, text) -> str:
        return " ".join(self._without_key(str(text)).split())[:_SHOWN]

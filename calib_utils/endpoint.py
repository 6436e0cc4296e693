"""Chat over HTTP with any OpenAI-compatible server: requests sent, retried, bounded and checked.

Knows HTTP and JSON. Knows no rubric. The key is read from an environment variable at each request,
is sent to that server alone, and is removed from whatever the server sends back.
"""

import http.client
import json
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from calib_utils import deadlines, paths
from calib_utils.errors import EndpointError, RefusedRequestError

KEY_VARIABLE = "CALIB_UTILS_JUDGE_KEY"
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
# The request itself is at fault, for example a text longer than the model's context.
_REFUSED = {400, 413, 422}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_CHUNK = 65_536
_SHOWN = 300  # characters of a server's error message


@dataclass(frozen=True)
class Reply:
    """What a model answered; `ended` is False where its token limit cut it off."""

    text: str
    ended: bool


class _Transient(Exception):
    """Worth asking again; holds the problem and the wait that the server asked for."""

    def __init__(self, problem: str, retry_after: float | None = None):
        super().__init__(problem)
        self.retry_after = retry_after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place."""

    def redirect_request(self, *args, **kwargs):
        return None


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server (vLLM, `transformers serve`, a hosted one).

    Args:
        base_url: up to and including the version, such as `http://localhost:8000/v1`.
        model: the name under which the server knows the model.
        key_variable: name of the environment variable that holds the key, if it is set; None
            sends no key.
        max_tokens: limit of a reply; a thinking model needs thousands.
        options: further fields of every request, such as `{"temperature": 0.6}` or
            `{"chat_template_kwargs": {"enable_thinking": True}}`. Temperature is 0 by default.
        timeout: seconds for a whole reply.
        attempts: how often a request is sent when the server is busy, failing or slow.
        max_wait: seconds between two attempts at most, whatever the server asks for.
        max_bytes: a longer reply is refused.
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
    max_wait: float = 60.0
    max_bytes: int = 1 << 20
    concurrency: int = 4

    def __post_init__(self):
        url = urlsplit(self.base_url)
        # Neither message repeats what it refuses: it may be a secret.
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
            raise EndpointError("base_url must be http(s)://host[:port]/path without a password")
        if url.query or url.fragment:
            raise EndpointError("base_url must have no query: a key belongs in the environment")
        if self.key_variable is not None and not re.fullmatch(
            "[A-Z_][A-Z0-9_]*", self.key_variable
        ):
            raise EndpointError(
                "key_variable must be the name of an environment variable (capitals, digits, _), "
                f"such as {KEY_VARIABLE}, not the key"
            )
        for name in ("max_tokens", "attempts", "max_bytes", "concurrency"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise EndpointError(f"{name}={getattr(self, name)!r}: must be an integer above 0")
        if self._key() and self._key() in json.dumps(self.identity):
            raise EndpointError(f"an argument repeats the key that {self.key_variable} holds")
        if self._key() and url.scheme == "http" and not self._on_loopback():
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

    def replies(self, messages: Sequence[str]) -> Iterator[tuple[int, Reply | RefusedRequestError]]:
        """Answers to single user messages, as they arrive: (position, reply).

        Only a few requests are under way or waiting at a time, however many messages there are.

        Raises:
            EndpointError: the server cannot be used; requests not yet sent are dropped.
        """
        stop = threading.Event()
        todo, running = iter(enumerate(messages)), {}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            while True:
                while len(running) < self.concurrency:
                    position, message = next(todo, (None, None))
                    if position is None:
                        break
                    running[pool.submit(self._chat_or_refusal, message, stop)] = position
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _chat_or_refusal(self, message: str, stop: threading.Event):
        try:
            return self.chat(message, stop)
        except RefusedRequestError as refusal:
            return refusal

    def chat(self, message: str, stop: threading.Event | None = None) -> Reply:
        """The answer to one user message.

        Raises:
            RefusedRequestError: the server refuses this message, or its answer is too large.
            EndpointError: the server cannot be used, or sends no chat completion.
        """
        request = {
            "messages": [{"role": "user", "content": message}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            **self.options,
        }
        return self.post("chat/completions", request, _chat_reply, stop)

    def post(self, path: str, fields: Mapping, read, stop: threading.Event | None = None):
        """One request, repeated while that may help: `read` of the answer's JSON.

        Args:
            read: takes the decoded JSON; a LookupError, TypeError or ValueError from it means
                that this is not the kind of answer asked for.
        """
        stop = stop or threading.Event()
        body = json.dumps({"model": self.model, "stream": False, **fields}).encode()
        for attempt in range(self.attempts):
            try:
                answer = self._once(path, body)
                try:
                    return read(answer)
                except (LookupError, TypeError, ValueError) as error:
                    raise _Transient(
                        f"an answer of another form ({type(error).__name__})"
                    ) from None
            except _Transient as failure:
                problem, asked = str(failure), failure.retry_after
            if attempt + 1 < self.attempts:
                pause = random.uniform(0.5, 1) * 2**attempt if asked is None else asked
                if stop.wait(min(pause, self.max_wait)):
                    break
        raise EndpointError(
            f"{self.base_url} gave no answer in {attempt + 1} attempts, at last: {problem}. Is the "
            f"server up, and does it serve {self.model!r}?"
        )

    def _once(self, path: str, body: bytes):
        request = urllib.request.Request(f"{self.base_url.rstrip('/')}/{path}", body)
        request.add_header("Content-Type", "application/json")
        self._authorise(request)
        watch = deadlines.CutOff(self.timeout)
        handlers = [_NoRedirect, watch]
        if self._on_loopback():  # never through a proxy
            handlers.append(urllib.request.ProxyHandler({}))
        # "from None": the cause's frames hold the request's headers.
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=self.timeout) as got:
                content = self._bounded(got, watch)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status_error(error) from None
        except RefusedRequestError:  # an OSError too
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            problem = f"{type(error).__name__}: {reason}"
            if watch.over or isinstance(reason, TimeoutError):
                problem = f"no whole answer in {self.timeout:g} s"
            raise _Transient(self._clean(problem)) from None
        finally:
            watch.cancel()
        try:
            # Written anew first, so that no escape can hide the key.
            answer = json.dumps(json.loads(content.decode("utf-8")), ensure_ascii=False)
            return json.loads(self._without_key(answer))
        except (ValueError, RecursionError):
            raise _Transient(f"{len(content)} bytes that are not JSON in UTF-8") from None

    def _bounded(self, response, watch: deadlines.CutOff) -> bytes:
        content = bytearray()
        while chunk := response.read1(_CHUNK):
            content += chunk
            if len(content) > self.max_bytes:
                raise RefusedRequestError(
                    f"{self.base_url} sent more than {self.max_bytes:,} bytes: lower max_tokens, "
                    "or raise max_bytes"
                )
        if watch.over:
            raise TimeoutError
        return bytes(content)

    def _status_error(self, error: urllib.error.HTTPError) -> Exception:
        try:
            detail = error.read(_CHUNK).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            detail = ""
        problem = self._clean(f"HTTP {error.code} {error.reason}: {detail}")
        if error.code in _RETRIED:
            return _Transient(problem, deadlines.retry_after(error.headers.get("Retry-After")))
        if error.code in _REFUSED:
            return RefusedRequestError(f"{self.base_url} refused the request: {problem}")
        remedy = {
            401: f"set the key in the environment variable {self.key_variable}",
            403: f"check what the key in {self.key_variable} may do",
            404: f"check base_url (it ends in /v1 as a rule) and the model's name {self.model!r}",
        }.get(error.code, "redirects are not followed; check base_url")
        return EndpointError(f"{self.base_url} answered {problem}; {remedy}")

    def _on_loopback(self) -> bool:
        return urlsplit(self.base_url).hostname in _LOOPBACK

    def _key(self) -> str | None:
        value = paths.secret(self.key_variable) if self.key_variable else None
        if value is not None and not re.fullmatch(r"[!#-\[\]-~]+", value):
            raise EndpointError(f"{self.key_variable} holds a character that no key has")
        return value

    def _authorise(self, request: urllib.request.Request) -> None:
        if self._key():
            request.add_header("Authorization", f"Bearer {self._key()}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key(), "[key]") if self._key() else text

    def _clean(self, text: str) -> str:
        return " ".join(self._without_key(text).split())[:_SHOWN]


def _chat_reply(answer) -> Reply:
    choice = answer["choices"][0]
    # null where a thinking model was cut off before its answer.
    text = choice["message"]["content"] or ""
    if not isinstance(text, str):
        raise TypeError("content that is no string")
    return Reply(text, choice.get("finish_reason") != "length")

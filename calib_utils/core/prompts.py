"""From a task to what the model sees: prompt ids, answers as token sequences, end tokens.

Knows tokenizers of Hugging Face, what each token writes (of byte-level BPE and SentencePiece), and
the policies for what counts as an answer. Knows nothing of weights or probabilities.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import NamedTuple

from calib_utils.core.tasks import ENDS, Task
from calib_utils.core.tries import Sequences, Trie, build_trie
from calib_utils.errors import InvalidTaskError, ModelFormatError, TokenizationError

TOKENIZATIONS = ("canonical", "all")
SURFACES = ("exact", "any_space", "any_case")
MAX_SEGMENTATIONS = 20_000  # of one answer
# A number must not change overnight: chat templates that ask for the date are told this one.
_TODAY = datetime(2024, 7, 26)
# Variables of chat templates, which ignore what they do not know.
_VARIABLES = {"enable_thinking": False, "thinking": False, "tools": None, "documents": None}
_VARIABLES |= {"date_string": _TODAY.strftime("%d %b %Y")}
_REPLY = "0123456789 answer 9876543210"  # shows what a template writes around a reply
_THOUGHT = re.compile(r"(?i)[<\[]\|?/?[\w:]*(?:think|thought|reason)[\w:]*\|?[>\]]")
_EMPTY_THOUGHT = re.compile(r"(?i)<(\w*think\w*)>\s*</\1>\s*\Z")
_TAIL = 8  # tokens of the prompt before an answer, for decoding it in context
_AT_ONCE = 1024  # answers to encode in one call


@dataclass(frozen=True)
class Policies:
    """What counts as an answer.

    Args:
        end: `eos` closes an answer with the end token; `line` with it or any token whose text
            begins with a line break; `none` counts an answer as soon as it is written out.
        tokenizations: `canonical` takes the tokenizer's own segmentation; `all` takes every one.
        surface: `exact` takes the answer as listed; `any_space` with and without one leading
            space; `any_case` also in lower, upper and title case.

    Raises:
        InvalidTaskError: a policy that does not exist.
    """

    end: str = "eos"
    tokenizations: str = "canonical"
    surface: str = "exact"

    def __post_init__(self):
        known = {"end": ENDS, "tokenizations": TOKENIZATIONS, "surface": SURFACES}
        for field, value in vars(self).items():
            if value not in (these := known[field]):
                raise InvalidTaskError(f"{field}={value!r} does not exist: choose from {these}")

    @property
    def suffix(self) -> str:
        """What distinguishes these from the defaults, for a file name; empty for the defaults."""
        changed = ((k, v) for k, v in vars(self).items() if v != getattr(Policies, k))
        return "".join(f"@{name}={value}" for name, value in changed)


@dataclass(frozen=True)
class Prompt:
    """A task as one model sees it.

    `text` and `ids` are the prompt; `lead` is what an answer starts with (see `render`); `trie`
    holds every token sequence that counts as an answer.
    """

    text: str
    ids: tuple[int, ...]
    lead: str
    is_chat: bool
    end_ids: tuple[int, ...]
    sequences: Sequences
    trie: Trie


def render(tokenizer, task: Task, policies: Policies | None = None) -> Prompt:
    """The prompt ids and answer token sequences of a task for one tokenizer.

    With a chat template the prompt is one user message and the generation prompt, and an answer
    starts with whatever the template writes before a reply. Without one it is the raw text after
    the special tokens that the tokenizer puts first; an answer then starts with one space, or with
    nothing after a line break. A raw prompt that ends in other white space is refused, and so are
    special tokens, spelled out, in a prompt or an answer, and a second BOS.

    Raises:
        TokenizationError: a prompt or an answer as above, an answer whose tokens do not follow the
            prompt's, or one that the tokenizer writes differently.
        ModelFormatError: the chat template fails, loses the question, opens a thought or writes
            special tokens before a reply; or there is no end token.
    """
    policies = policies or Policies()
    is_chat = bool(tokenizer.chat_template)
    if task.system and not is_chat:
        raise InvalidTaskError(
            f"task {task.name!r} has a system message, and this model is asked the raw prompt: put "
            "the message into the prompt"
        )
    asked = _chat(tokenizer, task.prompt, task.system) if is_chat else _raw(task.prompt)
    text, lead, closing = asked
    _require_plain(tokenizer, _plain_ids(tokenizer, task.system + task.prompt), "prompt")
    # A template writes its own special tokens; before a raw prompt go the tokenizer's. An end token
    # that a tokenizer appends on its own account never gets in.
    first = [] if is_chat else _put_first(tokenizer)
    prompt_ids = (*first, *_plain_ids(tokenizer, text))
    if prompt_ids[:2] == (tokenizer.bos_token_id,) * 2:
        raise ModelFormatError(
            f"the prompt begins with {tokenizer.bos_token!r} twice: remove it from the chat "
            "template or from what the tokenizer adds"
        )
    end_ids = _end_ids(tokenizer, policies.end, closing)
    forms = [
        (index, form)
        for index, words in enumerate(task.spellings())
        for form in _surfaces(lead, words, policies.surface)
    ]
    spelled: dict[tuple[int, ...], int] = {}
    written = _own_tokens(tokenizer, text, prompt_ids, [form for _, form in forms], end_ids)
    for (index, form), own in zip(forms, written, strict=True):
        every = policies.tokenizations == "all"
        for tokens in _segmentations(tokenizer, form, own) if every else [own]:
            other = spelled.setdefault(tokens, index)
            if other != index:
                raise TokenizationError(
                    f"answers {task.answers[other]!r} and {task.answers[index]!r} share the form "
                    f"{form!r}: remove one, or use surface='exact'"
                )
    sequences = Sequences(tuple(spelled), tuple(spelled.values()), end_ids, len(task.answers))
    return Prompt(text, prompt_ids, lead, is_chat, end_ids, sequences, build_trie(sequences))


def describe(tokenizer, task: Task, prompt: Prompt, policies: Policies, why: str) -> str:
    """A readable account of a rendered prompt, for people; `why` it is a chat or a base model's."""

    def quoted(ids):
        return " ".join(f"{tokenizer.decode([i])!r}:{i}" for i in ids)

    ends = quoted(prompt.end_ids[:3]) + (" ..." if len(prompt.end_ids) > 3 else "")
    kind = "chat template, one user message" if prompt.is_chat else "base model, raw prompt"
    return f"""task {task.name} as the model sees it ({kind}; {len(prompt.ids)} tokens):
{"-" * 72}
{prompt.text}
{"-" * 72}
seen so because  {why}
first tokens     {quoted(prompt.ids[:6])}
last tokens      {quoted(prompt.ids[-6:])}
answers          {len(task.answers)}, each starting with {prompt.lead!r} \
({len(prompt.sequences.symbols)} token sequences, {prompt.trie.n_nodes} nodes)
first answer     {task.answers[0]!r} = {quoted(prompt.sequences.symbols[0])}
end (end={policies.end!r})  {len(prompt.end_ids)} token(s): {ends}"""


class _Shown(NamedTuple):
    """A prompt's text, what is written between it and a reply, and what is written after one."""

    text: str
    lead: str
    closing: str = ""


def _raw(prompt: str) -> _Shown:
    if prompt[-1].isspace() and prompt[-1] != "\n":
        raise TokenizationError(
            f"the prompt ends in {prompt[-1]!r}, and a base model's answers start with a space: "
            "with both, every answer is improbable; remove the white space at its end"
        )
    return _Shown(prompt, "" if prompt[-1] == "\n" else " ")


def _chat(tokenizer, message: str, system: str = "") -> _Shown:
    """One user message in the tokenizer's chat template, with its generation prompt."""
    words, failed = message.strip(), None
    # Some templates take the parts of a content, and write nothing of one that is plain text.
    for content in (str, lambda text: [{"type": "text", "text": text}]):
        try:
            turns = {"system": content(system)} if system else {}
            turns["user"] = content(message)
            asked = _templated(tokenizer, True, **turns)
            answered = _templated(tokenizer, False, **turns, assistant=content(_REPLY))
            if words in asked and _REPLY in answered and system.strip() in asked:
                break
            lost = "question or the reply" if system.strip() in asked else "system message"
            failed = failed or _unfit(f"loses the {lost}", asked, answered)
        except ModelFormatError as error:
            failed = failed or error
    else:
        raise failed
    marks = _THOUGHT.findall(asked.rpartition(words)[2])
    # A thought that is opened and closed at once belongs to the generation prompt alone.
    head = asked if answered.startswith(asked) else _EMPTY_THOUGHT.sub("", asked)
    lead, found, closing = answered[len(head) :].partition(_REPLY)
    if marks and not re.search("(?i)/|end", marks[-1]):
        problem = f"opens a thought, {marks[-1]}, and has no switch for it"
    elif not answered.startswith(head) or not found:
        problem = "does not begin a reply as its generation prompt does"
    elif _THOUGHT.search(lead) or _control_ids(tokenizer).intersection(_plain_ids(tokenizer, lead)):
        problem = f"writes {lead!r} before a reply"
    else:
        return _Shown(asked, lead, closing)
    raise _unfit(problem, asked, answered)


def _unfit(problem: str, asked: str, answered: str) -> ModelFormatError:
    return ModelFormatError(
        f"the chat template {problem}: a question is rendered as {asked!r}, and with a reply as "
        f"{answered!r}; repair the template, or use chat=False to treat it as a base model"
    )


def _templated(tokenizer, asks: bool, **contents) -> str:
    turns = [{"role": role, "content": content} for role, content in contents.items()]
    variables = {**tokenizer.special_tokens_map, **_VARIABLES, "add_generation_prompt": asks}
    try:
        template = _pinned_template(tokenizer.get_chat_template())
        return template.render(messages=turns, **variables)
    except Exception as error:
        on = "a system and a" if "system" in contents else "a single"
        raise ModelFormatError(
            f"the tokenizer's chat template fails on {on} user message: {error}; repair the "
            "template, or use chat=False to treat it as a base model"
        ) from error


@lru_cache(maxsize=8)
def _pinned_template(text: str):
    """A chat template in the sandbox of transformers, with a clock that stands and without dice."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    sandbox = _compile_jinja_template(text).environment.overlay()
    # Dictionaries of its own, since transformers shares the others.
    sandbox.globals = {**sandbox.globals, "strftime_now": _TODAY.strftime}
    sandbox.filters = dict(sandbox.filters)
    del sandbox.globals["lipsum"], sandbox.filters["random"]
    return sandbox.from_string(text)


def _plain_ids(tokenizer, text: str | list[str]) -> list:
    """Token ids of a text, or of each of several."""
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False).input_ids


def _put_first(tokenizer) -> list[int]:
    """The special tokens, most often BOS, that the tokenizer puts before a text."""
    whole, bare = tokenizer("a").input_ids, _plain_ids(tokenizer, "a")
    starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _require_plain(tokenizer, ids, what: str) -> None:
    """Refuses special tokens, and those of the template, where only text is meant to be."""
    if found := _control_ids(tokenizer).intersection(ids):
        raise TokenizationError(
            f"the {what} contains {tokenizer.decode([min(found)])!r}, a special token of this "
            "tokenizer (or stands for characters that it does not know): write it differently"
        )


@lru_cache(maxsize=8)
def _control_ids(tokenizer) -> frozenset[int]:
    template = str(tokenizer.chat_template or "")
    return frozenset(
        i
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in template and not token.content.isspace())
    )


def _surfaces(lead: str, words: tuple[str, ...], surface: str) -> list[str]:
    if surface == "exact":
        return [lead + word for word in words]
    bare = lead.rstrip(" ")
    if surface == "any_case":
        words = [f for word in words for f in (word, word.lower(), word.upper(), word.title())]
    return list(dict.fromkeys(bare + space + word for word in words for space in ("", " ")))


def _own_tokens(
    tokenizer, text: str, prompt_ids: tuple[int, ...], forms: list[str], end_ids: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """The tokens with which the tokenizer writes each answer after the prompt."""
    asked, ends, tail = _plain_ids(tokenizer, text), frozenset(end_ids), prompt_ids[-_TAIL:]
    while "\ufffd" in (before := exact_text(tokenizer, tail)) and len(tail) > 1:
        tail = tail[1:]  # it began inside a character
    for some in (forms[start : start + _AT_ONCE] for start in range(0, len(forms), _AT_ONCE)):
        every = _plain_ids(tokenizer, [text + form for form in some])
        owned = [tuple(ids[len(asked) :]) for ids in every]
        texts = tokenizer.batch_decode(
            [tail + own for own in owned], clean_up_tokenization_spaces=False
        )
        for form, ids, own, both in zip(some, every, owned, texts, strict=True):
            if ids[: len(asked)] != asked or not own:
                raise TokenizationError(
                    f"answer {form!r} merges with the prompt, whose last tokens change: end the "
                    "prompt differently (for example without trailing white space)"
                )
            _require_plain(tokenizer, set(own) - ends, f"answer {form.strip()!r}")
            written = unicodedata.normalize("NFC", both[len(before) :])
            if written != unicodedata.normalize("NFC", form):
                remedy = "list it so"
                if written.strip() != form.strip():
                    form, written = form.strip(), written.strip()
                else:
                    remedy = "end the prompt so that the space before it stays"
                raise TokenizationError(
                    f"answer {form!a} is written {written!a} by this tokenizer: {remedy}"
                )
            yield own


def exact_text(tokenizer, ids) -> str:
    """What token ids write, special tokens and spaces included."""
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _segmentations(tokenizer, form: str, own: tuple[int, ...]) -> list[tuple[int, ...]]:
    every = _vocabulary(tokenizer).segmentations(form)
    if own not in every:  # the tokenizer writes other bytes, as accents apart
        raise TokenizationError(
            f"this tokenizer's own tokens of the answer {form.strip()!a} are not among "
            "tokenizations='all': use tokenizations='canonical'"
        )
    return every


def _end_ids(tokenizer, end: str, closing: str) -> tuple[int, ...]:
    if end == "none":
        return ()
    token, after = end_of_turn(tokenizer, closing), _plain_ids(tokenizer, closing.lstrip())
    control = _control_ids(tokenizer)
    if end == "eos" and token is None and control.intersection(after) and after[0] not in control:
        raise ModelFormatError(
            f"the chat template closes a reply with {closing!r}, with text before its end token: "
            "use end='line' or end='none', or chat=False to treat it as a base model"
        )
    token = tokenizer.eos_token_id if token is None else token
    found = {token} - {None}
    if end == "line":
        found.update(_vocabulary(tokenizer).starting_with("\n"))
    if not found:
        raise ModelFormatError("the tokenizer has no end token: use end='line' or end='none'")
    return tuple(sorted(found))


def end_of_turn(tokenizer, closing: str | None = None) -> int | None:
    """The special or added token with which the chat template closes a reply."""
    text = _chat(tokenizer, "question").closing if closing is None else closing
    ids = _plain_ids(tokenizer, text) if text else []
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return ids[0] if ids and ids[0] in known else None


# The text behind token ids: what each token writes, and every way to write a string.


class Vocabulary:
    """Bytes of every ordinary token; a ModelFormatError where the decoder is of neither kind."""

    def __init__(self, tokenizer):
        self._bytes = _token_bytes(tokenizer)
        self._ids: dict[bytes, list[int]] = {}
        for token, piece in self._bytes.items():
            self._ids.setdefault(piece, []).append(token)
        self._longest = max(map(len, self._ids))

    def starting_with(self, text: str) -> list[int]:
        """Ids of the tokens whose text begins with `text`, ascending."""
        prefix = text.encode()
        return sorted(t for t, piece in self._bytes.items() if piece.startswith(prefix))

    def segmentations(self, text: str) -> list[tuple[int, ...]]:
        """Every token sequence that writes exactly `text`.

        Raises:
            TokenizationError: none, or more than `MAX_SEGMENTATIONS`.
        """
        target = text.encode()
        endings: list[list[tuple[int, ...]]] = [[] for _ in target] + [[()]]
        for start in range(len(target) - 1, -1, -1):
            for stop in range(start + 1, min(len(target), start + self._longest) + 1):
                for token in self._ids.get(target[start:stop], ()):
                    endings[start] += [(token, *rest) for rest in endings[stop]]
            if len(endings[start]) > MAX_SEGMENTATIONS:
                raise TokenizationError(
                    f"{text!r} has more than {MAX_SEGMENTATIONS:,} segmentations: use "
                    "tokenizations='canonical', or shorter answers"
                )
        if not endings[0]:
            raise TokenizationError(f"{text!r} cannot be written with this vocabulary")
        return endings[0]


def _token_bytes(tokenizer) -> dict[int, bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"]) if backend else ""
    if "ByteLevel" in decoder:
        to_bytes = _byte_level
    elif "ByteFallback" in decoder or "\\u2581" in decoder:
        to_bytes = _sentencepiece
    else:
        raise ModelFormatError(
            f"cannot read the vocabulary of a {type(tokenizer).__name__} (neither byte-level nor "
            "SentencePiece): use tokenizations='canonical' and end='eos' or 'none'"
        )
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    pieces = {}
    for piece, token in tokenizer.get_vocab().items():
        if token in special or (token in added and added[token].special):
            continue
        # Added tokens are stored as plain text, not in the byte alphabet.
        pieces[token] = piece.encode() if token in added else to_bytes(piece)
    return pieces


def _byte_level(piece: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return piece.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


_vocabulary = lru_cache(maxsize=4)(Vocabulary)

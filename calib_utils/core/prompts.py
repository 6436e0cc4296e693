"""From a task to what the model sees: prompt ids, answers as token sequences, end tokens.

Knows tokenizers (any Hugging Face one), what each token writes (exactly, for byte-level BPE and
SentencePiece with byte fallback), and the policies for what counts as an answer. Knows nothing of
weights or probabilities.
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache

from calib_utils.core.tasks import Task
from calib_utils.core.tries import Sequences, Trie, build_trie
from calib_utils.errors import InvalidTaskError, ModelFormatError, TokenizationError

ENDS = ("eos", "line", "none")
TOKENIZATIONS = ("canonical", "all")
SURFACES = ("exact", "any_space", "any_case")
MAX_SEGMENTATIONS = 20_000  # of one answer
# Variables of chat templates, which ignore what they do not know: thinking is switched off, and the
# date fixed, since Llama's print today's and a number must not change overnight.
_TEMPLATE_VARIABLES = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}


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
            if value not in known[field]:
                raise InvalidTaskError(
                    f"{field}={value!r} does not exist: choose from {known[field]}"
                )

    @property
    def suffix(self) -> str:
        """What distinguishes these from the defaults, for a file name; empty for the defaults."""
        changed = ((k, v) for k, v in vars(self).items() if v != getattr(Policies, k))
        return "".join(f"@{name}={value}" for name, value in changed)


@dataclass(frozen=True)
class Prompt:
    """A task as one model sees it.

    `text` and `ids` are the prompt; `lead` is what an answer starts with (one space for a base
    model); `trie` holds every token sequence that counts as an answer.
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

    Raises:
        TokenizationError: an answer whose tokens do not simply follow the prompt's, or with
            tokenizations="all" one that the tokenizer rewrites.
        ModelFormatError: the chat template fails, or there is no end token.
    """
    policies = policies or Policies()
    is_chat = bool(tokenizer.chat_template)
    text = _chat_text(tokenizer, task.prompt) if is_chat else task.prompt
    lead = "" if is_chat else " "
    prompt_ids = _encode(tokenizer, text, is_chat)
    end_ids = _end_ids(tokenizer, policies.end, is_chat)
    spelled: dict[tuple[int, ...], int] = {}
    for index, answer in enumerate(task.answers):
        for form in _surfaces(lead + answer, policies.surface):
            for tokens in _segmentations(tokenizer, text, prompt_ids, form, is_chat, policies):
                other = spelled.setdefault(tokens, index)
                if other != index:
                    raise TokenizationError(
                        f"answers {task.answers[other]!r} and {answer!r} share the form {form!r}: "
                        "remove one, or use surface='exact'"
                    )
    sequences = Sequences(tuple(spelled), tuple(spelled.values()), end_ids, len(task.answers))
    return Prompt(text, prompt_ids, lead, is_chat, end_ids, sequences, build_trie(sequences))


def describe(tokenizer, task: Task, prompt: Prompt, policies: Policies) -> str:
    """A readable account of a rendered prompt, for people."""

    def quoted(ids):
        return " ".join(f"{tokenizer.decode([i])!r}:{i}" for i in ids)

    ends = quoted(prompt.end_ids[:3]) + (" ..." if len(prompt.end_ids) > 3 else "")
    kind = "chat template, one user message" if prompt.is_chat else "base model, raw prompt"
    return f"""task {task.name} as the model sees it ({kind}; {len(prompt.ids)} tokens):
{"-" * 72}
{prompt.text}
{"-" * 72}
first tokens     {quoted(prompt.ids[:6])}
last tokens      {quoted(prompt.ids[-6:])}
answers          {len(task.answers)}, each starting with {prompt.lead!r} \
({len(prompt.sequences.symbols)} token sequences, {prompt.trie.n_nodes} nodes)
first answer     {task.answers[0]!r} = {quoted(prompt.sequences.symbols[0])}
end (end={policies.end!r})  {len(prompt.end_ids)} token(s): {ends}"""


def _chat_text(tokenizer, message: str, reply: str | None = None) -> str:
    """A conversation as the template writes it, in the sandbox in which transformers renders it."""
    messages = [{"role": "user", "content": message}]
    if reply is not None:
        messages.append({"role": "assistant", "content": reply})
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=reply is None,
            **_TEMPLATE_VARIABLES,
        )
    except Exception as error:
        raise ModelFormatError(
            f"the tokenizer's chat template fails on a single user message: {error}; repair the "
            "template, or remove it to treat the model as a base model"
        ) from error


def _encode(tokenizer, text: str, is_chat: bool) -> tuple[int, ...]:
    """Token ids; a template writes its own special tokens, a raw prompt gets BOS if the tokenizer
    adds one. An end token that a tokenizer appends on its own account never gets in."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not is_chat and _adds_bos(tokenizer):
        ids = [tokenizer.bos_token_id, *ids]
    return tuple(ids)


@lru_cache(maxsize=8)
def _adds_bos(tokenizer) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def _surfaces(text: str, surface: str) -> list[str]:
    if surface == "exact":
        return [text]
    bare = text.lstrip(" ")
    words = [bare]
    if surface == "any_case":
        words += [bare.lower(), bare.upper(), bare.title()]
    return list(dict.fromkeys(form for word in words for form in (word, " " + word)))


def _segmentations(tokenizer, prompt_text, prompt_ids, form, is_chat, policies):
    whole = _encode(tokenizer, prompt_text + form, is_chat)
    if whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
        at = next(
            (i for i, (a, b) in enumerate(zip(whole, prompt_ids, strict=False)) if a != b),
            min(len(whole), len(prompt_ids)),
        )
        raise TokenizationError(
            f"answer {form!r} merges with the prompt: its tokens in context begin with "
            f"{tokenizer.decode(list(whole[at : at + 2]))!r} where the prompt alone ends with "
            f"{tokenizer.decode(list(prompt_ids[at:]))!r}; end the prompt differently (for "
            "example without trailing white space)"
        )
    own = whole[len(prompt_ids) :]
    if policies.tokenizations == "canonical":
        return [own]
    every = _vocabulary(tokenizer).segmentations(form)
    if own not in every:
        # Many tokenizers compose accents: then none of these is what the tokenizer itself writes.
        written = tokenizer.decode(list(own)).strip()
        raise TokenizationError(
            f"answer {form.strip()!a} is written {written!a} by this tokenizer, so its own tokens "
            "are not among tokenizations='all': list the answer so, or use "
            "tokenizations='canonical'"
        )
    return every


def _end_ids(tokenizer, end: str, is_chat: bool) -> tuple[int, ...]:
    if end == "none":
        return ()
    token = _end_of_turn(tokenizer) if is_chat else None
    token = tokenizer.eos_token_id if token is None else token
    if token is None:
        raise ModelFormatError("the tokenizer has no end token: use end='line' or end='none'")
    if end == "eos":
        return (token,)
    return tuple(sorted({token, *_vocabulary(tokenizer).starting_with("\n")}))


def _end_of_turn(tokenizer) -> int | None:
    """The special token with which the chat template closes the assistant's message."""
    marker = "0123456789 answer 9876543210"
    text = _chat_text(tokenizer, "question", marker)
    _, found, rest = text.rpartition(marker)
    ids = tokenizer(rest, add_special_tokens=False).input_ids if found and rest else []
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return ids[0] if ids and ids[0] in known else None


# --- The text behind token ids: what each token writes, and every way to write a string ---


class Vocabulary:
    """Bytes of every ordinary token (special tokens write nothing).

    Raises:
        ModelFormatError: a tokenizer whose decoder is of neither kind.
    """

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
    """The printable stand-ins that byte-level BPE uses for the 256 bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


_vocabulary = lru_cache(maxsize=4)(Vocabulary)

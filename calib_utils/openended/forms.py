"""Open prompts that ask for a form: whether a text has it is decided by a parser or a rule.

Knows texts, a word list and a pronouncing dictionary; no model and no judge. For every form:

- *Wrapping.* A text is valid where it, or what is left as its wrapping is taken off, is valid:
  white space, one final full stop, a code fence, matching quotes, backticks, asterisks, underscores
  or signs of a formula in TeX around the whole. So a full stop that a form asks for is still seen.
- *Cut-off texts.* One that is valid as far as it goes is valid. One that cannot begin a text of the
  form's shape is invalid. Any other is valid where the shape is all that is asked, else undecided.
- *Long texts.* Of more than `LONGEST` characters only the first ones are read: they are invalid
  where they cannot begin the shape, else undecided. So every decision takes milliseconds.

A word is English where ENABLE has it. One that only CMUdict has, such as a name, is undecided. Of a
sentence the words, their number and the marks are decided, not the grammar.
"""

import ast
import calendar
import gzip
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import cache
from ipaddress import IPv4Address, IPv4Network

import regex

from calib_utils import files, paths

LONGEST = 200  # characters of a text that is read as a whole
CATEGORY = "form"  # of the prompts; their ids are `form-<name>`


@dataclass(frozen=True)
class Form:
    """What one prompt asks for, as `data/tasks/forms.json` has it."""

    prompt: str
    shape: str  # a regular expression that every valid answer matches as a whole
    accepted: list[str]  # examples, for tests
    rejected: list[str]
    holds: Callable[[str], bool | None] | None  # one of `_RULES`


def decide(name: str, text: str, ended: bool = True) -> tuple[bool | None, str]:
    """Whether a text answers the prompt of a form, None where that cannot be decided, and why.

    Args:
        ended: False where the token limit cut the text off.

    >>> decide("expression-24", "`6 * 4`.")
    (True, "has the form: '6 * 4'")
    >>> decide("expression-24", "The answer is 24", ended=False)
    (False, "cut off: 'The answer is 24' does not begin the form")
    """
    form, text = FORMS[name], text.strip()
    whole = len(text) <= LONGEST
    if whole:
        # A cut-off text may have lost its closing mark.
        found = {r: _holds(form, r) for r in (*_readings(text), *(() if ended else (_open(text),)))}
        for answer, valid in found.items():
            if valid:
                return True, f"has the form: {_shown(answer)}"
        if ended:
            undecided = [answer for answer, valid in found.items() if valid is None]
            if undecided:
                return None, f"undecided: {_shown(undecided[0])}"
            return False, f"not of the form: {_shown(text)}"
    why, begun = "too long" if ended else "cut off", text[:LONGEST]
    if not _open(begun):
        return None, f"{why}: no answer yet"
    if not any(_match(form, start, partial=True) for start in (begun, _open(begun))):
        return False, f"{why}: {_shown(begun)} does not begin the form"
    sure = whole and form.holds is None
    return sure or None, f"{why}: {_shown(begun)} may begin the form"


def _holds(form: Form, answer: str) -> bool | None:
    if not _match(form, answer):
        return False
    return True if form.holds is None else form.holds(answer)


def _match(form: Form, answer: str, partial: bool = False) -> bool:
    return regex.fullmatch(form.shape, answer, regex.ASCII, partial=partial) is not None


def _shown(text: str) -> str:
    shown = repr(text[:60])
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


_FENCE = regex.compile(r"```\w*\s(.*?)\s?```", regex.DOTALL)
_PAIR = regex.compile(r"([`*_\"'$])(.+)\1|“(.+)”|‘(.+)’|\\\((.+)\\\)|\\\[(.+)\\\]", regex.DOTALL)
_OPENING = regex.compile(r"(?:```\w*(?:\s|$)|\\[(\[]|[`*_\"'“‘$\s])*")
_LAYERS = 8


def _readings(text: str) -> list[str]:
    """The text, then what is left as one layer of wrapping after another is taken off."""
    found, stops = [text], 1
    while len(found) < _LAYERS:
        text = found[-1]
        if wrapped := _FENCE.fullmatch(text) or _PAIR.fullmatch(text):
            text = [group for group in wrapped.groups() if group is not None][-1]
        elif stops and text.endswith("."):
            text, stops = text[:-1], 0
        else:
            break
        found.append(text.strip())
    return found


def _open(text: str) -> str:
    """A text without what opens a wrapping."""
    return text[_OPENING.match(text).end() :]


# Words.

_RUNNING = "[A-Za-z]+(?:['’-][A-Za-z]+)*"  # a word of running text


@cache
def _words() -> frozenset[str]:
    folder = paths.package_data("tasks", "forms")
    listed = gzip.decompress((folder / "enable1.txt.gz").read_bytes()).decode("ascii")
    more = (folder / "more_words.txt").read_text(encoding="ascii")
    return frozenset([*listed.split(), *more.split()])


@cache
def _pronounced() -> dict[str, list[tuple[str, ...]]]:
    """The ways in which CMUdict pronounces a word: phonemes, vowels with their stress."""
    path = paths.package_data("tasks", "forms") / "cmudict.dict.gz"
    found: dict[str, list[tuple[str, ...]]] = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        found.setdefault(word.split("(")[0], []).append(tuple(phonemes))
    return found


def _is_word(word: str) -> bool | None:
    """Whether English has a word; None where only the pronouncing dictionary knows it."""
    word = word.lower()
    return word in _words() or (None if word in _pronounced() else False)


def _all(verdicts) -> bool | None:
    """False where any is, else None where any is, else True."""
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def _word(rule: Callable[[str], bool]) -> Callable[[str], bool | None]:
    """A single word that keeps a rule."""
    return lambda answer: rule(answer.lower()) and _is_word(answer)


def _listed(answer: str) -> list[str]:
    return regex.findall(r"[a-z]+", answer.lower())


def _alphabetical(answer: str) -> bool | None:
    words = _listed(answer)
    return words == sorted(set(words)) and _all(map(_is_word, words))


def _running(answer: str) -> bool | None:
    """Words of running text, names among them; one with a capital that no list has is undecided."""
    verdicts = []
    for place, word in enumerate(regex.findall(_RUNNING, answer.replace("’", "'"))):
        parts = [part.removesuffix("'s") for part in word.split("-")]
        known = all(p.lower() in {"a", "i"} or _is_word(p) is not False for p in parts)
        verdicts.append(known or (None if place and word[0].isupper() else False))
    return _all(verdicts)


def _rhyme(answer: str) -> bool | None:
    """From the last stressed vowel on two words sound alike, but not as wholes."""
    one, other = _listed(answer)
    if one == other or _all(map(_is_word, (one, other))) is False:
        return False
    ways = [_pronounced().get(word, []) for word in (one, other)]
    if not all(ways):
        return None
    pairs = [(a, b) for a in ways[0] for b in ways[1] if _tail(a) == _tail(b)]
    if pairs and all(_plain(a) == _plain(b) for a, b in pairs):
        return None  # "sea, see": the same sound
    return bool(pairs)


def _tail(phonemes: tuple[str, ...]) -> tuple[str, ...]:
    stressed = [place for place, sound in enumerate(phonemes) if sound[-1] in "12"]
    return _plain(phonemes[stressed[-1] if stressed else 0 :])


def _plain(phonemes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sound.rstrip("012") for sound in phonemes)


# Numbers.


def _numbers(answer: str) -> list[int]:
    return [int(number) for number in regex.findall(r"-?[0-9]+", answer)]


def _prime(answer: str) -> bool:
    n = int(answer)
    return 1 < n < 1000 and all(n % d for d in range(2, math.isqrt(n) + 1))


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_LARGEST = 10**9  # of numbers raised to a power
_HIGHEST = 64  # of powers


class _Undecided(Exception):
    """A number too large to compute with."""


def _value(node: ast.expr, number: Callable = int) -> complex:
    """What Python computes for an arithmetic expression; a ValueError where it is none.

    Args:
        number: what becomes of its numbers: int, or Fraction for exact quotients.
    """
    match node:
        case ast.Constant(value=int() as constant):
            return number(constant)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, number)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left, number), _value(right, number)
            if isinstance(op, ast.Pow) and (abs(b) > _HIGHEST or abs(a) > _LARGEST):
                raise _Undecided
            return _OPERATORS[type(op)](a, b)
    raise ValueError("no arithmetic")


def _equals(wanted: int, answer: str, number: Callable = int) -> bool | None:
    """Whether an arithmetic expression, of two numbers or more, has this value."""
    try:
        node = ast.parse(answer, mode="eval").body
        return len(_numbers(answer)) > 1 and _value(node, number) == wanted
    except _Undecided:
        return None
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return False


def _usual(answer: str) -> str:
    """An expression with Python's signs."""
    return regex.sub(r"[×·]|\\times", "*", regex.sub(r"÷|\\div", "/", answer.replace("−", "-")))


# Names, codes and data.


def _date(answer: str) -> bool:
    try:
        return date.fromisoformat(answer).year == 2023
    except ValueError:
        return False


_PRIVATE = [IPv4Network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


def _private(answer: str) -> bool:
    try:
        return any(IPv4Address(answer) in net for net in _PRIVATE)
    except ValueError:
        return False


_BELOW_11 = {"", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"}
# What a shape leaves open, of an answer that matches: True, False, or None where it cannot be
# decided. Where nothing stands, the shape is all that is asked.
_RULES: dict[str, Callable[[str], bool | None]] = {
    "iso-date": _date,
    "leap-year": lambda answer: calendar.isleap(int(answer)),
    "expression-24": lambda answer: "//" not in answer and _equals(24, _usual(answer), Fraction),
    "python-10": lambda answer: "//" in answer and _equals(10, answer),
    "python-list": lambda answer: (n := _numbers(answer))[0] < n[1] < n[2],
    "private-ipv4": _private,
    "five-words": _running,
    "palindrome": _word(lambda word: word == word[::-1]),
    "same-ends": _word(lambda word: word[0] == word[-1]),
    "seven-letters": _word(bool),
    "without-e": _word(lambda word: "e" not in word),
    "rhyme": _rhyme,
    "alphabetical": _alphabetical,
    "prime": _prime,
    "square": lambda answer: (n := int(answer)) > 100 and math.isqrt(n) ** 2 == n,
    "roman": lambda answer: answer.upper() not in _BELOW_11,
    "fraction": lambda answer: (n := _numbers(answer))[0] > 0 and 2 * n[0] < n[1],
    "equation": lambda answer: (n := _numbers(answer))[0] + n[1] == n[2],
}


FORMS = {
    name: Form(**own, holds=_RULES.get(name))
    for name, own in files.json_of(paths.package_data("tasks", "forms.json")).items()
}

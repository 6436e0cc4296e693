"""Open prompts that ask for a form: whether a text has it is decided by a parser or a rule.

Knows prompts, texts, a word list and a pronouncing dictionary. Knows no model and no judge.

Three rules hold for every form:

- *Wrapping.* A text is valid where it, or what is left as its wrapping is taken off, is valid:
  white space, one final full stop, a code fence, matching quotes, backticks, asterisks, underscores
  or signs of a formula in TeX around the whole. So a full stop that a form asks for is still seen.
- *Cut-off texts.* One that is valid as far as it goes is valid. One that cannot begin a text of the
  form's shape is invalid. Any other is valid where the shape is all that is asked, else undecided.
- *Long texts.* Of more than `LONGEST` characters, only the first ones are read: they are invalid
  where they cannot begin the shape, else undecided. Every other decision reads a short text with
  bounded numbers, so it takes milliseconds.

A word is English where ENABLE has it. One that only CMUdict has, such as a name, is undecided. Of a
sentence the words, their number and the marks are decided, not the grammar.
"""

import ast
import calendar
import gzip
import keyword
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import cache
from ipaddress import IPv4Address, IPv4Network

import regex

from calib_utils import paths
from calib_utils.errors import UnknownNameError

LONGEST = 200  # characters of a text that is read as a whole
CATEGORY = "form"  # of the prompts; their ids are `form-<name>`


@dataclass(frozen=True)
class Form:
    """What one prompt asks for.

    Args:
        prompt: the full text asked.
        shape: a regular expression that every valid answer matches as a whole.
        holds: what the shape leaves open, of an answer that matches: True, False, or None where it
            cannot be decided. None in its place: the shape is all that is asked.
        accepted, rejected: examples.
    """

    prompt: str
    shape: str
    holds: Callable[[str], bool | None] | None
    accepted: tuple[str, ...]
    rejected: tuple[str, ...]


def decide(name: str, text: str, ended: bool = True) -> tuple[bool | None, str]:
    """Whether a text answers the prompt of a form, None where that cannot be decided, and why.

    Args:
        ended: False where the token limit cut the text off.

    Raises:
        UnknownNameError: no form has this name.

    >>> decide("expression-24", "`6 * 4`.")
    (True, "has the form: '6 * 4'")
    >>> decide("expression-24", "The answer is 24", ended=False)
    (False, "cut off: 'The answer is 24' does not begin the form")
    """
    if name not in FORMS:
        raise UnknownNameError("form", name, FORMS)
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


def _several(rule: Callable[[list[str]], bool]) -> Callable[[str], bool | None]:
    """Different words, separated by commas, that together keep a rule."""

    def holds(answer: str) -> bool | None:
        words = _listed(answer)
        if len(set(words)) < len(words) or not rule(words):
            return False
        return _all(map(_is_word, words))

    return holds


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
    return [int(digits) for digits in regex.findall(r"[0-9]+", answer)]


def _signed(answer: str) -> list[int]:
    return [int(number) for number in regex.findall(r"-?[0-9]+", answer)]


def _prime(answer: str) -> bool:
    n = int(answer)
    return 1 < n < 1000 and all(n % d for d in range(2, math.isqrt(n) + 1))


def _right_triangle(answer: str) -> bool:
    a, b, c = _numbers(answer)
    return a > 0 and b > 0 and a * a + b * b == c * c


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


_COMPARISONS = {
    **{"<": operator.lt, ">": operator.gt, "<=": operator.le},
    **{">=": operator.ge, "==": operator.eq, "!=": operator.ne},
}


def _comparison(answer: str) -> bool:
    left, sign, right = regex.fullmatch(r"(-?\d+)\s*([<>=!]+)\s*(-?\d+)", answer).groups()
    return _COMPARISONS[sign](int(left), int(right))


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


def _variable(answer: str) -> bool:
    has = "_" in answer, any(c.isdigit() for c in answer)
    return all(has) and answer.isidentifier() and not keyword.iskeyword(answer)


def _south(answer: str) -> bool:
    latitude, longitude = map(float, regex.findall(r"-?[0-9.]+", answer.replace("−", "-")))
    return -90 <= latitude < 0 and abs(longitude) <= 180


_PYTHON_INT = r"(?:0|[1-9][0-9]*)"  # Python reads no 05
_WORD, _WORDS = r"[A-Za-z]{2,28}", r"[A-Za-z]{2,28}(?:, ?[A-Za-z]{2,28})"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_STRING, _INTEGER = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4})*"', r"(?:0|[1-9][0-9]*)"
_S = r"[ \t\r\n]*"
_NAME_FIELD, _AGE_FIELD = f'"name"{_S}:{_S}{_STRING}', f'"age"{_S}:{_S}{_INTEGER}'
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*"
_SEMVER = r"(?:0|[1-9][0-9]*)"
_PRE = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_ROMAN = "M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
_BELOW_11 = {"", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"}


def _only(what: str) -> str:
    return f" Answer with the {what} only."


FORMS: dict[str, Form] = {
    "iso-date": Form(
        "Write a date in the year 2023 in the format YYYY-MM-DD." + _only("date"),
        r"2023-[01][0-9]-[0-3][0-9]",
        _date,
        ("2023-03-15", "2023-12-31", "2023-02-28", "2023-01-01"),
        ("2023-02-29", "2024-01-01", "2023-13-01", "2023-1-5", "15-03-2023", "２０２３-01-01"),
    ),
    "afternoon": Form(
        "Write a time between 12:00 and 18:00 on a 24-hour clock in the format HH:MM."
        + _only("time"),
        r"1[2-7]:[0-5][0-9]|18:00",
        None,
        ("12:00", "15:45", "17:59", "18:00"),
        ("11:59", "18:01", "3:45 PM", "15:60", "15.45", "1545"),
    ),
    "leap-year": Form(
        "Name a leap year between 1801 and 2099." + _only("year"),
        r"(?:18|19|20)[0-9]{2}",
        lambda answer: calendar.isleap(int(answer)),
        ("2000", "2024", "1804", "1996"),
        ("1900", "2023", "1800", "2104", "24"),
    ),
    "expression-24": Form(
        "Write an arithmetic expression that equals 24, with two or more whole numbers and only "
        "+, -, *, / and brackets." + _only("expression"),
        r"(?:[0-9 ()+/×÷·−-]|\*(?!\*)|\\times|\\div)+",
        lambda answer: "//" not in answer and _equals(24, _usual(answer), Fraction),
        ("12 + 12", "(2+4)*4", "6 × 4", "72/3", "8/(3-8/3)", r"3 \times 8"),
        ("24", "12 + 13", "12 + 12 = 24", "5**2 - 1", "24/0", "4*(6", "(12, 12)", "4!", "49 // 2"),
    ),
    "python-10": Form(
        "Write a Python expression of whole numbers with the operator // whose value is 10."
        + _only("expression"),
        r"[0-9 ()+*/%-]+",
        lambda answer: "//" in answer and _equals(10, answer),
        ("20 // 2", "2**3 + 5 // 2", "(21 // 2)", "110 % 100 // 1", "-5 // 1 + 15"),
        ("10", "20 / 2", "5 + 5", "10 // 0", "print(20 // 2)", "020 // 2", "21 // 2 == 10"),
    ),
    "python-comparison": Form(
        "Write a Python comparison of two whole numbers that is True, with one of <, >, <=, >=, == "
        "or != between them." + _only("comparison"),
        rf"-?{_PYTHON_INT} *(?:<=?|>=?|==|!=) *-?{_PYTHON_INT}",
        _comparison,
        ("3 < 5", "10>=10", "7 != 8", "-1 < 0"),
        ("5 < 3", "3 = 3", "3 < 4 < 5", "True", "x < 5", "3 <> 4"),
    ),
    "python-list": Form(
        "Write a Python list of three different whole numbers in ascending order." + _only("list"),
        rf"\[ *-?{_PYTHON_INT} *, *-?{_PYTHON_INT} *, *-?{_PYTHON_INT} *,? *\]",
        lambda answer: (n := _signed(answer))[0] < n[1] < n[2],
        ("[1, 2, 3]", "[10,20,30]", "[-5, 0, 7]", "[1, 5, 100]"),
        ("[3, 2, 1]", "[1, 1, 2]", "[1, 2]", "[1, 2, 3, 4]", "(1, 2, 3)", "1, 2, 3"),
    ),
    "python-name": Form(
        "Write a Python variable name that contains an underscore and a digit." + _only("name"),
        r"[A-Za-z_][A-Za-z0-9_]*",
        _variable,
        ("my_var1", "_2", "value_10", "x_1"),
        ("1_value", "my_var", "myvar1", "my-var_1", "my_var1 = 5", "ａ_1"),
    ),
    "json-object": Form(
        'Write a JSON object with exactly two keys: "name", a string, and "age", a whole number.'
        + _only("object"),
        rf"\{{{_S}(?:{_NAME_FIELD}{_S},{_S}{_AGE_FIELD}|{_AGE_FIELD}{_S},{_S}{_NAME_FIELD}){_S}\}}",
        None,
        (
            '{"name": "Ann", "age": 30}',
            '{"age":7,"name":""}',
            '{\n  "name": "Jo",\n  "age": 41\n}',
            '```json\n{"name": "Ann", "age": 30}\n```',
        ),
        (
            "{'name': 'Ann', 'age': 30}",
            '{"name": "Ann", "age": 30, "city": "Rome"}',
            '{"name": "Ann", "name": "Bo"}',
            '{"name": "Ann", "age": "30"}',
            '{"name": "Ann", "age": 30,}',
            '{"name": "a\nb", "age": 30}',
            '{"name": "Ann"}',
        ),
    ),
    "chess-opening": Form(
        "Write a legal first move for White in chess, in standard algebraic notation."
        + _only("move"),
        # Each pawn one or two squares, each knight two; also with the square it comes from.
        r"(?:1\. ?)?(?:[a-h][34]|([a-h])2-?\1[34]|(?:N?b1-?|Nb?)[ac]3|(?:N?g1-?|Ng?)[fh]3)",
        None,
        ("e4", "Nf3", "1. d4", "e2e4", "Nb1-c3"),
        ("e5", "Ke2", "e2e5", "Nd2", "O-O", "e4 e5", "E4", "f3c3"),
    ),
    "private-ipv4": Form(
        "Write an IPv4 address in a private range (RFC 1918)." + _only("address"),
        rf"{_BYTE}(?:\.{_BYTE}){{3}}",
        _private,
        ("192.168.1.1", "10.0.0.1", "172.16.0.5", "172.31.255.255"),
        ("8.8.8.8", "172.32.0.1", "192.168.1", "192.168.1.256", "192.168.0.0/16", "127.0.0.1"),
    ),
    "regular-expression": Form(
        "Write a string that matches the regular expression ^[abc]+[0-9]{2}$." + _only("string"),
        r"[abc]+[0-9]{2}",
        None,
        ("abc12", "a00", "cbab99", "bbcc07"),
        ("abcd12", "12", "abc1", "abc123", "abc-12", "^[abc]+[0-9]{2}$", "abc١٢"),
    ),
    "five-words": Form(
        "Write a sentence of exactly five words." + _only("sentence"),
        rf"[A-Z][a-z]*(?:['’-][A-Za-z]+)*(?:,? {_RUNNING}){{4}}[.!?]",
        _running,
        (
            "The cat sat down quietly.",
            "I don’t like green apples!",
            "Ann's well-known dog barks, loudly.",
            "Where does my friend live?",
        ),
        ("The cat sat down.", "the cat sat down quietly.", "The cat sat down quietly", "Xq zw vv."),
    ),
    "why-question": Form(
        'Write a question of at most ten words that begins with "Why".' + _only("question"),
        rf"Why(?:,? {_RUNNING}){{1,9}} ?\?",
        _running,
        ("Why is the sky blue?", "Why not today?", "Why do cats purr?", "Why can't I sleep?"),
        (
            "Why?",
            "Why is the sky so blue on a day in June?",
            "Why is it.",
            "What is that?",
            "Why zq xv?",
        ),
    ),
    "palindrome": Form(
        "Write an English word of at least four letters that reads the same backwards."
        + _only("word"),
        r"[A-Za-z]{4,28}",
        _word(lambda word: word == word[::-1]),
        ("level", "Radar", "kayak", "racecar", "noon"),
        ("mom", "hello", "abcba", "level radar", "le vel"),
    ),
    "same-ends": Form(
        "Write an English word of at least four letters that begins and ends with the same letter."
        + _only("word"),
        r"[A-Za-z]{4,28}",
        _word(lambda word: word[0] == word[-1]),
        ("level", "Dread", "stress", "kick"),
        ("apple", "dad", "sxxs", "noon noon", "eve"),
    ),
    "seven-letters": Form(
        "Write an English word of exactly seven letters." + _only("word"),
        r"[A-Za-z]{7}",
        _word(bool),
        ("kitchen", "Weather", "example", "freedom"),
        ("apple", "elephant", "abcdefg", "two words", "seven-7"),
    ),
    "three-vowels": Form(
        "Write an English word with exactly three of the letters a, e, i, o and u in it."
        + _only("word"),
        _WORD,
        _word(lambda word: sum(map(word.count, "aeiou")) == 3),
        ("banana", "Elephant", "umbrella", "piano"),
        ("apple", "education", "aei", "rhythm", "a, e, i"),
    ),
    "without-e": Form(
        "Write an English word of at least six letters without the letter e." + _only("word"),
        r"[A-Za-z]{6,28}",
        _word(lambda word: "e" not in word),
        ("banana", "Morning", "kingdom", "football"),
        ("elephant", "cat", "zzzzzz", "without e", "simple"),
    ),
    "rhyme": Form(
        "Write two different English words that rhyme, separated by a comma." + _only("words"),
        _WORDS,
        _rhyme,
        ("cat, hat", "Light, night", "ringing,singing", "moon, June"),
        ("cat, dog", "cat, cat", "cat", "cat, hat, bat", "cat and hat", "zat, cat"),
    ),
    "alphabetical": Form(
        "Write three different English words in alphabetical order, separated by commas."
        + _only("words"),
        _WORDS + "{2}",
        _several(lambda words: words == sorted(words)),
        ("apple, banana, cherry", "Ant, bee, cat", "car,card,care", "one, three, two"),
        ("banana, apple, cherry", "apple, banana", "apple banana cherry", "ant, ant, bee"),
    ),
    "alliteration": Form(
        "Write three different English words that begin with the same letter, separated by commas."
        + _only("words"),
        _WORDS + "{2}",
        _several(lambda words: len({word[0] for word in words}) == 1),
        ("cat, cow, cup", "Sun, sand, sea", "big,bad,bold", "tree, table, ten"),
        ("cat, dog, cow", "cat, cat, cow", "cat, cow", "cat cow cup", "cat, cow, cup, can"),
    ),
    "prime": Form(
        "Name a prime number below 1000." + _only("number"),
        r"[0-9]{1,3}",
        _prime,
        ("7", "997", "2", "101"),
        ("1", "9", "1009", "0", "seven", "٧", "2, 3"),
    ),
    "square": Form(
        "Name a square number above 100." + _only("number"),
        r"[1-9][0-9]*",
        lambda answer: (n := int(answer)) > 100 and math.isqrt(n) ** 2 == n,
        ("144", "121", "10000", "1024"),
        ("100", "120", "12²", "81", "12 * 12"),
    ),
    "power-of-two": Form(
        "Name a power of two above 100." + _only("number"),
        r"[1-9][0-9]*",
        lambda answer: (n := int(answer)) > 100 and n & (n - 1) == 0,
        ("128", "1024", "65536", "256"),
        ("64", "100", "2^7", "1000", "129"),
    ),
    "multiple-of-7": Form(
        "Name a three-digit number that is divisible by seven." + _only("number"),
        r"[1-9][0-9]{2}",
        lambda answer: int(answer) % 7 == 0,
        ("105", "700", "994", "343"),
        ("100", "77", "1001", "070", "seven hundred"),
    ),
    "roman": Form(
        "Write a number between 11 and 3999 as a Roman numeral." + _only("numeral"),
        rf"{_ROMAN}|{_ROMAN.lower()}",
        lambda answer: answer.upper() not in _BELOW_11,
        ("XII", "MMXXIII", "xlii", "MCMXCIX"),
        ("X", "IIX", "MMMM", "Xii", "12", "IC", "VIII"),
    ),
    "fraction": Form(
        "Write a fraction that is less than 1/2 and more than 0, as two whole numbers with a slash "
        "between them." + _only("fraction"),
        r"[0-9]{1,50} ?/ ?[0-9]{1,50}",
        lambda answer: (n := _numbers(answer))[0] > 0 and 2 * n[0] < n[1],
        ("1/3", "2/5", "3 / 8", "49/100"),
        ("1/2", "2/3", "0/5", "1/0", "0.25", "-1/3", "1/3/5"),
    ),
    "percentage": Form(
        "Write a percentage between 10% and 50%." + _only("percentage"),
        r"[1-5][0-9](?:\.[0-9]+)? ?%",
        lambda answer: 10 <= Fraction(answer.rstrip("% ")) <= 50,
        ("25%", "10%", "12.5 %", "50%"),
        ("5%", "50.1%", "25", "25 percent", "120%", "0.25"),
    ),
    "equation": Form(
        "Write a true equation of the form a + b = c with whole numbers for a, b and c."
        + _only("equation"),
        r"-?[0-9]+ *\+ *-?[0-9]+ *= *-?[0-9]+",
        lambda answer: (n := _signed(answer))[0] + n[1] == n[2],
        ("2 + 3 = 5", "10+20=30", "-1 + 1 = 0", "100 + 250 = 350"),
        ("2 + 3 = 6", "a + b = c", "2 + 3", "1 + 1 + 1 = 3", "5 - 3 = 2", "2 + 3 == 5"),
    ),
    "right-triangle": Form(
        "Write three whole numbers, the sides of a right triangle, the longest last, separated by "
        "commas." + _only("numbers"),
        r"[0-9]{1,50}, ?[0-9]{1,50}, ?[0-9]{1,50}",
        _right_triangle,
        ("3, 4, 5", "5,12,13", "4, 3, 5", "6, 8, 10"),
        ("3, 4, 6", "5, 4, 3", "0, 1, 1", "3, 4", "3 4 5", "a, b, c"),
    ),
    "permutation": Form(
        "Write the digits from 1 to 5 in any order, each exactly once, separated by commas."
        + _only("digits"),
        r"[1-5](?:, ?[1-5]){4}",
        lambda answer: len(set(_numbers(answer))) == 5,
        ("1, 2, 3, 4, 5", "5,4,3,2,1", "3, 1, 4, 5, 2", "2, 4, 1, 3, 5"),
        ("1, 2, 3, 4", "1, 1, 2, 3, 4", "1 2 3 4 5", "0, 1, 2, 3, 4", "1, 2, 3, 4, 5, 1"),
    ),
    "binary": Form(
        "Write a binary number of exactly eight digits." + _only("number"),
        r"(?:0b)?[01]{8}",
        None,
        ("10101010", "00000001", "0b11110000", "11111111"),
        ("1010101", "101010101", "12345678", "1010 1010", "0x10101010"),
    ),
    "hex-colour": Form(
        "Write a colour as a hexadecimal code, a hash and six digits." + _only("code"),
        r"#[0-9A-Fa-f]{6}",
        None,
        ("#FF0000", "#00ff7f", "#123456", "#abcdef"),
        ("FF0000", "#FFF", "#GG0000", "#FF00000", "red"),
    ),
    "rgb-colour": Form(
        "Write a colour in CSS as rgb() with three whole numbers from 0 to 255." + _only("colour"),
        rf"rgb\( *{_BYTE}(?: *, *{_BYTE} *, *{_BYTE}| +{_BYTE} +{_BYTE}) *\);?",
        None,
        ("rgb(255, 0, 0)", "rgb(1,2,3)", "rgb(0 128 255)", "rgb(10, 20, 30);"),
        ("rgb(256, 0, 0)", "rgb(1, 2)", "255, 0, 0", "rgba(1, 2, 3, 1)", "#FF0000"),
    ),
    "e-mail": Form(
        "Write an e-mail address at example.com." + _only("address"),
        rf"{_ATOM}(?:\.{_ATOM})*@[Ee]xample\.com",
        lambda answer: answer.index("@") <= 64,
        ("info@example.com", "jane.doe@example.com", "a+b@example.com", "x_1@example.com"),
        ("@example.com", "info@example.org", "a..b@example.com", "a b@example.com", "example.com"),
    ),
    "web-address": Form(
        "Write a web address that begins with https://." + _only("address"),
        rf"https://(?:{_LABEL}\.)+[A-Za-z]{{2,63}}(?::[0-9]{{1,5}})?(?:[/?#]{_PATH})?",
        None,
        (
            "https://example.com",
            "https://www.python.org/about/",
            "https://a.b.io:8080/x?y=1#z",
            "https://example.org/a%20b",
        ),
        (
            "http://example.com",
            "www.example.com",
            "https://",
            "https://-a.com/x",
            "https://example.com/a b",
            "https://localhost",
        ),
    ),
    "semantic-version": Form(
        "Write a semantic version number with the major version 2." + _only("number"),
        rf"2\.{_SEMVER}\.{_SEMVER}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?",
        None,
        ("2.0.0", "2.13.4", "2.0.0-beta.1", "2.1.0+build.7"),
        ("1.2.3", "2.0", "2.01.0", "2", "2.0.0.0", "2.x.0", "v2.1.0"),
    ),
    "coordinates": Form(
        "Write the latitude and longitude of a place south of the equator in whole degrees, with a "
        "minus sign for south and west, separated by a comma." + _only("numbers"),
        r"[-−][0-9]{1,2}(?:\.0+)?°?, ?[-−]?[0-9]{1,3}(?:\.0+)?°?",
        _south,
        ("-34, 151", "-1,1", "-35.0, -58.0", "−23°, −43°"),
        ("34, 151", "-91, 20", "-34", "34 S, 151 E", "-10, 190", "0, 10", "-33.9, 151.2"),
    ),
    "phone-number": Form(
        "Write a telephone number in international form: a plus sign and exactly ten digits, no "
        "spaces." + _only("number"),
        r"\+[1-9][0-9]{9}",
        None,
        ("+1234567890", "+4420794601", "+9998887776", "+3312345678"),
        ("1234567890", "+0123456789", "+123456789", "+12345678901", "+123 456 7890"),
    ),
    "file-name": Form(
        "Write a file name that ends in .csv, without spaces." + _only("file name"),
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.csv",
        None,
        ("data.csv", "sales_2023.csv", "my-file.v2.csv", "A.csv"),
        ("data.txt", ".csv", "my file.csv", "data.csv.gz", "path/to/data.csv", "csv"),
    ),
}

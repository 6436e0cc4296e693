"""Each form decides its examples; wrapping, cut-off, long and hostile texts follow one rule."""

import hashlib
import time

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_utils import paths
from calib_utils.openended.forms import FORMS, LONGEST, _is_word, decide

EACH_FORM = pytest.mark.parametrize("name", FORMS)


def pairs(of):
    return [pytest.param(name, t, id=f"{name}-{t}") for name in FORMS for t in of(FORMS[name])]


def test_there_are_many_forms_with_examples():
    assert len(FORMS) >= 20 and len({form.prompt for form in FORMS.values()}) == len(FORMS)
    for form in FORMS.values():
        assert "Answer with the" in form.prompt and "only." in form.prompt
        assert min(len(set(form.accepted)), len(set(form.rejected))) >= 4


@pytest.mark.parametrize(("name", "text"), pairs(lambda form: form.accepted))
def test_accepted(name, text):
    assert decide(name, text)[0] is True
    assert decide(name, text, ended=False)[0] is True


@pytest.mark.parametrize(("name", "text"), pairs(lambda form: form.rejected))
def test_rejected(name, text):
    assert decide(name, text)[0] is False


@EACH_FORM
def test_what_stands_around_an_answer(name):
    for answer in FORMS[name].accepted:
        same = [f" {answer}\n", f"`{answer}`", f'"{answer}"', f"**{answer}**.", f"“{answer}”"]
        same += [f"```\n{answer}\n```", f"```python\n{answer}\n```", f"*'{answer}'*"]
        same += [f"${answer}$", rf"\({answer}\)", rf"\[ {answer} \]"]
        for text in same:
            assert decide(name, text)[0] is True, text
        more = ["", "  \n", f"The answer that I would like to give is {answer}", f"Sure! {answer}"]
        more += [f"{answer}\n\nThis is one because it fits.", f"{answer} (an example)"]
        more += [f"1. {answer}\n2. {answer}", f"{answer}\x00", f"{answer} {answer} {answer}"]
        for text in more:
            assert decide(name, text)[0] is False, text


@EACH_FORM
def test_a_text_cut_off_is_not_punished_and_a_lost_one_is_seen(name):
    for answer in FORMS[name].accepted:
        if regex.match("```|1. ", answer):
            continue
        for stop in range(1, len(answer)):
            valid = decide(name, answer[:stop], ended=False)[0]
            assert valid is not False, answer[:stop]
            assert valid is True or FORMS[name].holds is not None
            assert decide(name, f"**`{answer[:stop]}", ended=False)[0] is not False
    for empty in ("", "  ", "```", "```json", '"'):
        assert decide(name, empty, ended=False)[0] is None, empty
    lead_in = ("Here is one that you can take:", "Sure, I can do that for you now!\n")
    for lost in (*lead_in, "¿? ", "The answer:"):
        assert decide(name, lost, ended=False)[0] is False, lost


@pytest.mark.parametrize(
    ("name", "text", "valid"),
    [
        ("iso-date", "2023-0", None),
        ("iso-date", "2024-", False),
        ("hex-colour", "#FF0", True),
        ("prime", "10", None),
        ("prime", "7, because", False),
        ("json-object", '{"name": "Ann", "ag', True),
        ("json-object", '{"name": "Ann", "age": 30}\n\nHere', False),
        ("private-ipv4", "192.168.1", None),
    ],
)
def test_cut_off(name, text, valid):
    assert decide(name, text, ended=False)[0] is valid
    if valid is not False:
        assert decide(name, text)[0] is False


HOSTILE = {
    "long": "1" * 1_000_000,
    "long word": "a" * 1_000_000,
    "white space": " " * 1_000_000,
    "deep": "(" * 100_000 + "1" + ")" * 100_000,
    "deep in reach": "(" * 90 + "24" + ")" * 90,
    "signs": "-" * 190 + "24 // 1",
    "deep list": "[" * 199,
    "deep object": '{"name":' * 24,
    "tower": "9**9**9**9 // 1",
    "tower of products": "(9**64)**64**64 // 2",
    "negative power": "0 ** -1 // 1",
    "root": "4 ** (1 / 2) // 2",
    "digits": "٢٤ + ٠",
    "null": "\x00" * 50,
    "surrogate": "\ud800" * 20,
    "marks": '*"' * 500_000,
    "fences": "```\n" * 40,
    "spaces": "a" + " " * 190 + "b",
    "commas": "a, " * 60,
}


@EACH_FORM
def test_hostile_texts_get_a_label_in_bounded_time(name):
    for ended in (True, False):
        for kind, text in HOSTILE.items():
            before = time.process_time()
            valid, reason = decide(name, text, ended)
            assert valid in (False, None) or (valid and not ended), (kind, ended)
            assert len(reason) < LONGEST
            # Milliseconds; the first one reads the word lists.
            assert time.process_time() - before < 2, (kind, ended)


@EACH_FORM
@settings(max_examples=20)
@given(text=st.text(max_size=60), ended=st.booleans())
def test_any_text_gets_a_label(name, text, ended):
    valid, reason = decide(name, text, ended)
    assert valid in (True, False, None) and reason


DAYS = [f"2023-{m:02}-{d:02}" for m in range(20) for d in range(40)]
NUMBERS = list(map(str, range(2200)))
SQUARES = [f + r for f in "abcdefgh" for r in "12345678"]
SHORT = [piece + square for piece in ("", *"NBRQK") for square in SQUARES]
LONG = [one + other for one in SQUARES for other in SQUARES]


@pytest.mark.parametrize(
    ("name", "texts", "n"),
    [
        ("iso-date", DAYS, 365),
        ("leap-year", NUMBERS, 73),
        ("prime", NUMBERS, 168),
        ("chess-opening", SHORT, 20),
        ("chess-opening", LONG, 20),
    ],
)
def test_a_form_of_few_answers_has_as_many_as_it_should(name, texts, n):
    assert sum(decide(name, text)[0] is True for text in texts) == n


def test_roman_numerals_are_those_of_their_numbers():
    signs = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L")]
    signs += [(40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]

    def roman(n):
        text = ""
        for value, sign in signs:
            text, n = text + sign * (n // value), n % value
        return text

    assert all(decide("roman", roman(n))[0] is (10 < n < 4000) for n in range(1, 4005))


@pytest.mark.parametrize(
    ("name", "text", "valid"),
    [
        ("rhyme", "sea, see", None),  # the same sound
        ("rhyme", "leaf, aa", None),  # a word without a pronunciation
        ("rhyme", "photograph, laugh", True),
        ("rhyme", "love, move", False),
        ("same-ends", "America", None),  # a name
        ("seven-letters", "Michael", None),
        ("palindrome", "Hannah", None),
        ("five-words", "Yesterday I met Zorblax outside.", None),
        ("five-words", "Yesterday I met zorblax outside.", False),
        ("expression-24", "4(6)", False),
        ("python-10", "9**9**9**9 // 1", None),
        ("python-10", "4 ** 0 + 9 // 1", True),
        ("python-10", "57 / 100 * 100 // 57 + 9", False),  # 9.0, by rounding
        ("python-10", "(-8) ** (1 / 3) // 1", False),
        ("expression-24", "7 / 10 * 10 + 17", True),  # exactly
    ],
)
def test_what_the_word_lists_and_numbers_leave_open(name, text, valid):
    assert decide(name, text)[0] is valid


def test_the_word_lists_are_those_of_the_readme():
    folder = paths.package_data("tasks", "forms")
    told = (folder / "README.md").read_text(encoding="utf-8")
    for file in folder.iterdir():
        if file.suffix in (".gz", ".LICENSE"):
            assert hashlib.sha256(file.read_bytes()).hexdigest() in told, file.name
    known = [_is_word(word) for word in ("Anna", "racecar", "chicago", "qwrt")]
    assert known == [True, True, None, False]

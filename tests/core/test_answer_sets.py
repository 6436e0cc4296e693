"""Finite languages and predicates against every string over a small alphabet."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.errors import InvalidTaskError

ALPHABET = "ab1"
STRINGS = ["".join(s) for n in range(9) for s in itertools.product(ALPHABET, repeat=n)]
patterns = st.recursive(
    st.sampled_from(["a", "b", "1", "[ab]", "[a1]", "ab"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}|{p[1]})"),
        inner.map(lambda p: f"({p})?"),
        inner.map(lambda p: f"(?:{p}){{1,2}}"),
    ),
    max_leaves=4,
)


@given(patterns)
def test_a_pattern_has_the_strings_that_python_matches(pattern):
    found = cu.regex_answers(pattern)
    assert found == sorted(found, key=len) and len(set(found)) == len(found)
    short = {text for text in found if len(text) <= 8}
    assert short == {text for text in STRINGS if re.fullmatch(pattern, text)}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("[0-9]+", "infinitely many strings: replace"),
        ("[a-z]{6}", "308,915,776 strings, more than the 200,000"),
        ("^abc$", r"does not match '\^abc\$'.*leave out '\^' and '\$'"),
        ("(?i)abc", "cannot be enumerated"),
        (r"\bx", "cannot be enumerated"),
        ("[", "cannot be enumerated"),
    ],
)
def test_other_patterns_are_refused_with_the_size_or_the_remedy(pattern, said):
    with pytest.raises(InvalidTaskError, match=said):
        cu.regex_answers(pattern)


@pytest.mark.parametrize("lengths", [(1, 1), (2, 3), (1, 4)])
def test_a_predicate_is_asked_about_every_string(lengths):
    def is_palindrome(text):
        return text == text[::-1]

    found = cu.predicate_answers(is_palindrome, ALPHABET, lengths)
    least, most = lengths
    assert found == [s for s in STRINGS if least <= len(s) <= most and s == s[::-1]]


def test_symbols_of_several_letters_give_each_string_once():
    assert cu.predicate_answers(bool, ["a", "aa"], (1, 2)) == ["a", "aa", "aaa", "aaaa"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((bool, "abcdefghijklmnopqrstuvwxyz", (1, 6)), "make 321,272,406 strings, and at most"),
        ((bool, "ab", (1, 10**9)), "strings and more, and at most"),
        ((bool, "ab", (65, 65)), "strings and more, and at most"),
        ((bool, "a", (1, 10**9)), "make 1,000,000,000 strings, and"),
        ((bool, "ab", (3, 2)), r"lengths \(3, 2\): give the least"),
        ((bool, "ab", (0, 2)), "the least, from 1"),
        ((bool, "", (1, 2)), "alphabet"),
        ((int, "ab", (1, 2)), "the predicate fails on 'a' .*ValueError"),
    ],
)
def test_a_predicate_that_cannot_be_tried_is_refused(arguments, said):
    with pytest.raises(InvalidTaskError, match=said):
        cu.predicate_answers(*arguments)

"""Answers that need no list: a regular expression's language, the strings that fulfil a predicate.

Patterns, alphabets and functions in, complete lists of strings out, or a refusal with the size.
Knows nothing of prompts.
"""

import re
from collections.abc import Callable, Iterable
from itertools import product

from calib_utils.errors import InvalidTaskError

MAX_ANSWERS = 200_000
MAX_ASKED = 5_000_000  # strings for which a predicate is called


def regex_answers(pattern: str) -> list[str]:
    r"""Every string that a regular expression matches as a whole, short ones first.

    The dialect is that of `greenery`: classes, groups, alternatives and counts, where `\d` is 0 to
    9; no anchors, flags or look-around.

    >>> regex_answers("(red|blue)-[12]")
    ['red-1', 'red-2', 'blue-1', 'blue-2']

    Raises:
        InvalidTaskError: not such a pattern, or a language that is infinite or too large.
    """
    from greenery import parse  # a fifth of a second

    try:
        matched = re.compile(pattern).fullmatch
        language = parse(pattern)
        n_strings = language.cardinality()
    except OverflowError as error:
        raise InvalidTaskError(
            f"regular expression {pattern!r} matches infinitely many strings: replace '*', '+' and "
            "'{n,}' by counts such as '{1,3}'"
        ) from error
    except Exception as error:  # the parser fails in many ways
        raise InvalidTaskError(
            f"regular expression {pattern!r} cannot be enumerated ({type(error).__name__}: "
            f"{error}): {_DIALECT}"
        ) from error
    if n_strings > MAX_ANSWERS:
        raise InvalidTaskError(
            f"regular expression {pattern!r} matches {n_strings:,} strings, more than the "
            f"{MAX_ANSWERS:,} that exact evaluation is meant for: use a smaller one"
        )
    found = sorted(map(str, language.strings()), key=len)
    if other := [text for text in found if not matched(text)]:
        # Anchors are plain characters to the one and not to the other.
        raise InvalidTaskError(
            f"regular expression {pattern!r}: Python does not match {other[0]!r} by it, which its "
            f"enumeration has: {_DIALECT}"
        )
    return found


_DIALECT = (
    "use classes, groups, '|' and counts alone, and leave out '^' and '$' (whole answers are "
    "meant), flags and look-around"
)


def predicate_answers(
    predicate: Callable[[str], bool], alphabet: Iterable[str], lengths: tuple[int, int]
) -> list[str]:
    """Every string over an alphabet, of a length within bounds, for which a predicate is true.

    Args:
        alphabet: the symbols, such as `"abc"` or `["do", "re"]`.
        lengths: the least and the largest number of symbols.

    >>> predicate_answers(lambda text: text == text[::-1], "ab", (2, 3))
    ['aa', 'bb', 'aaa', 'aba', 'bab', 'bbb']

    Raises:
        InvalidTaskError: more strings than `MAX_ASKED`, bounds that are none, or a predicate that
            fails.
    """
    symbols = list(dict.fromkeys(alphabet))
    if not symbols or not all(isinstance(one, str) and one for one in symbols):
        raise InvalidTaskError(f"alphabet {alphabet!r}: give a text, or a list of texts")
    least, most = lengths
    if not all(type(n) is int for n in lengths) or not 1 <= least <= most:
        raise InvalidTaskError(f"lengths {lengths!r}: give the least, from 1, and the largest")
    # The exact size of a large bound would itself take long to write.
    asked = sum(len(symbols) ** n for n in range(least, min(most, 64) + 1))
    if asked > MAX_ASKED:
        raise InvalidTaskError(
            f"{len(symbols)} symbols at lengths {least} to {most} make {asked:,} strings"
            f"{' and more' if most > 64 else ''}, and at most {MAX_ASKED:,} are tried: bound the "
            "length, or name an enumerator"
        )
    found = []
    for n in range(least, most + 1):
        for text in map("".join, product(symbols, repeat=n)):
            try:
                fits = predicate(text)
            except Exception as error:
                raise InvalidTaskError(
                    f"the predicate fails on {text!r} ({type(error).__name__}: {error}): it is "
                    "called with one string and says whether it is an answer"
                ) from error
            if fits:
                found.append(text)
    return list(dict.fromkeys(found))

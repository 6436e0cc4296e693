"""The grammar criterion alone, by an offline checker: Harper's rules, plus scripts and spacing.

Harper (Apache-2.0, through the package `harper-py`) is an English grammar and spelling checker
made of rules; it knows no meaning and misses most wrong sentences made of right words. Two checks
of ours are added: letters of another script than Latin, and a missing space after a full stop.

What counts as an error, and what does not:

- Harper's findings on spelling, grammar, agreement, punctuation, capitals, repetition and spacing
  count. Its advice on style, word choice and readability does not.
- A word with a capital is taken for a name, so its spelling is not checked.
- American and British spelling are both right, also side by side.
- At the end of a cut-off text nothing counts that touches the last word.

The score is 10 without an error and 2 less for each, so that one error makes a text invalid at the
paper's threshold of 9.
"""

import re
import unicodedata
from functools import cache
from importlib.metadata import version

import pandas as pd

from calib_utils.errors import JudgeError
from calib_utils.labels import (
    HIGHEST,
    LOWEST,
    THRESHOLD,
    Item,
    Verdict,
    check_items,
    label_table,
    plain_text,
)

PER_ERROR = 2
# Harper's kinds of findings that are errors; the others are advice.
ERROR_KINDS = frozenset(
    (
        *("Agreement", "BoundaryError", "Capitalization", "Eggcorn", "Formatting", "Grammar"),
        *("Malapropism", "Miscellaneous", "Nonstandard", "Punctuation", "Repetition", "Spelling"),
        "Typo",
    )
)
# Takes names such as Mia for initials.
_IGNORED_RULES = {"OrthographicConsistency"}
_DIALECTS = ("AMERICAN", "BRITISH")
# Two small letters before, a capital and a small one after: no abbreviation and no file name.
_NO_SPACE = re.compile(r"[a-z]{2}[.!?][\"”]?(?=[A-Z][a-z])")
_SHOWN = 3  # findings named in a reason


class LanguageChecker:
    """Harper with a script and spacing check, as a judge of grammar.

    Raises:
        JudgeError: `harper-py` is not installed.
    """

    name = "harper"
    criteria = ("grammar",)
    threshold = THRESHOLD

    def __init__(self):
        _linter(_DIALECTS[0])

    @property
    def identity(self) -> dict:
        """What a label depends on beside the item."""
        return {"threshold": self.threshold, "harper": version("harper-py")}

    def judge(self, items: pd.DataFrame) -> pd.DataFrame:
        """One row of labels per item, in order (see `labels.label_table`)."""
        return label_table(map(self._verdict, check_items(items)), self.criteria)

    def _verdict(self, item: Item) -> Verdict:
        if not item.text.strip():
            return Verdict(reason="not judged: no text")
        found = findings(item.text, item.ended)
        score = max(LOWEST, HIGHEST - PER_ERROR * len(found))
        shown = "; ".join(found[:_SHOWN]) + ("; ..." if len(found) > _SHOWN else "")
        return Verdict(grammar=score, reason=shown or "nothing found")


def findings(text: str, ended: bool = True) -> list[str]:
    """The errors in a text, in order, each as `kind: 'the words'`.

    >>> findings("He go home.The end")
    ["Agreement: 'go'", "Spacing: 'me.'"]
    """
    text = plain_text(text)
    own = list(_own_findings(text))
    american, british = ({*_harper(text, dialect, own)} for dialect in _DIALECTS)
    spans = [found for found in american if found[2] != "Spelling" or found in british] + own
    # Where the last word begins.
    last_word = len(text) if ended else len(text) - len(re.split(r"\s", text)[-1])
    return [
        f"{kind}: {text[start:stop][:40]!r}"
        for start, stop, kind in sorted(spans)
        if ended or stop < last_word
    ]


def _own_findings(text: str):
    for match in _NO_SPACE.finditer(text):
        yield *match.span(), "Spacing"
    start = None
    for at, letter in enumerate(text + " "):
        foreign = letter == "\N{REPLACEMENT CHARACTER}" or (
            letter.isalpha()
            and not unicodedata.name(letter, "?").startswith(("LATIN", "FEMININE", "MASCULINE"))
        )
        if foreign and start is None:
            start = at
        elif not foreign and start is not None:
            yield start, at, "Script"
            start = None


def _harper(text: str, dialect: str, own: list):
    for rule, lints in _linter(dialect).organized_lints(text, language="plaintext").items():
        for lint in lints:
            span = lint.span.start, lint.span.end
            named = lint.lint_kind == "Spelling" and lint.problem_text[:1].isupper()
            known = any(span[0] < stop and start < span[1] for start, stop, _ in own)
            if (
                lint.lint_kind in ERROR_KINDS
                and rule not in _IGNORED_RULES
                and not (named or known)
            ):
                yield *span, lint.lint_kind


@cache
def _linter(dialect: str):
    try:
        from harper import Dialect, Linter
    except ImportError as error:
        raise JudgeError(
            "the language checker needs the package harper-py: pip install harper-py"
        ) from error
    return Linter(dialect=getattr(Dialect, dialect))

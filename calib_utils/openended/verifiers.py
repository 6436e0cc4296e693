"""Labels of texts: by lists and forms, by a grammar checker, by people; kept beside the texts.

A judge is an object with `name`, `criteria` (which of `CRITERIA` it scores), `identity` (what a
label depends on beside the item) and `judge(items) -> labels`. Knows no model.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from calib_utils import files, paths
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import JudgeError, ResultsError, UnknownNameError
from calib_utils.openended import lists
from calib_utils.openended.prompts import VERIFIERS, open_prompts
from calib_utils.openended.sweeps import unique_texts
from calib_utils.results import conventions, records

CRITERIA = ("grammar", "semantics", "overall")
LABEL_COLUMNS = (*CRITERIA, "valid", "reason")
ITEM_COLUMNS = ("prompt", "text", "ended")
LOWEST, HIGHEST = 1, 10
THRESHOLD = 9  # the paper's (App. A): valid where every scored criterion reaches it


@dataclass(frozen=True)
class Item:
    """One text to judge: the user's question, the model's whole response, and whether it ended.

    `ended` is False where the token limit cut the text off, which no judge may punish.
    """

    prompt: str
    text: str
    ended: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the three."""
        return conventions.digest([self.prompt, self.text, self.ended])


@dataclass(frozen=True)
class Verdict:
    """Scores from 1 to 10 with a reason; None for a criterion that was not scored."""

    grammar: int | None = None
    semantics: int | None = None
    overall: int | None = None
    reason: str = ""


def plain_text(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_items(items: pd.DataFrame) -> list[Item]:
    """The rows of a table of items, in order.

    Raises a JudgeError where a column is missing, or a cell is not of its kind; it names the row.
    """
    missing = [name for name in ITEM_COLUMNS if name not in getattr(items, "columns", ())]
    if missing:
        raise JudgeError(f"items need the columns {', '.join(ITEM_COLUMNS)}: {missing} missing")
    found = [Item(*row) for row in items[list(ITEM_COLUMNS)].astype(object).to_numpy().tolist()]
    for row, item in enumerate(found):
        if not isinstance(item.prompt, str) or not isinstance(item.text, str):
            raise JudgeError(f"item {row}: prompt and text must be strings: {item}")
        if not isinstance(item.ended, bool):
            raise JudgeError(f"item {row}: ended must be True or False, got {item.ended!r}")
    return found


def label_table(verdicts: Iterable[Verdict], criteria: Iterable[str]) -> pd.DataFrame:
    """Verdicts as a judge returns them: one row each, in order, columns `LABEL_COLUMNS`.

    `valid` is True where every criterion of the judge reaches the threshold, False where one does
    not, and NA where one is missing: an item without a verdict is never counted either way.
    """
    table = pd.DataFrame(map(astuple, verdicts), columns=[*CRITERIA, "reason"], dtype=object)
    table = table.astype(dict.fromkeys(CRITERIA, "Int64"))
    scores = table[list(criteria)]
    valid = (scores >= THRESHOLD).all(axis=1).astype("boolean").where(scores.notna().all(axis=1))
    reason = table.reason.map(plain_text).astype(str)
    return table.assign(valid=valid, reason=reason)[list(LABEL_COLUMNS)]


class _Checker:
    """A judge whose verdict on an item depends on nothing but the item."""

    def judge(self, items: pd.DataFrame) -> pd.DataFrame:
        """One row of labels per item, in order (see `label_table`)."""
        return label_table(map(self._verdict, check_items(items)), self.criteria)


# Labels by people, in a CSV sheet.

SHEET_COLUMNS = ("item", "prompt", "text", "ended", "annotator", "valid", "note")
_SHEET_ANSWERS = {"yes": True, "no": False, "": None}


def write_sheet(path: Path | str, items: pd.DataFrame) -> Path:
    """Writes a CSV sheet for one person to label: each item once, in order, `SHEET_COLUMNS`.

    The person fills in `annotator` (a name or code), `valid` (yes, no, or empty where undecided)
    and perhaps `note`. Raises a JudgeError where the place cannot be written.
    """
    rows = [
        (own.digest, _inert(own.prompt), _inert(own.text), "yes" if own.ended else "no")
        for own in dict.fromkeys(check_items(items))
    ]
    table = pd.DataFrame(rows, columns=SHEET_COLUMNS[:4]).reindex(columns=SHEET_COLUMNS)
    try:
        with files.whole(Path(path)) as draft:
            table.to_csv(draft, index=False, quoting=csv.QUOTE_ALL)
    except OSError as error:
        raise JudgeError(f"cannot write {path} ({error}): choose another place") from error
    return Path(path)


def _inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula and that UTF-8 can hold."""
    return ("'" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else "") + plain_text(text)


def read_sheets(items: pd.DataFrame, *paths: Path | str) -> pd.DataFrame:
    """What people said of the items: a row per item, in order, and a boolean column per annotator.

    NA where a person has no label. `judges.krippendorff_alpha` takes the table, `judges.compare`
    two columns. A JudgeError names the file and row of what is no label of one of the items.
    """
    digests = [item.digest for item in check_items(items)]
    labels: dict[str, dict[str, bool]] = {}
    for path in paths:
        try:
            sheet = pd.read_csv(
                files.regular(path), dtype=str, keep_default_na=False, encoding="utf-8-sig"
            )
        except (OSError, ValueError) as error:
            raise JudgeError(f"{path} is unreadable ({error}): save it as CSV in UTF-8") from error
        if tuple(sheet) != SHEET_COLUMNS:
            raise JudgeError(f"{path}: the first line must be {','.join(SHEET_COLUMNS)}")
        for number, row in enumerate(sheet.fillna("").itertuples(index=False), start=1):
            place, answer = f"{path}, text {number}", row.valid.lower().strip()
            person = row.annotator.strip()
            if answer not in _SHEET_ANSWERS:
                raise JudgeError(f"{place}: valid={row.valid!r} must be yes, no or empty")
            if not answer:
                continue
            if not person:
                raise JudgeError(f"{place}: a label without annotator; write a name or code")
            if row.item not in digests:
                raise JudgeError(f"{place} is not among the items: give those of the sheet")
            if row.item in labels.setdefault(person, {}):
                raise JudgeError(f"{place}: {person!r} labelled it before; keep one of the rows")
            labels[person][row.item] = _SHEET_ANSWERS[answer]
    columns = {name: [own.get(digest) for digest in digests] for name, own in labels.items()}
    return pd.DataFrame(columns, index=range(len(digests)), dtype="boolean")


# Labels by a program that decides: a list of names (`lists`) or a form.


class ExactJudge(_Checker):
    """Labels by lists and forms: `overall` is 10 for a valid answer and 1 for an invalid one.

    An item's prompt says which decides (`known_prompts`); items with another prompt are NA.

    Args:
        verifiers: the names of those that may decide, all by default. The labels depend on them
            and on no other.
    """

    name = "exact"
    criteria = ("overall",)

    def __init__(self, verifiers: Iterable[str] = VERIFIERS):
        self.verifiers = sorted({_named(name) for name in verifiers})

    @property
    def identity(self) -> dict:
        """What a label depends on beside the item: what each list says.

        A form is a rule of code, for which the convention stands.
        """
        own = {n: lists.fingerprint(n) if n in lists.KINDS else None for n in self.verifiers}
        return {"verifiers": own}

    def _verdict(self, item: Item) -> Verdict:
        name = known_prompts().get(item.prompt)
        if name not in self.verifiers:
            return Verdict(reason="not judged: no list or form for this prompt")
        valid, reason = decide(name, item.text, item.ended)
        score = None if valid is None else HIGHEST if valid else LOWEST
        return Verdict(overall=score, reason=reason)


def decide(name: str, text: str, ended: bool = True) -> tuple[bool | None, str]:
    """Whether a whole answer is valid by a list or form: (True, False or None, reason).

    Raises an UnknownNameError where there is none of that name.
    """
    return VERIFIERS[_named(name)](name, text, ended)


def _named(name: str) -> str:
    if name not in VERIFIERS:
        raise UnknownNameError("verifier", name, VERIFIERS)
    return name


@cache
def known_prompts() -> dict[str, str]:
    """The prompts that a program decides, each with its list or form."""
    table = pd.read_csv(paths.package_data("tasks", "gazetteer", "prompts.csv"))
    own = {prompt.prompt: prompt.verifier for prompt in open_prompts() if prompt.verifier}
    return own | dict(zip(table["prompt"], table["kind"], strict=True))


# Grammar alone, by Harper: an offline checker of English made of rules, which knows no meaning. Two
# checks of ours are added: letters of another script than Latin, and a missing space after a full
# stop. A word with a capital is taken for a name, so its spelling is not checked. American and
# British spelling are both right. In a cut-off text nothing counts that touches the last word.

PER_ERROR = 2  # taken from 10, so that one error makes a text invalid
# Harper's kinds of findings that are errors; the others are advice.
ERROR_KINDS = {
    *("Agreement", "BoundaryError", "Capitalization", "Eggcorn", "Formatting", "Grammar", "Typo"),
    *("Malapropism", "Miscellaneous", "Nonstandard", "Punctuation", "Repetition", "Spelling"),
}
# Takes names such as Mia for initials.
_IGNORED_RULES = {"OrthographicConsistency"}
# Two small letters before, a capital and a small one after: no abbreviation and no file name.
_NO_SPACE = re.compile(r"[a-z]{2}[.!?][\"”]?(?=[A-Z][a-z])")
_LATIN = ("LATIN", "FEMININE", "MASCULINE")  # how the names of Latin letters and of ª, º begin
_SHOWN = 3  # findings named in a reason


class LanguageChecker(_Checker):
    """Harper with a script and spacing check, as a judge of grammar."""

    name = "harper"
    criteria = ("grammar",)

    @property
    def identity(self) -> dict:
        """What a label depends on beside the item."""
        return {"threshold": THRESHOLD, "harper": version("harper-py")}

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
    own = [(*match.span(), "Spacing") for match in _NO_SPACE.finditer(text)]
    foreign = "".join("x" if _is_foreign(c) else " " for c in text)
    own += [(*match.span(), "Script") for match in re.finditer("x+", foreign)]
    american, british = ({*_harper(text, dialect, own)} for dialect in ("AMERICAN", "BRITISH"))
    spans = [found for found in american if found[2] != "Spelling" or found in british] + own
    # Where the last word begins.
    last_word = len(text) if ended else len(text) - len(re.split(r"\s", text)[-1])
    return [
        f"{kind}: {text[start:stop][:40]!r}"
        for start, stop, kind in sorted(spans)
        if ended or stop < last_word
    ]


def _is_foreign(letter: str) -> bool:
    latin = unicodedata.name(letter, "?").startswith(_LATIN)
    return letter == "\N{REPLACEMENT CHARACTER}" or (letter.isalpha() and not latin)


def _harper(text: str, dialect: str, own: list):
    for rule, lints in _linter(dialect).organized_lints(text, language="plaintext").items():
        for lint in lints:
            kind, (start, stop) = lint.lint_kind, (lint.span.start, lint.span.end)
            named = kind == "Spelling" and lint.problem_text[:1].isupper()
            known = any(start < end and begin < stop for begin, end, _ in own)
            if kind in ERROR_KINDS and rule not in _IGNORED_RULES and not (named or known):
                yield start, stop, kind


@cache
def _linter(dialect: str):
    from harper import Dialect, Linter

    return Linter(dialect=getattr(Dialect, dialect))


# Labels kept beside stored texts: they are read again while the texts, the judge and the convention
# are the same, else made anew.

COLUMNS = ["prompt_id", "text", "ended", *LABEL_COLUMNS]
_AGAIN = "delete it, labels are made anew"


def path_of(results_dir: str | Path | None, model_key: str, name: str, judge) -> Path | None:
    """Where a judge's labels of the texts `name` of a model are kept."""
    if results_dir is None:
        return None
    return Path(results_dir) / model_key / "labels" / f"{name}@{judge.name}.parquet"


def labels_of(
    texts: pd.DataFrame, prompts: tuple[OpenPrompt, ...], judge, path: Path | None = None
) -> pd.DataFrame:
    """Each different text of each prompt, labelled by a judge: columns `COLUMNS`.

    Args:
        texts: prompt_id, category, text, ended.
        prompts: those that the texts answer.
        path: where labels are kept; None keeps none.
    """
    items = unique_texts(texts)
    items["prompt"] = items.prompt_id.map({prompt.id: prompt.prompt for prompt in prompts})
    keys = items[["prompt_id", "prompt", "text", "ended"]]
    record = {
        # A plain list of built-in types, so that the digest is of the texts, not of a data frame.
        "texts_sha256": conventions.digest(keys.astype(object).values.tolist()),
        "judge": {"name": judge.name, **judge.identity},
        "convention": conventions.CURRENT[conventions.LABELS],
    }
    if path is not None:
        with suppress(ResultsError):  # none there, or none readable
            kept, stored = read(path)
            if stored == json.loads(json.dumps(record)):
                return kept.astype({**dict.fromkeys(CRITERIA, "Int64"), "valid": "boolean"})
    labels = judge.judge(items[list(ITEM_COLUMNS)])
    found = pd.concat([items[["prompt_id", "text", "ended"]], labels], axis=1)[COLUMNS]
    if path is not None:
        records.write(path, found, record)
    return found


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept labels, and the record of what they were made from; else a ResultsError."""
    table, record = records.read(path, conventions.LABELS, (), _AGAIN)
    if missing := sorted(set(COLUMNS) - set(table)):
        raise ResultsError(f"{path} lacks {missing}: {_AGAIN}")
    return table, record

"""What every judge is given and returns: the table of items and the table of labels.

A judge is an object with `name`, `criteria` (which of `CRITERIA` it scores) and
`judge(items) -> labels`. People label in a CSV sheet. Knows no particular judge and no model.
"""

import csv
import hashlib
import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from calib_utils import files, paths
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import JudgeError, ResultsError
from calib_utils.files import sha256_of_file
from calib_utils.openended.prompts import open_prompts
from calib_utils.openended.sweeps import unique_texts
from calib_utils.results import conventions, records

CRITERIA = ("grammar", "semantics", "overall")
LABEL_COLUMNS = (*CRITERIA, "valid", "reason")
ITEM_COLUMNS = ("prompt", "text", "ended")
LOWEST, HIGHEST = 1, 10
SHEET_COLUMNS = ("item", "prompt", "text", "ended", "annotator", "valid", "note")
_SHEET_ANSWERS = {"yes": True, "no": False, "": None}
# The paper's threshold (App. A): valid where every scored criterion reaches it.
THRESHOLD = 9


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
        content = json.dumps([self.prompt, self.text, self.ended])
        return hashlib.sha256(content.encode()).hexdigest()


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

    Raises:
        JudgeError: a column is missing, or a cell is not of its kind; the message names the row.
    """
    missing = [name for name in ITEM_COLUMNS if name not in getattr(items, "columns", ())]
    if missing:
        raise JudgeError(f"items need the columns {', '.join(ITEM_COLUMNS)}: {missing} missing")
    found = []
    for row, (prompt, text, ended) in enumerate(
        items[list(ITEM_COLUMNS)].itertuples(index=False, name=None)
    ):
        if not isinstance(prompt, str) or not isinstance(text, str):
            raise JudgeError(
                f"item {row}: prompt and text must be strings, got {prompt!r}, {text!r}"
            )
        if pd.isna(ended) or ended not in (True, False):
            raise JudgeError(f"item {row}: ended must be True or False, got {ended!r}")
        found.append(Item(prompt, text, bool(ended)))
    return found


def check_threshold(threshold: int) -> int:
    """The threshold itself.

    Raises:
        JudgeError: it is no integer from 1 to 10.
    """
    if type(threshold) is not int or not LOWEST <= threshold <= HIGHEST:
        raise JudgeError(f"threshold={threshold!r}: must be an integer from {LOWEST} to {HIGHEST}")
    return threshold


def label_table(
    verdicts: Iterable[Verdict], criteria: tuple[str, ...], threshold: int = THRESHOLD
) -> pd.DataFrame:
    """Verdicts as a judge returns them: one row each, in order.

    `valid` is True where every criterion of the judge reaches the threshold, False where one does
    not, and NA where one is missing: an item without a verdict is never counted either way.
    """
    verdicts = list(verdicts)
    columns = {name: [getattr(verdict, name) for verdict in verdicts] for name in CRITERIA}
    table = pd.DataFrame({name: pd.array(columns[name], dtype="Int64") for name in CRITERIA})
    valid = []
    for verdict in verdicts:
        scores = [getattr(verdict, name) for name in criteria]
        valid.append(None if None in scores else min(scores) >= threshold)
    table["valid"] = pd.array(valid, dtype="boolean")
    table["reason"] = pd.Series([plain_text(verdict.reason) for verdict in verdicts], dtype=str)
    return table


def write_sheet(path: Path | str, items: pd.DataFrame, annotator: str = "") -> Path:
    """Writes a CSV sheet for one person to label: each item once, in order, `SHEET_COLUMNS`.

    The person fills in `annotator` (a name or code), `valid` (yes, no, or empty where undecided)
    and, if there is something to say, `note`. `item` is the digest by which the sheet is read.

    Raises:
        JudgeError: not a table of items, or the place cannot be written.
    """
    rows = [
        [item.digest, _inert(item.prompt), _inert(item.text), "yes" if item.ended else "no"]
        for item in dict.fromkeys(check_items(items))
    ]
    table = pd.DataFrame([[*row, annotator, "", ""] for row in rows], columns=SHEET_COLUMNS)
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

    NA where a person has no label. `agreement` takes the columns.

    Raises:
        JudgeError: a file that is no sheet, a label other than yes, no or empty, a label without
            annotator or of a text that is not among the items, or two of one person for a text.
    """
    digests = [item.digest for item in check_items(items)]
    labels: dict[str, dict[str, bool]] = {}
    for path in paths:
        try:
            sheet = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise JudgeError(f"{path} is unreadable ({error}): save it as CSV in UTF-8") from error
        if tuple(sheet) != SHEET_COLUMNS:
            raise JudgeError(f"{path}: the first line must be {','.join(SHEET_COLUMNS)}")
        for number, row in enumerate(sheet.fillna("").itertuples(index=False), start=1):
            place, answer, person = f"{path}, text {number}", row.valid.lower(), row.annotator
            if answer.strip() not in _SHEET_ANSWERS:
                raise JudgeError(f"{place}: valid={row.valid!r} must be yes, no or empty")
            if (label := _SHEET_ANSWERS[answer.strip()]) is None:
                continue
            if not person.strip():
                raise JudgeError(f"{place}: a label without annotator; write a name or code")
            if row.item not in digests:
                raise JudgeError(f"{place} is not among the items: give those of the sheet")
            own = labels.setdefault(person.strip(), {})
            if row.item in own:
                raise JudgeError(f"{place}: {person!r} labelled it before; keep one of the rows")
            own[row.item] = label
    columns = {name: [own.get(digest) for digest in digests] for name, own in labels.items()}
    return pd.DataFrame(columns, index=range(len(digests)), dtype="boolean")


# Labels for prompts that ask for one item of a known kind: a list of English names decides.
#
# The whole answer must be one listed name after a stated normalisation (`normalise`); a sentence
# around it is not an answer to "name a city". Knows the lists under `data/tasks/gazetteer`, whose
# README names their sources. Knows no model.
#
# Labels. *Valid*: the answer is a listed name. *Invalid*: it is not. *Ambiguous* (NA): the lists
# leave it open, such as territories and disputed countries, historical city names, an element's
# symbol, a city with a region that the lists do not hold, or an answer in another script than
# Latin, since the lists are of English names. A city may be followed by its country, and in the
# US and the UK by its state or nation; a wrong one makes the answer invalid. Places below 15,000
# people are not listed, so naming one counts as invalid.
#
# Cut-off texts. A text that the token limit cut off is valid where it is the beginning of a valid
# name ("San Franc"), since it may have gone on well; an empty one is NA.

KINDS = {"city": "cities", "country": "countries", "element": "elements", "us-state": "us-states"}
_NATIONS = {"england": "ENG", "scotland": "SCT", "wales": "WLS", "northern ireland": "NIR"}
# Letters that no decomposition takes apart.
_PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d"})
_AROUND = "\"'`*_“”‘’«».!?,;: \t\r\n"
_SILENT = re.compile("['’‘ʻʼ`´.]")


class GazetteerJudge:
    """Labels by list: `overall` is 10 for a valid answer and 1 for an invalid one.

    An item's prompt says which list decides (`known_prompts`); items with another prompt are NA.
    """

    name = "gazetteer"
    criteria = ("overall",)
    kind = None  # part of the identity of stored labels

    @property
    def identity(self) -> dict:
        """What a label depends on beside the item."""
        lists = sorted(paths.package_data("tasks", "gazetteer").glob("*.csv"))
        digests = {path.name: sha256_of_file(path) for path in lists}
        return {"kind": self.kind, "lists": digests}

    def judge(self, items: pd.DataFrame) -> pd.DataFrame:
        """One row of labels per item, in order (see `verifiers.label_table`)."""
        return label_table(map(self._verdict, check_items(items)), self.criteria)

    def _verdict(self, item: Item) -> Verdict:
        kind = known_prompts().get(item.prompt)
        if kind is None:
            return Verdict(reason="not judged: no list for this prompt")
        valid, reason = decide(kind, item.text, item.ended)
        score = None if valid is None else HIGHEST if valid else LOWEST
        return Verdict(overall=score, reason=reason)


@cache
def known_prompts() -> dict[str, str]:
    """The prompts that a list decides, each with its kind."""
    table = pd.read_csv(paths.package_data("tasks", "gazetteer", "prompts.csv"))
    own = {prompt.prompt: prompt.gazetteer for prompt in open_prompts() if prompt.gazetteer}
    return own | dict(zip(table["prompt"], table["kind"], strict=True))


def normalise(text: str) -> str:
    """The form in which answers and listed names are compared.

    In this order: white space, quotation and emphasis marks and punctuation around the text are
    dropped; case and accents are ignored; apostrophes and full stops are dropped; hyphens are
    spaces; "&" is "and"; "St" is "Saint"; one leading "the" is dropped; runs of spaces are one.
    Nothing inside is corrected otherwise: a misspelled name is another name.

    >>> normalise(" **The St. John's**.\\n")
    'saint johns'
    """
    text = unicodedata.normalize("NFKC", text).strip(_AROUND).casefold().translate(_PLAIN)
    decomposed = unicodedata.normalize("NFKD", text)
    text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    text = _SILENT.sub("", text)
    text = re.sub("[-‐‑–]", " ", text).replace("&", " and ")
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    text = re.sub(r"\bst\b", "saint", text)
    return text.removeprefix("the ")


def decide(kind: str, text: str, ended: bool = True) -> tuple[bool | None, str]:
    """Whether a whole answer names an item of a kind: (True, False or None, reason).

    >>> decide("city", "Valparaíso, Chile.")[0], decide("city", "Paris, Japan")[0]
    (True, False)
    """
    answer = normalise(text)
    names = _names(kind)
    if not answer:
        return (None if not ended else False), "empty"
    found = names.get(answer)
    if found is None and kind == "city":
        inside = re.fullmatch(r"([^(]+)\(([^()]+)\)", answer)
        name, *places = inside.groups() if inside else answer.split(",")
        where = names.get(normalise(name))
        if where is not None and places:
            return _placed(where, [normalise(place) for place in places], ended)
    if found is not None:
        return (None, f"ambiguous: {answer}") if found.ambiguous else (True, f"listed: {answer}")
    if not ended and _begins_a_valid_name(kind, answer):
        return True, f"cut off: {answer} begins a listed name"
    if any(x.isalpha() and not unicodedata.name(x, "?").startswith("LATIN") for x in answer):
        return None, f"ambiguous: {answer[:40]!r} is not in Latin letters"
    return False, f"not a listed {kind}: {answer[:80]!r}"


@dataclass
class _Entry:
    """What a list says of a normalised name: where it is; ambiguous unless a row calls it valid."""

    regions: set[str] = field(default_factory=set)
    ambiguous: bool = True


@cache
def _names(kind: str) -> dict[str, _Entry]:
    path = paths.package_data("tasks", "gazetteer", f"{KINDS[kind]}.csv")
    # "Namibia" has the code NA.
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    entries: dict[str, _Entry] = {}
    for name, label, where in table.itertuples(index=False, name=None):
        entry = entries.setdefault(normalise(name), _Entry())
        entry.regions.update(where.split())
        entry.ambiguous &= label == "ambiguous"
    return entries


@cache
def _valid_names(kind: str) -> list[str]:
    return sorted(name for name, entry in _names(kind).items() if not entry.ambiguous)


def _begins_a_valid_name(kind: str, start: str) -> bool:
    names = _valid_names(kind)
    at = bisect_left(names, start)
    return at < len(names) and names[at].startswith(start)


@cache
def _places(region: str) -> frozenset[str]:
    """What may follow a city of a region: names of the country, of the state and its code."""
    country, _, part = region.partition("-")
    found = {name for name, entry in _names("country").items() if country in entry.regions}
    found |= {name for name, code in _NATIONS.items() if country == "GB" and code == part}
    if country == "US":
        found |= {name for name, entry in _names("us-state").items() if region in entry.regions}
        found.add(part.casefold())
    return frozenset(found)


@cache
def _known_places() -> frozenset[str]:
    regions = {region for entry in _names("city").values() for region in entry.regions}
    return frozenset().union(*map(_places, regions))


def _placed(entry: _Entry, places: list[str], ended: bool) -> tuple[bool | None, str]:
    """A city with where it is: every place named must fit one and the same region."""
    told = ", ".join(places)[:80]
    whole, last = (places, "") if ended else (places[:-1], places[-1])
    for region in entry.regions:
        known = _places(region)
        if known.issuperset(whole) and (ended or any(name.startswith(last) for name in known)):
            return (None, "ambiguous name") if entry.ambiguous else (True, f"listed in {region}")
    unknown = set(places) - _known_places()
    if unknown:
        return None, f"ambiguous: the lists do not say where {min(unknown)[:40]!r} is"
    return False, f"no city of that name in {told!r}"


# The grammar criterion alone, by an offline checker: Harper's rules, plus scripts and spacing.
#
# Harper (Apache-2.0, through the package `harper-py`) is an English grammar and spelling checker
# made of rules; it knows no meaning and misses most wrong sentences made of right words. Two
# checks of ours are added: letters of another script than Latin, and a missing space after a full
# stop.
#
# What counts as an error, and what does not:
#
# - Harper's findings on spelling, grammar, agreement, punctuation, capitals, repetition and
# spacing count. Its advice on style, word choice and readability does not. - A word with a
# capital is taken for a name, so its spelling is not checked. - American and British spelling are
# both right, also side by side. - At the end of a cut-off text nothing counts that touches the
# last word.
#
# The score is 10 without an error and 2 less for each, so that one error makes a text invalid at
# the paper's threshold of 9.

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
        """One row of labels per item, in order (see `verifiers.label_table`)."""
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


# Labels of stored texts: each different text judged once, kept beside the texts, read again.
#
# Knows judges and files. Kept labels stand for judging only while the texts, the judge and the
# convention are the same, the judge's lists and version included; else they are made anew.

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
    """Each text of each prompt, labelled by a judge.

    Args:
        texts: prompt_id, category, text, ended; texts that are the same are judged once.
        prompts: those that the texts answer.
        judge: see `labels`; its `identity` says what a label depends on beside the text.
        path: where labels are kept; None keeps none.

    Returns:
        Columns `COLUMNS`, a row per prompt and text.

    Raises:
        ResultsError: the labels cannot be written.
    """
    asked = {prompt.id: prompt.prompt for prompt in prompts}
    items = unique_texts(texts)
    items["prompt"] = items.prompt_id.map(asked)
    keys = items[["prompt_id", "prompt", "text", "ended"]]
    record = {
        # A plain list of built-in types, so that the digest is of the texts, not of a data frame.
        "texts_sha256": conventions.digest(keys.astype(object).values.tolist()),
        "judge": {"name": judge.name, **judge.identity},
        "convention": conventions.CURRENT[conventions.LABELS],
    }
    found = None if path is None else _kept(path, record)
    if found is None:
        labels = judge.judge(items[["prompt", "text", "ended"]])
        found = pd.concat([items[["prompt_id", "text", "ended"]], labels], axis=1)[COLUMNS]
        if path is not None:
            records.write(path, found, record)
    return found


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept labels, and the record of what they were made from.

    Raises:
        ResultsError: not such a file, or not whole.
    """
    table, record = records.read(path, conventions.LABELS, (), _AGAIN)
    if missing := sorted(set(COLUMNS) - set(table)):
        raise ResultsError(f"{path} lacks {missing}: {_AGAIN}")
    return table, record


def _kept(path: Path, record: dict) -> pd.DataFrame | None:
    """The kept labels; None where there are none, of other texts or judge, or none readable."""
    try:
        frame, kept = read(path)
    except ResultsError:
        return None
    if kept != json.loads(json.dumps(record)):
        return None
    integers = {name: "Int64" for name in ("grammar", "semantics", "overall")}
    return frame.astype({**integers, "valid": "boolean"})

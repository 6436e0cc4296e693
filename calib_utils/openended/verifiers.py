"""Labels of texts: by lists of names, by a grammar checker, by people; kept beside the texts.

A judge is an object with `name`, `criteria` (which of `CRITERIA` it scores), `identity` (what a
label depends on beside the item) and `judge(items) -> labels`. Knows no model.
"""

import csv
import hashlib
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
from calib_utils.errors import JudgeError, ResultsError
from calib_utils.openended.prompts import open_prompts
from calib_utils.openended.sweeps import unique_texts
from calib_utils.results import conventions, records

CRITERIA = ("grammar", "semantics", "overall")
LABEL_COLUMNS = (*CRITERIA, "valid", "reason")
ITEM_COLUMNS = ("prompt", "text", "ended")
LOWEST, HIGHEST = 1, 10
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
        (own.digest, _inert(own.prompt), _inert(own.text), "yes" if own.ended else "no", "", "", "")
        for own in dict.fromkeys(check_items(items))
    ]
    table = pd.DataFrame(rows, columns=SHEET_COLUMNS)
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


# Labels for prompts that ask for one item of a known kind: a list of names decides.
#
# The whole answer must be one listed name after a stated normalisation (`normalise`); a sentence
# around it is not an answer to "name a city". `data/tasks/gazetteer` names the lists' sources.
#
# *Ambiguous* (NA) is what the lists leave open: names in other languages, territories, disputed
# and historical names, codes of states and symbols of elements; beside the lists, an official form
# ("the Kingdom of Spain", "Seoul City"), a city with a region that they do not hold or that is
# disputed, and an answer in another script than Latin. A city may be followed by its country, and
# in the US and the UK by its state or nation; a wrong one makes the answer invalid. Places below
# 15,000 people are not listed, so naming one counts as invalid. A text that the token limit cut off
# is valid where it begins a valid name ("San Franc"), since it may have gone on well.

KINDS = {"city": "cities", "country": "countries", "element": "elements", "us-state": "us-states"}
_NATIONS = {"england": "ENG", "scotland": "SCT", "wales": "WLS", "northern ireland": "NIR"}
# Letters that no decomposition takes apart.
_PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d"})
_AROUND = "\"'`*_“”‘’«».!?,;: \t\r\n"
_SHORT = {"st": "saint", "ste": "sainte", "ft": "fort", "mt": "mount"}
# Words around a listed name that leave it open: "Federal Republic of Nigeria", "Tokyo City".
_OFFICIAL = {
    "city": re.compile("city of (.+)|(.+) city"),
    "us-state": re.compile("(?:state|commonwealth) of (.+)|(.+) state"),
    "country": re.compile(
        "(?:(?:democratic|peoples|federal|federative|federated|islamic|arab|united|socialist|"
        "cooperative|plurinational|bolivarian|hashemite|independent|oriental|grand) )*"
        "(?:republic|kingdom|states?|commonwealth|union|federation|principality|duchy|sultanate) "
        "of (?:the )?(.+)"
    ),
}
_SILENT = re.compile("['’‘ʻʼ`´.]")


class GazetteerJudge(_Checker):
    """Labels by list: `overall` is 10 for a valid answer and 1 for an invalid one.

    An item's prompt says which list decides (`known_prompts`); items with another prompt are NA.
    """

    name = "gazetteer"
    criteria = ("overall",)

    @property
    def identity(self) -> dict:
        """What a label depends on beside the item; `kind` is part of labels already stored."""
        lists = sorted(paths.package_data("tasks", "gazetteer").glob("*.csv"))
        return {"kind": None, "lists": {path.name: files.sha256_of_file(path) for path in lists}}

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
    spaces; "&" is "and"; "St", "Ste", "Ft" and "Mt" are written out; one leading "the" is dropped;
    runs of spaces are one. Nothing else is corrected: a misspelled name is another name.

    >>> normalise(" **The St. John's**.\\n")
    'saint johns'
    """
    text = unicodedata.normalize("NFKC", text).strip(_AROUND).casefold().translate(_PLAIN)
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    text = _SILENT.sub("", text)
    text = re.sub("[-‐‑–]", " ", text).replace("&", " and ")
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    text = re.sub(r"\b(st|ste|ft|mt)\b", lambda found: _SHORT[found[0]], text)
    return text.removeprefix("the ")


def decide(kind: str, text: str, ended: bool = True) -> tuple[bool | None, str]:
    """Whether a whole answer names an item of a kind: (True, False or None, reason).

    >>> decide("city", "Valparaíso, Chile.")[0], decide("city", "Paris, Japan")[0]
    (True, False)
    """
    answer = normalise(text)
    names = _names(kind)
    if not answer:
        return (False if ended else None), "empty"
    turned = normalise(" ".join(reversed(answer.split(",")))) if kind == "country" else answer
    if turned in names:  # "Korea, South"
        answer = turned
    if answer in names:
        return _listed(names[answer], answer)
    inside = re.fullmatch(r"([^(]+)\(([^()]+)\)", answer)
    name, *others = map(normalise, inside.groups() if inside else answer.split(","))
    if kind == "city" and name in names and others:
        return _placed(names[name], others, ended)
    if kind == "country" and inside and {name, *others} <= set(names):
        one, other = names[name], names[others[0]]
        if set(one.regions) & set(other.regions):
            return _listed(one, answer)
    official = _OFFICIAL[kind].fullmatch(answer) if kind in _OFFICIAL else None
    if official and official[official.lastindex] in names:
        return None, f"ambiguous: {answer}"
    begun = () if ended else [e for name, e in names.items() if name.startswith(answer)]
    if begun:
        valid = not all(entry.ambiguous for entry in begun)
        return valid or None, f"cut off: {answer} begins a listed name"
    if any(x.isalpha() and not unicodedata.name(x, "?").startswith("LATIN") for x in answer):
        return None, f"ambiguous: {answer[:40]!r} is not in Latin letters"
    return False, f"not a listed {kind}: {answer[:80]!r}"


@dataclass
class _Entry:
    regions: list[str]
    ambiguous: bool  # unless a row calls the name valid


def _listed(entry: _Entry, answer: str) -> tuple[bool | None, str]:
    return (None, f"ambiguous: {answer}") if entry.ambiguous else (True, f"listed: {answer}")


@cache
def _names(kind: str) -> dict[str, _Entry]:
    """What a list says of each normalised name."""
    path = paths.package_data("tasks", "gazetteer", f"{KINDS[kind]}.csv")
    # "Namibia" has the code NA.
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    entries: dict[str, _Entry] = {}
    for name, label, where in table.itertuples(index=False, name=None):
        entry = entries.setdefault(normalise(name), _Entry([], True))
        entry.regions += where.split()
        entry.ambiguous &= label == "ambiguous"
    return entries


@cache
def _places(region: str) -> dict[str, bool]:
    """What may follow a city of a region, and whether that is undisputed ("?" in the lists).

    Names of the country, of a nation of the UK, of the US state and its code.
    """
    country, _, part = region.partition("-")
    found = {}
    for name, entry in _names("country").items():
        for code in {country, region}.intersection(code.lstrip("?") for code in entry.regions):
            found[name] = code in entry.regions
    found |= {name: True for name, code in _NATIONS.items() if country == "GB" and code == part}
    if country == "US":
        states = _names("us-state").items()
        found |= {name: True for name, entry in states if region in entry.regions}
        found[part.casefold()] = True
    return found


@cache
def _known_places() -> frozenset[str]:
    states = _names("us-state")
    codes = {code[3:].casefold() for entry in states.values() for code in entry.regions}
    countries = {name for name, entry in _names("country").items() if entry.regions}
    return frozenset({*countries, *states, *_NATIONS, *codes})


def _placed(entry: _Entry, places: list[str], ended: bool) -> tuple[bool | None, str]:
    """A city with where it is: every place named must fit one and the same region."""
    whole, last = (places, "") if ended else (places[:-1], places[-1])
    fits = []
    for region in entry.regions:
        known = _places(region.lstrip("?"))
        if set(whole) <= set(known) and (ended or any(name.startswith(last) for name in known)):
            sure = all(known[name] for name in whole) and not region.startswith("?")
            fits.append(f"listed in {region}" if sure and not entry.ambiguous else "ambiguous")
    if fits:
        best = max(fits)  # "listed" comes after "ambiguous"
        return (True if best.startswith("listed") else None), best
    # Two letters that are a state of the US may be a province elsewhere.
    codes = {place for place in places if len(place) == 2} - set(_names("country"))
    unknown = codes | set(places) - _known_places()
    if unknown:
        return None, f"ambiguous: the lists do not say where {min(unknown)[:40]!r} is"
    return False, f"no city of that name in {', '.join(places)[:80]!r}"


# Grammar alone, by Harper: an offline checker of English made of rules. It knows no meaning and
# misses most wrong sentences made of right words. Two checks of ours are added: letters of another
# script than Latin, and a missing space after a full stop.
#
# Advice on style and word choice is no error. A word with a capital is taken for a name, so its
# spelling is not checked. American and British spelling are both right. At the end of a cut-off
# text nothing counts that touches the last word.

PER_ERROR = 2  # taken from 10, so that one error makes a text invalid
# Harper's kinds of findings that are errors; the others are advice.
ERROR_KINDS = {
    *("Agreement", "BoundaryError", "Capitalization", "Eggcorn", "Formatting", "Grammar", "Typo"),
    *("Malapropism", "Miscellaneous", "Nonstandard", "Punctuation", "Repetition", "Spelling"),
}
# Takes names such as Mia for initials.
_IGNORED_RULES = {"OrthographicConsistency"}
_DIALECTS = ("AMERICAN", "BRITISH")
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
    for match in re.finditer("x+", "".join("x" if _is_foreign(c) else " " for c in text)):
        yield *match.span(), "Script"


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

"""Labels for prompts that ask for one item of a known kind: a list of English names decides.

The whole answer must be one listed name after a stated normalisation (`normalise`); a sentence
around it is not an answer to "name a city". Knows the lists under `data/tasks/gazetteer`, whose
README names their sources. Knows no model.

Labels. *Valid*: the answer is a listed name. *Invalid*: it is not. *Ambiguous* (NA): the lists
leave it open, such as territories and disputed countries, historical city names, an element's
symbol, a city with a region that the lists do not hold, or an answer in another script than Latin,
since the lists are of English names. A city may be followed by its country,
and in the US and the UK by its state or nation; a wrong one makes the answer invalid. Places below
15,000 people are not listed, so naming one counts as invalid.

Cut-off texts. A text that the token limit cut off is valid where it is the beginning of a valid
name ("San Franc"), since it may have gone on well; an empty one is NA.
"""

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache

import pandas as pd

from calib_utils import paths
from calib_utils.files import sha256_of_file
from calib_utils.labels import HIGHEST, LOWEST, Item, Verdict, check_items, label_table
from calib_utils.openset import open_prompts

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
        """One row of labels per item, in order (see `labels.label_table`)."""
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

"""Lists of names that decide answers to prompts that ask for one item of a known kind.

Text in, verdict out. Knows the lists of `data/tasks/gazetteer` (long and open: cities, countries,
elements, US states) and the closed lists of `data/tasks/lists`. Knows no prompt and no judge.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pandas as pd

from calib_utils import files, paths
from calib_utils.core.tasks import closed_lists, list_table
from calib_utils.results import conventions

# The whole answer must be one listed name after a stated normalisation (`normalise`).
#
# *Ambiguous* (NA) is what the lists leave open: names in other languages, territories, disputed
# and historical names, codes of states and symbols of elements; beside the lists, an official form
# ("the Kingdom of Spain", "Seoul City"), a city with a region that they do not hold or that is
# disputed, and an answer in another script than Latin. A city may be followed by its country, and
# in the US and the UK by its state or nation; a wrong one makes the answer invalid. Places below
# 15,000 people are not listed, so naming one counts as invalid. A text that the token limit cut off
# is valid where it begins a valid name ("San Franc"), since it may have gone on well.
#
# A closed list holds answers, other names of the same things, which are as valid, and names that
# it leaves open (`open` in lists.json). What is none of these, but what a `wider` list leaves open
# and has in the same countries, is open too ("Deutschland" as a member of the EU). Where the form
# matters, as in codes and keywords (`exact`), nothing is ignored but white space, quotation and
# emphasis marks and punctuation around the answer.

_LONG = {
    "city": ("cities", "countries", "us-states"),
    "country": ("countries",),
    "element": ("elements",),
    "us-state": ("us-states",),
}
# The lists by name, each with the tables that its decisions read, its own first.
KINDS = {name: (f"lists/{name}.csv",) for name in closed_lists()}
KINDS |= {kind: tuple(f"gazetteer/{name}.csv" for name in names) for kind, names in _LONG.items()}
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


def decide(name: str, text: str, ended: bool = True) -> tuple[bool | None, str]:
    """Whether a whole answer names an item of a list: (True, False or None, reason).

    >>> decide("city", "Valparaíso, Chile.")[0], decide("city", "Paris, Japan")[0]
    (True, False)
    >>> decide("country-code", "FR")[0], decide("country-code", "fr")[0]
    (True, False)
    """
    answer, names = _form(name)(text), _names(name)
    if not answer:
        return (False if ended else None), "empty"
    turned = normalise(" ".join(reversed(answer.split(",")))) if name == "country" else answer
    if turned in names:  # "Korea, South"
        answer = turned
    if answer in names:
        return _listed(names[answer], answer)
    if (around := _decide_around(name, answer, ended)) is not None:
        return around
    begun = () if ended else [e for known, e in names.items() if known.startswith(answer)]
    if begun:
        valid = not all(entry.ambiguous for entry in begun)
        return valid or None, f"cut off: {answer} begins a listed name"
    foreign = (x.isalpha() and not unicodedata.name(x, "?").startswith("LATIN") for x in answer)
    if any(foreign) and not _is_exact(name):
        return None, f"ambiguous: {answer[:40]!r} is not in Latin letters"
    return False, f"not a listed {name}: {answer[:80]!r}"


def _decide_around(name: str, answer: str, ended: bool) -> tuple[bool | None, str] | None:
    """What a list says of an answer that is more than one of its names; None where nothing."""
    names, kind = _names(name), name if name in _LONG else closed_lists()[name].get("wider")
    if name not in _LONG:
        entry = _names(kind).get(answer) if kind else None
        if entry and entry.ambiguous and (not entry.regions or _regions(name) & {*entry.regions}):
            return _listed(entry, answer)
    inside = re.fullmatch(r"([^(]+)\(([^()]+)\)", answer)
    first, *others = map(normalise, inside.groups() if inside else answer.split(","))
    if name == "city" and first in names and others:
        return _placed(names[first], others, ended)
    if name == "country" and inside and {first, *others} <= set(names):
        one, other = names[first], names[others[0]]
        if set(one.regions) & set(other.regions):
            return _listed(one, answer)
    official = _OFFICIAL[kind].fullmatch(answer) if kind in _OFFICIAL else None
    if official and official[official.lastindex] in names:
        return None, f"ambiguous: {answer}"
    return None


@cache
def fingerprint(name: str) -> str:
    """The digest of all that decides by a list: its tables, and how they are compared."""
    own = {} if name in _LONG else closed_lists()[name]
    kinds = (name, *filter(None, [own.get("wider")]))
    tables = {table: files.sha256_of_file(_path(table)) for kind in kinds for table in KINDS[kind]}
    return conventions.digest([tables, own.get("exact"), own.get("open"), own.get("wider")])


def _path(table: str):
    return paths.package_data("tasks", *table.split("/"))


def _is_exact(name: str) -> bool:
    return name not in _LONG and closed_lists()[name].get("exact", False)


def _form(name: str) -> Callable[[str], str]:
    """In what form answers and names of a list are compared."""
    return (lambda text: text.strip(_AROUND)) if _is_exact(name) else normalise


@dataclass
class _Entry:
    regions: list[str]
    ambiguous: bool  # unless a row calls the name valid


def _listed(entry: _Entry, answer: str) -> tuple[bool | None, str]:
    return (None, f"ambiguous: {answer}") if entry.ambiguous else (True, f"listed: {answer}")


@cache
def _names(kind: str) -> dict[str, _Entry]:
    """What a list says of each name, in the form that is compared."""
    if kind in _LONG:
        # "Namibia" has the code NA.
        table = pd.read_csv(_path(KINDS[kind][0]), keep_default_na=False, dtype=str)
        rows = list(table.itertuples(index=False, name=None))
    else:
        rows = [(name, "", "") for row in list_table(kind).items() for name in (row[0], *row[1])]
        rows += [(name, "ambiguous", "") for name in closed_lists()[kind].get("open", ())]
    form, entries = _form(kind), {}
    for name, label, where in rows:
        entry = entries.setdefault(form(name), _Entry([], True))
        entry.regions += where.split()
        entry.ambiguous &= label == "ambiguous"
    return entries


@cache
def _regions(name: str) -> frozenset[str]:
    """Where the answers of a closed list are, as its wider list has them."""
    wider = _names(closed_lists()[name]["wider"])
    found = (wider.get(normalise(answer)) for answer in list_table(name))
    return frozenset(region for entry in found if entry for region in entry.regions)


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

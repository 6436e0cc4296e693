"""The lists decide as stated; each normalisation step, each kind of label, cut-off texts."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils import paths
from calib_utils.openended.lists import KINDS, decide, normalise
from calib_utils.openended.prompts import VERIFIERS
from calib_utils.openended.verifiers import ExactJudge, known_prompts

LONG = ("city", "country", "element", "us-state")


@pytest.mark.parametrize(
    ("kind", "text", "valid"),
    [
        ("city", "Paris", True),
        ("city", " paris.\n", True),
        ("city", "**Tokyo**", True),
        ("city", "“São Paulo”", True),
        ("city", "Sao Paulo", True),
        ("city", "The Hague", True),
        ("city", "St. Petersburg", True),
        ("city", "Xi'an", True),
        ("city", "Washington, D.C.", True),
        ("city", "Valparaíso, Chile.", True),
        ("city", "Paris, Texas", True),
        ("city", "Paris, TX, USA", True),
        ("city", "Paris (France)", True),
        ("city", "London, England", True),
        ("city", "London, UK", True),
        ("city", "Frankfurt", True),
        ("city", "Aarhus", True),
        ("city", "Heraklion", True),
        ("city", "Cebu", True),
        ("city", "Ft. Worth", True),
        ("city", "Hong Kong, China", True),
        ("city", "San Juan, USA", True),
        ("city", "Saint-Denis, France", True),
        ("city", "Taipei, China", None),
        ("city", "Jerusalem, Palestine", None),
        ("city", "Sevastopol, Russia", None),
        ("city", "Kyiv, Russia", False),
        ("city", "Belfast, Ireland", None),
        ("city", "Perth, WA", None),  # Western Australia, not Washington
        ("city", "Prince George, UK", False),
        ("city", "Firenze", None),
        ("city", "Muenchen, Germany", None),
        ("city", "Köln, Deutschland", True),
        ("city", "Davao City", None),
        ("city", "City of Gotham", False),
        ("city", "Paris, Japan", False),
        ("city", "Paris, Ohio, Japan", False),
        ("city", "Gotham", False),
        ("city", "Gotham, Chile", False),
        ("city", "Pariss", False),
        ("city", "The city is Paris.", False),
        ("city", "Paris\nRome", False),
        ("city", "Paris, Rome", None),
        ("city", "", False),
        ("city", "?!", False),
        ("city", "Sydney, New South Wales", None),
        ("city", "Constantinople", None),
        ("country", "The Gambia", True),
        ("country", "Namibia", True),  # whose code, NA, reads as missing
        ("country", "cote d’ivoire", True),
        ("country", "USA", True),
        ("country", "Vatican City", True),
        ("country", "Bosnia", True),
        ("country", "Antigua", None),
        ("country", "St. Vincent", None),
        ("country", "Bosnia & Herzegovina", True),
        ("country", "Deutschland", None),
        ("country", "Federal Republic of Germany", True),
        ("country", "Kingdom of Spain", None),
        ("country", "Kingdom of Wakanda", False),
        ("country", "Korea, South", True),
        ("country", "Congo, Democratic Republic of the", True),
        ("country", "Myanmar (Burma)", True),
        ("country", "Myanmar (Peru)", False),
        ("country", "Macau", None),
        ("country", "Persia", None),
        ("country", "Mexico City", False),
        ("country", "Kosovo", None),
        ("country", "Greenland", None),
        ("country", "England", None),
        ("country", "Wakanda", False),
        ("country", "Paris", False),
        ("element", "Aluminum", True),
        ("element", "aluminium", True),
        ("element", "He", None),
        ("element", "Natrium", None),
        ("element", "Helium (He)", False),
        ("element", "Water", False),
        ("us-state", "new york", True),
        ("us-state", "District of Columbia", None),
        ("us-state", "NY", None),
        ("us-state", "State of Texas", None),
        ("us-state", "Puerto Rico", False),
    ],
)
def test_labels(kind, text, valid):
    assert decide(kind, text)[0] is valid


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("Los Ang", True),
        ("Los Angeles", True),
        ("Valparaíso, Chi", True),
        ("Valparaíso,", True),
        ("Constantinop", None),  # begins an ambiguous name only
        ("The city is", False),
        ("Paris is the capital", False),
        ("  ", None),
    ],
)
def test_a_cut_off_text_is_valid_where_it_begins_a_valid_name(text, valid):
    assert decide("city", text, ended=False)[0] is valid
    if text == "Los Ang":
        assert decide("city", text)[0] is False


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

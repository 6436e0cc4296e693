"""The language checker finds planted errors, passes clean text and spares cut-off ends."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_utils.openended.verifiers import LanguageChecker, findings

CLEAN = [
    "The old lighthouse stood on the cliff, and nobody had lit its lamp for years.",
    "Why did the chicken cross the road? To get to the other side!",
    "Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you.",
    "Once upon a time, a boy named Zorblax lived in Elderwyn.",
    "The colour of the harbour matched the gray sky.",
    "Dr. Smith lives in the U.S. and works for the N.A.S.A. museum.",
    "Paris",
    "Valparaíso, Chile",
    "“Hello,” she said.",
]
BROKEN = [
    ("He go to school every day.", "Agreement"),
    ("This is an test.", "Miscellaneous"),
    ("It was the the best day.", "Repetition"),
    ("I am teh best.", "Typo"),
    ("The sentense is short.", "Spelling"),
    ("Yes,we can go there.", "Punctuation"),
    ("The cat sat.Then it left.", "Spacing"),
    ("She has a 猫 in the house.", "Script"),
    ("Это is a word.", "Script"),
    ("A broken \ufffd letter.", "Script"),
    ("the dog barked. It ran away.", "Capitalization"),
]


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_passes(text):
    assert findings(text) == []


@pytest.mark.parametrize(("text", "kind"), BROKEN)
def test_a_planted_error_is_found(text, kind):
    found = findings(text)
    assert len(found) == 1 and found[0].startswith(kind), found


@pytest.mark.parametrize(
    "text", ["The best stor", "He was good at at", "She saw a 猫", "It was a sentens"]
)
def test_the_end_of_a_cut_off_text_is_not_punished(text):
    assert findings(text, ended=False) == []


def test_an_error_before_the_cut_still_counts():
    assert findings("He go to the sto", ended=False) == ["Agreement: 'go'"]
    assert findings("A 猫 is at the do", ended=False) == ["Script: '猫'"]


def test_scores_and_labels():
    texts = [CLEAN[0], BROKEN[0][0], " ".join(text for text, _ in BROKEN) * 2, " "]
    items = pd.DataFrame({"prompt": "p", "text": texts, "ended": True})
    judge = LanguageChecker()
    labels = judge.judge(items)
    assert (judge.name, judge.criteria) == ("harper", ("grammar",))
    assert labels["grammar"].tolist() == [10, 8, 1, pd.NA]
    assert labels["valid"].tolist() == [True, False, False, pd.NA]
    assert "Agreement: 'go'" in labels["reason"][1]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.booleans())
def test_any_text_is_checked(text, ended):
    assert all(": " in found for found in findings(text, ended))
    assert len(findings(text, ended)) <= len(findings(text)) or not ended

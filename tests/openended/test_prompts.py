"""The project's own open prompts: categories, lists and forms, and what a prompt has to be."""

import pytest

from calib_utils.core.tasks import OpenPrompt, closed_lists
from calib_utils.errors import InvalidTaskError, UnknownNameError
from calib_utils.openended.prompts import CATEGORIES, get_prompt, open_prompts


def test_categories_of_prompts():
    prompts = open_prompts()
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    for category in CATEGORIES:
        own = open_prompts([category])
        assert all(prompt.category == category for prompt in open_prompts(category))
        assert len(own) >= 20 if category in ("list", "form") else 3 <= len(own) <= 4
    assert {p.verifier for p in open_prompts(["item"])} == {"city", "country", "element"}
    assert all(
        (p.verifier is None) == (p.category not in ("item", "list", "form")) for p in prompts
    )


def test_every_closed_list_is_asked_for_once():
    own = open_prompts(["item", "list"])
    asked = [p.verifier for p in own if p.id not in ("item-city", "item-city-trip")]
    assert sorted(asked) == sorted(closed_lists())
    assert get_prompt("list-planet").prompt == (
        "Name a planet of the Solar System. Answer with the name only."
    )


def test_unknown_categories_and_prompts():
    with pytest.raises(UnknownNameError, match="Did you mean 'story'"):
        open_prompts(["storys"])
    with pytest.raises(UnknownNameError, match="Did you mean 'item-city'"):
        get_prompt("item-citi")
    own = OpenPrompt("mine", "story", "Tell me.")
    assert get_prompt(own) is own


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (("a b", "story", "Tell me."), "letters, digits"),
        (("", "story", "Tell me."), "letters, digits"),
        (("../x", "story", "Tell me."), "letters, digits"),
        ((3, "story", "Tell me."), "letters, digits"),
        (("a", "story", " "), "the prompt is empty"),
        (("a", None, "Tell me."), "the category is empty"),
    ],
)
def test_bad_prompts(values, match):
    with pytest.raises(InvalidTaskError, match=match):
        OpenPrompt(*values)

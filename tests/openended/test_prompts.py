"""The project's own open prompts, and NoveltyBench from a file or a hub that is not there."""

import json

import pandas as pd
import pytest

from calib_utils.core.tasks import OpenPrompt, closed_lists
from calib_utils.errors import HubUnreachableError, InvalidTaskError, UnknownNameError
from calib_utils.openended import prompts as prompts_module
from calib_utils.openended.prompts import noveltybench, open_prompts

ROWS = [
    {"id": "curated-0", "prompt": "Write\u2028some\x85thing.", "category": "Creativity"},
    {"id": "curated-1", "prompt": "Name something."},
]


def test_categories_of_prompts():
    prompts = open_prompts()
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    for category in prompts_module.CATEGORIES:
        own = open_prompts([category])
        assert all(prompt.category == category for prompt in open_prompts(category))
        assert len(own) >= 24 if category in ("list", "form") else 3 <= len(own) <= 4
    assert {p.verifier for p in open_prompts(["item"])} == {"city", "country", "element"}
    assert all(
        (p.verifier is None) == (p.category not in ("item", "list", "form")) for p in prompts
    )


def test_every_closed_list_is_asked_for_once():
    own = open_prompts(["item", "list"])
    asked = [p.verifier for p in own if p.id not in ("item-city", "item-city-trip")]
    assert sorted(asked) == sorted(closed_lists())
    assert prompts_module.get_prompt("list-planet").prompt == (
        "Name a planet of the Solar System. Answer with the name only."
    )


def test_unknown_categories_and_prompts():
    with pytest.raises(UnknownNameError, match="Did you mean 'story'"):
        open_prompts(["storys"])
    with pytest.raises(UnknownNameError, match="Did you mean 'item-city'"):
        prompts_module.get_prompt("item-citi")
    own = OpenPrompt("mine", "story", "Tell me.")
    assert prompts_module.get_prompt(own) is own


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


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_noveltybench_from_a_file(tmp_path, kind):
    path = tmp_path / f"curated.{kind}"
    if kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        path.write_text("\r\n".join(lines) + "\n\n", encoding="utf-8-sig", newline="")
    else:
        pd.DataFrame(ROWS).to_parquet(path)
    first, second = noveltybench(file=path)
    assert (first.id, first.category) == ("curated-0", "Creativity")
    assert first.prompt == ROWS[0]["prompt"]  # its separators of lines end none of the file
    assert (second.category, second.verifier) == ("noveltybench", None)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"id": "a"}', "row 1: .* has no id or no prompt"),
        ('"a"', "row 1: 'a' has no id or no prompt"),
        (
            '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}',
            "'a' occurs twice",
        ),
        ("{", "unreadable"),
    ],
)
def test_unreadable_files(tmp_path, content, match):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidTaskError, match=match):
        noveltybench(file=path)


def test_a_prompt_names_a_list_or_form_that_there_is(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "prompt": "x", "verifier": "planets"}')
    with pytest.raises(UnknownNameError, match="Did you mean 'planet'"):
        noveltybench(file=path)


def test_noveltybench_without_the_hub_names_the_ways_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubUnreachableError, match=r"pass its path as file=.*open_prompts\(\)"):
        noveltybench()
    with pytest.raises(UnknownNameError, match="Did you mean 'curated'"):
        noveltybench("currated")


def test_noveltybench_from_a_folder_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    pd.DataFrame(ROWS).to_parquet(tmp_path / "data" / "curated-00000-of-00001.parquet")
    asked = []

    def fetched(repository, revision, patterns):
        asked.append((repository, revision))
        return tmp_path

    monkeypatch.setattr(prompts_module.weights, "hub_dataset", fetched)
    assert [prompt.id for prompt in noveltybench(revision="abc")] == ["curated-0", "curated-1"]
    assert asked == [("yimingzhang/novelty-bench", "abc")]

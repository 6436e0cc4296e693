"""The paper's tasks and a user's own, counted by hand."""

import ast
import hashlib
import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils import paths
from calib_utils.core.tasks import closed_lists, list_table
from calib_utils.errors import InvalidTaskError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "n_answers"),
    [
        ("rng-1", 10),
        ("rng-2", 100),
        ("rng-3", 1000),
        ("rng-4", 10_000),
        ("rng-2-sum-equals-10", 9),  # 1,9 ... 9,1
        ("rng-3-sum-equals-10", 63),  # C(12, 2) - 3
        ("rng-2-sum-at-most-10", 64),  # 100 - 36 pairs above 10
        ("rng-3-sum-at-most-10", math.comb(13, 3) - 3),
        ("rng-4-sum-at-most-0", 1),
        ("us-states", 50),
    ],
)
def test_number_of_answers(name, n_answers):
    assert len(cu.get_task(name).answers) == n_answers


@given(st.integers(1, 3), st.sampled_from(["equals", "at-most"]), st.integers(0, 27))
def test_sum_tasks_are_the_digit_tuples_with_that_sum(length, relation, total):
    holds = (lambda s: s == total) if relation == "equals" else (lambda s: s <= total)
    expected = {
        ",".join(map(str, digits))
        for digits in itertools.product(range(10), repeat=length)
        if holds(sum(digits))
    }
    name = f"rng-{length}-sum-{relation}-{total}"
    if total <= 9 * length:
        assert set(cu.get_task(name).answers) == expected
    else:
        with pytest.raises(InvalidTaskError, match=f"sum from 0 to {9 * length}"):
            cu.get_task(name)


def test_prompts_are_the_papers_words():
    assert cu.get_task("rng-3").prompt == (
        "Generate 3 random integers between 0 and 9 (inclusive). Your response should be 3 "
        "integers separated by commas and no white spaces. Answer:"
    )
    assert "(inclusive) that sum to at most 10." in cu.get_task("rng-3-sum-at-most-10").prompt
    assert "(inclusive) that sum to exactly 10." in cu.get_task("rng-3-sum-equals-10").prompt
    assert cu.get_task("us-states").prompt.startswith("Randomly name a US state")


def test_the_states_are_the_fifty_states():
    states = cu.get_task("us-states").answers
    assert list(states) == sorted(states)
    assert {"Alabama", "New York", "West Virginia", "Wyoming"} <= set(states)
    firsts = [state.split()[0] for state in states if " " in state]
    assert {word: firsts.count(word) for word in firsts} == {
        "New": 4, "North": 2, "South": 2, "Rhode": 1, "West": 1
    }  # fmt: skip


def test_every_listed_task_exists_and_bears_its_name():
    for name in cu.list_tasks():
        assert cu.get_task(name).name == name


def test_a_task_file_is_read_as_written(write_task):
    record = {"name": "été", "prompt": "Say é:", "answers": ["é", "ü x"]}
    assert cu.get_task(write_task(record)) == cu.Task("été", "Say é:", ["é", "ü x"])


def test_a_task_file_with_one_string_of_answers_is_not_split_into_letters(write_task):
    with pytest.raises(InvalidTaskError, match="Ohio"):
        cu.get_task(write_task({"name": "one", "prompt": "p", "answers": "Ohio"}))


# A module of answers, as a user may write one.
MODULE = """
import itertools

def endless():
    return map(str, itertools.count())

def codes():
    yield from ("a1", "b1", "a2", "b2")

def ends_in_a_digit(text):
    return len(text) == 2 and text[0] in "ab" and text[1] in "12"
"""


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    """The task of a YAML file, beside a module and a list: `task_file("answers: codes.txt")`."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_codes.py").write_text(MODULE)
    (tmp_path / "codes.txt").write_text("a1\nb1\na2\nb2\n")

    def read(more, name="codes.yaml"):
        (tmp_path / name).write_text(f"name: codes\nprompt: 'Name a code:'\n{more}\n")
        return cu.get_task(tmp_path / name)

    return read


@pytest.mark.parametrize(
    "answers",
    [
        "[a1, b1, a2, b2]",
        "codes.txt",
        '{regex: "[ab][12]"}',
        "{enumerator: 'own_codes:codes'}",
        "{predicate: 'own_codes:ends_in_a_digit', alphabet: ab12, lengths: [1, 3]}",
        "{predicate: 'own_codes:ends_in_a_digit', alphabet: ab12, lengths: 2}",
    ],
)
def test_a_yaml_file_has_its_answers_in_many_ways(task_file, answers):
    task = task_file(f"answers: {answers}")
    assert (task.name, task.prompt, task.end) == ("codes", "Name a code:", "eos")
    assert sorted(task.answers) == ["a1", "a2", "b1", "b2"]


def test_a_file_may_have_a_system_message_aliases_and_an_end(task_file):
    more = "answers: [a1, b1]\nsystem: Be brief.\naliases: {a1: [A1, 1a]}\nend: line"
    task = task_file(more, "codes.yml")
    assert (task.system, task.end) == ("Be brief.", "line")
    assert task.spellings() == [("a1", "A1", "1a"), ("b1",)]
    assert task == cu.Task(
        "codes", "Name a code:", ["a1", "b1"], "Be brief.", {"a1": ["A1", "1a"]}, "line"
    )
    assert len({task, task_file(more)}) == 1


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ("answers: [a1, a1]", InvalidTaskError, "must occur once"),
        ("answers: Ohio", InvalidTaskError, "Ohio"),
        ("answers: [yes, a1]", InvalidTaskError, r"\(True\): must be a string; in YAML"),
        ("answers: [a1]\nanswers: [b1]", InvalidTaskError, "a key occurs twice"),
        ("answers: [a1]\nalias: {a1: [A1]}", InvalidTaskError, r"unknown keys \['alias'\]; known"),
        (
            "answers: &a [a1]\naliases: {a1: *a}",
            InvalidTaskError,
            r"alias \(\*name\): write it out",
        ),
        ("answers: [a1", InvalidTaskError, "ParserError|expected"),
        ("answers: !!python/object/apply:os.getcwd []", InvalidTaskError, "could not determine"),
        ("answers: {regex: 'a*'}", InvalidTaskError, "infinitely many"),
        ("answers: {regexp: 'a'}", InvalidTaskError, "a .txt file with one a line"),
        ("answers: missing.txt", InvalidTaskError, "No such file"),
        (
            "answers: {enumerator: 'own_codes:endless'}",
            InvalidTaskError,
            "200,001 answers, more than",
        ),
        ("answers: {enumerator: 'no_such_module:f'}", UnknownNameError, "no_such_module"),
        ("answers: [a1]\naliases: {b1: [B1]}", UnknownNameError, "answer with aliases 'b1'"),
        ("answers: [a1]\naliases: {a1: A1}", InvalidTaskError, "give a list for every answer"),
        ("answers: [a1, b1]\naliases: {a1: [b1]}", InvalidTaskError, "must occur once"),
        ("answers: [a1]\nend: stop", InvalidTaskError, "'stop' does not exist"),
        ("answers: [a1]\nsystem: [x]", InvalidTaskError, "is no message"),
    ],
)
def test_a_bad_yaml_file_is_a_named_error(task_file, more, error, said):
    with pytest.raises(error, match=said):
        task_file(more)


def test_a_misspelt_task_is_answered_with_near_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'us-states'"):
        cu.get_task("us-sates")


@given(st.lists(st.text(max_size=4), min_size=1, max_size=6))
def test_a_list_is_a_task_or_says_which_answer_to_write_how(answers):
    try:
        assert cu.Task("t", "p", answers).answers == tuple(answers)
    except InvalidTaskError as error:
        told = re.match(
            r"task 't', answer (\d+) of (\d+) \((.*)\): .*; (.*)", str(error), re.DOTALL
        )
        assert ast.literal_eval(told[3]) == answers[int(told[1]) - 1]
        if told[4].startswith("use '"):
            again = ast.literal_eval(told[4].removeprefix("use "))
            assert again == "" or cu.Task("t", "p", [again]).answers == (again,)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        *(
            ([f"New{c}York"], "use 'NewYork'")
            for c in "\ufeff\u200b\u200d\u200c\u00ad\u2060\u0000\r\ufe0f\u3164"
        ),
        *(([f"New{c}York"], "use 'New York'") for c in "\u00a0\u202f\u2007"),
        (["x", "\ufeffy"], r"answer 2 of 2 \('\\ufeffy'\).*use 'y'"),
        (["cafe\u0301"], r"use 'caf\\xe9'"),
        (["\u00e9", "e\u0301"], r"answer 2 of 2 .*use '\\xe9'"),
        (["\u2764", "\u2764\ufe0f"], "is a duplicate of answer 1"),
        ({"b", "a"}, r"a set has another order in every process: use sorted"),
        (frozenset("ab"), "a set has another order"),
        ({"b": 1, "a": 2}, "must be a list of strings"),
    ],
)
def test_answers_that_no_model_writes_so_are_refused_with_what_to_write(answers, said):
    with pytest.raises(InvalidTaskError, match=said):
        cu.Task("t", "p", answers)


def test_joiners_and_selectors_that_are_part_of_the_spelling_are_kept():
    answers = (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u0937",  # Devanagari
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England
        *("\u2764\ufe0f", "1\ufe0f\u20e3", "\u6771\u3000\u4eac", "a\nb\tc"),
    )
    assert cu.Task("t", "p", iter(answers)).answers == answers


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "-x", "", "a b", "a\nb", "a\n"])
def test_names_that_would_leave_the_results_folder_are_refused(name):
    with pytest.raises(InvalidTaskError, match="task name"):
        cu.Task(name, "p", ["x"])


# Closed lists


def test_at_least_thirty_lists_are_finite_tasks_of_8_to_250_answers():
    sizes = {name: len(cu.get_task(name).answers) for name in closed_lists() if is_task(name)}
    assert len(sizes) >= 30 and all(8 <= n <= 250 for n in sizes.values())
    assert cu.list_tasks()[-len(sizes) :] == list(sizes)
    assert {name: sizes[name] for name in ("planet", "constellation", "playing-card")} == {
        "planet": 8, "constellation": 88, "playing-card": 52
    }  # fmt: skip


def is_task(name):
    return closed_lists()[name]["task"]


@pytest.mark.parametrize("name", closed_lists())
def test_a_list_is_the_recorded_one_with_its_source(name):
    own, path = closed_lists()[name], paths.package_data("tasks", "lists", f"{name}.csv")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == own["sha256"]
    assert len(list_table(name)) == own["n"]
    assert own["source"] and own["licence"] and re.fullmatch(r"20\d\d-\d\d-\d\d", own["date"])
    assert own["noun"].split()[0] in ("a", "an", "the", "one")


@pytest.mark.parametrize("name", ["planet", "country-code"])
def test_a_list_is_asked_for_in_twelve_other_wordings(name):
    task = cu.get_task(name)
    others = [cu.get_task(f"{name}-wording-{k}") for k in range(1, 13)]
    assert len({task.prompt, *(other.prompt for other in others)}) == 13
    what = closed_lists()[name].get("what", "name")
    for other in others:
        assert other.answers == task.answers
        assert closed_lists()[name]["noun"] in other.prompt and what in other.prompt
    for k in ("0", "13"):
        with pytest.raises(UnknownNameError, match=f"{name}-wording-1"):
            cu.get_task(f"{name}-wording-{k}")


def test_only_finite_lists_are_tasks():
    for name in ("weekday", "weekday-wording-1", "us-states-wording-1", "rng-2-wording-1"):
        with pytest.raises(UnknownNameError):
            cu.get_task(name)
    with pytest.raises(UnknownNameError, match="Did you mean 'planet'"):
        list_table("planets")
    assert len(cu.get_task("planet-shortest-3").answers) == 3


def test_the_shortest_of_a_file_keep_what_it_says_beside_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nprompt: Say one.\nsystem: Be brief.\nend: line\nanswers: [abc, a]\n"
        "aliases: {a: [A], abc: [ABC]}\n"
    )
    few = cu.get_task("mine.yaml-shortest-1")
    assert (few.answers, few.system, few.end) == (("a",), "Be brief.", "line")
    assert dict(few.aliases) == {"a": ("A",)}

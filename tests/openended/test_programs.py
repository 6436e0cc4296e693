"""Programs: the problems' own tests, what is drawn and kept, and the measures by brute force."""

import itertools
import math
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils import paths
from calib_utils.errors import ResultsError
from calib_utils.models import generation
from calib_utils.openended import programs, sandbox
from calib_utils.openended.programs import Problem, extract_code, normalised, read_problems
from calib_utils.results import records

PROBLEMS = {problem.id: problem for problem in read_problems()}
ONE = Problem("one", "f(x)", "Return x plus one.", (((1,), 2), ((2,), 3)))
TWO = Problem("two", "g()", "Return 2.", (((), 2),))
needs_sandbox = pytest.mark.skipif(bool(sandbox.fault()), reason="no sandbox on this system")


def table_of(rows):
    """A table of replies from (problem, text, log_p, passed) tuples."""
    frame = pd.DataFrame(rows, columns=["problem", "text", "log_p", "passed"])
    outcome = frame.passed.map({True: "passed", False: "failed"})
    return frame.assign(outcome=outcome, ended=True, draw=range(len(frame)))


# The problems


@needs_sandbox
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=str)
def test_the_reference_passes_and_the_wrong_solution_fails(problem):
    assert problem.run(problem.reference).outcome == "passed"
    wrong = problem.run(problem.wrong)
    assert wrong.outcome == "failed"
    assert wrong.n_passed > 0  # wrong in a case, not in everything


def test_no_answer_passes_by_being_constant():
    for problem in PROBLEMS.values():
        answers = [repr(expected) for _, expected in problem.tests]
        assert max(map(answers.count, answers)) < len(answers), problem.id


BODY = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "reply, code",
    [
        ("x = 1", "x = 1"),
        (f"```python\n{BODY}```", BODY),
        (f'```python title="x"\n{BODY}```', BODY),
        (f"``` {{.python .numberLines}}\n{BODY}```", BODY),
        (f"~~~py3\n{BODY}~~~", BODY),
        (f"````\n{BODY}```\n````", f"{BODY}```\n"),
        (f"```python\r\n{BODY}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"), BODY),
        ("1. So:\n\n   ```python\n   def f(x):\n       return x\n   ```\n2. Done", BODY),
        ("> ```\n> def f(x):\n>     return x\n> ```", BODY),
        (f"```sh\npip install f\n```\n```\n{BODY}```", BODY),
        # Tags of HTML hide no fence: a model writes them with no blank line after.
        (f"<think>\nWell.\n</think>\n```python\n{BODY}```", BODY),
        (f"\ufeff```python\n\ufeff{BODY}```", BODY),
        (f"<details>\n```python\n{BODY}```\n</details>", BODY),
        (f"```python\nprint(f(1))\n```\n```python\n{BODY}```\n```\n1\n```", BODY),
        (f"```\ndef g(): pass\n```\n```\n{BODY}```", BODY),  # another function
        ("```\nf = max\n```\n", "f = max\n"),
        ("Output:\n```\n1\n```\n```python\nx = (\n", "x = (\n"),  # marked, though cut off
        ("```\nx = 1", "x = 1"),
        (f"{BODY}```", f"{BODY}```"),  # a fence that holds nothing
        ("s = '```'", "s = '```'"),
        ("```python\ns = '```'\n```\n", "s = '```'\n"),
        (f'{BODY}    """\n```\n1\n```\n    """\n', f'{BODY}    """\n```\n1\n```\n    """\n'),
        ("```python\nx = '\ud800'\n```", "x = '\ud800'\n"),
        ("", ""),
    ],
)
def test_the_program_in_a_reply(reply, code):
    assert extract_code(reply, "f") == code


@given(st.text(alphabet="`~> \n-1.py\t", max_size=80))
def test_any_reply_has_a_program(reply):
    assert isinstance(extract_code(reply), str)


def test_what_counts_as_the_same_program():
    bare = "def f(x):\n    return x + 1\n"
    for same in (
        "# why\ndef f( x ):\n\n    return (x+1)",
        'def f(x):\n    """Adds."""\n    return x + 1',
    ):
        assert normalised(same) == normalised(bare)
    for other in ("def f(y):\n    return y + 1", "def f(x):\n    return 1 + x", ""):
        assert normalised(other) != normalised(bare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normalised(r"x = '\d'") is not None
    for broken in ("def f(", "x = '\0'", "(" * 5000, "-" * 99999 + "1", "\ud800"):
        assert normalised(broken) is None


# Drawing


def test_draws_are_seeded_and_do_not_depend_on_their_number(tiny):
    model = tiny("llama", chat=True)
    few = programs.draw(model, "Say something.", 3, 8, seed=4)
    many = programs.draw(model, "Say something.", 7, 8, seed=4)
    pd.testing.assert_frame_equal(few, many.head(3))
    other = programs.draw(model, "Say something.", 3, 8, seed=5)
    assert list(few.text) != list(other.text)
    assert list(few.columns) == programs.COLUMNS


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_log_probabilities_are_those_at_temperature_one(temperature, tiny):
    model = tiny("qwen2", chat=True)
    start = programs.message_start(model, "Say something.")
    drawn = programs.draw(model, "Say something.", 20, 30, temperature=temperature, seed=1)
    options = {"n_samples": 20, "temperature": temperature, "seed": 1}
    tree = generation.Continuations(model, start.ids)
    raw = tree.complete([()], 30, start.end_ids, **options)
    for row, completion in zip(drawn.itertuples(), raw, strict=True):
        ids = [*start.ids, *completion.token_ids]
        with torch.no_grad():
            logits = model.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[i - 1, ids[i]]) for i in range(len(start.ids), len(ids)))
        assert row.log_p == pytest.approx(expected, abs=1e-4) and row.log_p <= 0
        assert row.n_tokens == len(completion.token_ids)
        assert row.ended == (completion.token_ids[-1] in start.end_ids)
    assert drawn.ended.any()


def test_own_settings_are_those_of_the_files_and_nothing_else(tiny_folder, tmp_path):
    def model_with(settings):
        folder = tmp_path / ("free" if settings is None else "narrow")
        shutil.copytree(tiny_folder("llama", chat=True), folder)
        path = folder / "generation_config.json"
        path.unlink() if settings is None else path.write_text(settings)
        return cu.load_model(folder, device="cpu")

    narrow = model_with('{"top_k": 1, "top_p": null, "do_sample": false}')
    assert programs.own_settings(narrow) == {"top_k": 1}
    assert programs.own_settings(model_with(None)) == {}


# Keeping


@pytest.fixture
def canned(monkeypatch):
    """Replies from a list instead of a model, and what was asked."""
    asked = []
    replies = ["```python\ndef f(x): return x + 1\n```", "def f(x): return 2", "no"]

    def draw(model, message, n, max_tokens, **options):
        asked.append(message)
        rows = [(i, replies[i % 3], 5, -1.0 - i % 3, True) for i in range(n)]
        return pd.DataFrame(rows, columns=programs.COLUMNS)

    monkeypatch.setattr(programs, "draw", draw)
    return asked


@needs_sandbox
def test_a_run_that_was_killed_goes_on(canned, tiny, tmp_path, monkeypatch):
    model = tiny("llama", chat=True)
    options = {"n": 4, "results_dir": tmp_path}
    real = programs.run_programs

    def dies(drawn, problems, *rest):
        if problems[0].id == "two":
            raise KeyboardInterrupt
        return real(drawn, problems, *rest)

    monkeypatch.setattr(programs, "run_programs", dies)
    with pytest.raises(KeyboardInterrupt):
        programs.sample_programs(model, [ONE, TWO], **options)
    folder = tmp_path / model.key / "texts" / "programs"
    assert {p.name for p in folder.iterdir()} == {"provenance.json", "one.parquet"}
    with pytest.raises(ResultsError, match="unfinished"):
        records.read_completions(folder)
    monkeypatch.setattr(programs, "run_programs", real)
    table = programs.sample_programs(model, [ONE, TWO], **options)
    assert canned == [ONE.message, TWO.message, TWO.message]
    assert list(table.columns) == programs.TESTED_COLUMNS
    assert list(table.problem) == ["one"] * 4 + ["two"] * 4
    assert list(table.outcome[:4]) == ["passed", "failed", "error", "passed"]
    # A finished run needs neither replies nor a sandbox.
    monkeypatch.setattr(sandbox, "fault", lambda: "a reason")
    again = programs.sample_programs(model, [ONE, TWO], **options)
    pd.testing.assert_frame_equal(table, again)
    pd.testing.assert_frame_equal(table, records.read_completions(folder))
    assert len(canned) == 3


@needs_sandbox
@pytest.mark.parametrize("change", ["n", "seed", "tests", "model", "bytes"])
def test_a_folder_of_something_else_is_not_reused(change, canned, tiny, tmp_path):
    model = tiny("llama", chat=True)
    options = {"n": 2, "results_dir": tmp_path, "name": "p"}
    programs.sample_programs(model, [TWO], **options)
    problem = TWO
    if change == "bytes":
        path = tmp_path / model.key / "texts" / "p" / "two.parquet"
        path.write_bytes(path.read_bytes() + b" ")
    elif change == "tests":
        problem = Problem(TWO.id, TWO.signature, TWO.prompt, (((), 3),))
    elif change == "model":
        (tmp_path / model.key).rename(tmp_path / tiny("qwen2", chat=True).key)
        model = tiny("qwen2", chat=True)
    else:
        options[change] = 3
    with pytest.raises(ResultsError):
        programs.sample_programs(model, [problem], **options)


def test_a_missing_sandbox_is_said_before_anything_is_drawn(canned, tiny, monkeypatch):
    monkeypatch.setattr(sandbox, "fault", lambda: "a reason")
    with pytest.raises(sandbox.SandboxError, match="a reason"):
        programs.sample_programs(tiny("llama", chat=True), [ONE], n=2)
    assert canned == []


@needs_sandbox
def test_labels_can_be_made_again_without_a_model():
    drawn = pd.DataFrame({"problem": ["one", "one"], "text": ["def f(x): return x + 1", "x"]})
    table = programs.run_programs(drawn, [ONE])
    assert list(table.outcome) == ["passed", "error"]
    assert list(table.n_passed) == [2, 0]


# Measures


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_all_subsets(n, data):
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    passing = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(passing, k))
    assert programs.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_rates():
    table = table_of([(p, str(i), -1.0, p == "a" and i < 2) for p in "ab" for i in range(4)])
    rates = programs.pass_rates(table, (1, 2)).set_index("k")
    assert rates.estimate[1] == pytest.approx((0.5 + 0) / 2)
    assert rates.estimate[2] == pytest.approx((5 / 6 + 0) / 2)
    assert rates.low.isna().all(), "two problems are too few for an interval"
    assert list(rates.problems) == [2, 2]
    rates = programs.pass_rates(pd.concat([table, table[4:].assign(problem="c")]), (1, 2))
    assert (rates.low <= rates.estimate).all() and (rates.estimate <= rates.high).all()


SCORES = st.lists(st.tuples(st.integers(-4, 0), st.booleans()), min_size=1, max_size=12)


@given(SCORES)
def test_auc_is_the_share_of_pairs(rows):
    score, positive = map(np.array, zip(*rows, strict=True))
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    expected = np.mean(pairs) if pairs else math.nan
    assert programs.auc(score, positive) == pytest.approx(expected, nan_ok=True)


def test_order_counts_a_program_once_and_leaves_out_what_was_cut_off():
    rows = [("a", "x", -1.0, True)] * 5 + [("a", "y", -2.0, False), ("a", "z", -3.0, True)]
    table = table_of([*rows, ("a", "cut", -0.5, False), ("b", "w", -1.0, True)])
    table.loc[table.text == "cut", "ended"] = False
    ranked = programs.ranked_programs(table)
    assert list(ranked.text) == ["x", "y", "z", "w"]
    assert list(ranked["rank"]) == [1, 2, 3, 1]
    assert list(ranked.drawn) == [5, 1, 1, 1]
    order = programs.order_by_problem(table).set_index("problem")
    assert order.auc["a"] == 0.5
    assert order.prevalence["a"] == pytest.approx(2 / 3)
    assert math.isnan(order.auc["b"])


def test_shape_over_distinct_passing_programs():
    rows = [
        ("a", "def f(): return 1", math.log(0.4), True),
        ("a", "def f():\n    return 1  # one", math.log(0.1), True),  # the same program
        ("a", "def f(): return 2 - 1", math.log(0.25), True),
        ("a", "def f(): return 2 - 1", math.log(0.25), True),  # drawn twice
        ("a", "def f(): return 0", math.log(0.2), False),
        ("b", "def f(): return 0", math.log(0.2), False),
    ]
    shape = programs.shape_by_problem(table_of(rows), tops=(1, 2))
    assert list(shape.problem) == ["a"]
    row = shape.iloc[0]
    p = np.array([2 / 3, 1 / 3])
    assert row.passing == 2
    assert (row.top_1, row.top_2) == (pytest.approx(p[0]), pytest.approx(1))
    assert row.effective == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert row.log_mass == pytest.approx(math.log(0.75))


def test_measures_of_programs_none_of_which_passes():
    table = table_of([("a", "x", -1.0, False), ("a", "y", -2.0, False)])
    assert programs.shape_by_problem(table).empty
    assert programs.pass_rates(table, (1,)).estimate[0] == 0


STORED = sorted(paths.default_results_dir().glob("*/texts/programs"))


@pytest.mark.parametrize("folder", STORED, ids=lambda f: f.parent.name)
def test_stored_programs_hold_what_a_table_must(folder):
    table = records.read_completions(folder)
    assert list(table.columns) == programs.TESTED_COLUMNS
    assert set(table.problem) == set(PROBLEMS)
    assert set(table.outcome) <= {"passed", "failed", "error", "timeout", "killed"}
    assert (table.log_p <= 0).all()
    assert ((table.n_passed == table.n_tests) >= (table.outcome == "passed")).all()
    assert sum(p.stat().st_size for p in folder.iterdir()) < 300_000

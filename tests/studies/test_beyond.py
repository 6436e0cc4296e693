"""The study of Fig. 11 and 12: estimates against expectations, tables by hand, claims."""

import itertools
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils import paths
from calib_utils.book import notebooks
from calib_utils.errors import InvalidRequestError, RefusedRequestError, ResultsError
from calib_utils.figures import beyond as figures
from calib_utils.models import generation
from calib_utils.models.registry import CORE
from calib_utils.openended import programs, sandbox
from calib_utils.results import records
from calib_utils.studies import beyond
from calib_utils.studies.beyond import Question, findings
from calib_utils.studies.reporting import (
    EXCLUDED,
    KINDS,
    NOT_DECIDED,
    NOT_REPRODUCED,
    OURS,
    REPRODUCED,
)

CITY, COUNTRY = Question("random-city", "?", "city"), Question("country", "!", "country")
COUNTRIES = ["Chile", "Peru", "Kenya", "Japan", "Spain", "Italy", "Ghana", "India", "Nepal", "Iran"]
PAIRS = [["Paris"] * 40, ["Chile"] * 40]


def replies_of(city, country):
    rows = [(q.label, text) for q, texts in ((CITY, city), (COUNTRY, country)) for text in texts]
    return pd.DataFrame(rows, columns=["question", "text"])


def code(k):
    return f"```python\ndef f(x):\n    return x + {k}\n```"


def programs_of(*problems):
    """Replies from lists, one per problem, of (number of the program, log_p, passed)."""
    rows = [
        (f"p{i}", draw, f"{code(k)}\nReply {draw}.", 9, log_p, True, passed)
        for i, own in enumerate(problems)
        for draw, (k, log_p, passed) in enumerate(own)
    ]
    names = ["problem", "draw", "text", "n_tokens", "log_p", "ended", "passed"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(outcome=table.pop("passed").map({True: "passed", False: "failed"}))


NONE = pd.DataFrame(columns=programs.TESTED_COLUMNS)
YES, NO = KINDS[OURS].yes, KINDS[OURS].no  # of the others' questions, and of chance


def decided(replies=PAIRS, table=NONE):
    """Verdicts by what each claim is about."""
    found = findings(replies_of(*replies), [CITY, COUNTRY], table)
    names = ["city", "others", "interleave", "chance", "whole"]
    return dict(zip(names, found.verdict, strict=True))


# One question, many times


def test_one_answer_dominates_only_where_its_interval_says_so():
    one = decided([["Paris"] * 180 + ["Oslo"] * 20, COUNTRIES * 20])
    assert (one["city"], one["others"]) == (REPRODUCED, NO)
    near = [["Paris"] * 104 + ["Oslo"] * 96, ["Chile"] * 200]
    assert (decided(near)["city"], decided(near)["others"]) == (NOT_DECIDED, YES)
    few = [["Paris"] * 70 + ["Oslo"] * 66 + ["Rome"] * 64, ["Chile"] * 200]
    assert decided(few)["city"] == NOT_REPRODUCED


def test_questions_without_names_are_excluded():
    sure = [["Sure, here is a city."] * 175 + ["Paris"] * 25, ["Chile"] * 200]
    found = decided(sure)
    assert (found["city"], found["others"]) == (EXCLUDED, YES)
    said = findings(replies_of(*sure), [CITY, COUNTRY], NONE).found[0]
    assert said == "excluded: random-city (25 replies are a name)"
    more = [["Sure, here is a city."] * 150 + ["Paris"] * 50, ["Chile"] * 200]
    assert decided(more)["city"] == REPRODUCED  # of those that are names


def test_the_same_question_at_another_temperature_is_no_other_question():
    cooler = Question("cool", CITY.prompt, "city", 0.5)
    found = findings(replies_of(*PAIRS), [CITY, cooler, COUNTRY], NONE)
    assert "cool" not in found.found[1] and "country" in found.found[1]


def test_the_answers_table_has_every_interval():
    replies = replies_of(["Paris."] * 150 + ["Oslo"] * 30 + ["?", "a"] * 10, COUNTRIES * 20)
    table = beyond.answers_table(replies, [CITY, COUNTRY]).set_index("question")
    city = table.loc["random-city"]
    assert city["names"].startswith("0.90 (") and city["its share"].startswith("0.75 (0.6")
    assert (city["most frequent"], city["different"], city["replies"]) == ("paris", 4, 200)
    assert table.loc["country", "effective number"].startswith("10 (")
    assert table.loc["country", "unseen"] == "0.00 (0.00 to 0.01)"  # 3/200, not nothing


def test_names_are_whole_answers():
    texts = pd.Series(["Valparaíso, Chile", "Any city", "", "**Oslo**\nIt lies in Norway.", "OSLO"])
    assert list(beyond.names(texts, "city").index) == [0, 3, 4]
    assert beyond.top_name(beyond.names(texts, "city")) == "oslo, 2 of 3"
    many = pd.Series(["Oslo"] * 20 + ["Paris"] * 10)
    assert beyond.top_name(many).startswith("oslo 0.67 (")
    assert beyond.top_name(texts[:0]) == "none"
    assert beyond.top_name(pd.Series(["Oslo"])) == "oslo, 1 of 1"
    assert beyond.share_of(1, 2) == "0.50 (0.09 to 0.91)"


def test_what_is_asked_is_kept_by_name(tiny, tmp_path, monkeypatch):
    chat, base = tiny("llama", chat=True), tiny("llama")
    five, two = beyond.questions(chat), beyond.questions(base)
    assert [q.label for q in five][:2] == ["random-city", "random-city-half"]
    assert five[0].prompt == five[1].prompt == beyond.CITY_PROMPT and five[1].temperature == 0.5
    assert two == [five[0], five[3]] == beyond.questions(chat, quick=True)
    replies = beyond.ask_all(chat, five, 3, results_dir=tmp_path)
    assert replies.question.value_counts(sort=False).to_dict() == {q.label: 3 for q in five}
    again = beyond.ask_all(chat, five, 3, results_dir=tmp_path)
    pd.testing.assert_frame_equal(replies, again)
    beyond.ask_all(chat, two, 4, seed=1, results_dir=tmp_path)
    monkeypatch.setattr(beyond, "N_REPLIES", 3)  # the usual number
    beyond.ask_all(chat, two, 3, results_dir=tmp_path)
    names = {path.name for path in tmp_path.glob("*/texts/*")}
    assert {f"repeats-{q.label}-n3" for q in five} < names
    assert {"repeats-country", "repeats-country-n4-seed1"} < names


def test_an_endpoint_is_asked_and_its_refusals_left_out():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if len(asked) == 1 or asked[-1]["model"] == "none":
                return self.send_error(400)
            choice = {"message": {"content": "Valparaíso, Chile"}, "finish_reason": "stop"}
            body = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        replies = beyond.ask_endpoint(url, "far/away", 6)
        assert len(replies) == 5 and len(asked) == 6
        with pytest.raises(RefusedRequestError, match="400"):
            beyond.ask_endpoint(url, "none", 2)
        server.shutdown()
    assert {request["temperature"] for request in asked} == {1.0}
    assert asked[0]["messages"][0]["content"] == beyond.CITY_PROMPT
    table = beyond.answers_table(replies, [Question("far/away", "", "city")])
    assert table["most frequent"][0] == "valparaíso, chile"
    assert table["names"][0].startswith("1.00 (")
    assert beyond.ask_endpoint("", "", 6).empty


# Estimates of repeated answers


def entropy_of(p):
    p = np.asarray(p)[np.asarray(p) > 0]
    return float(-(p * np.log(p)).sum())


def samples(p, n):
    """Every count vector of n draws from p, with its probability."""
    for counts in itertools.product(range(n + 1), repeat=len(p)):
        if sum(counts) == n:
            ways = math.factorial(n) / math.prod(map(math.factorial, counts))
            yield np.array(counts), ways * math.prod(q**c for q, c in zip(p, counts, strict=True))


@pytest.mark.parametrize("p", [(0.5, 0.5), (0.7, 0.2, 0.1), (0.4, 0.3, 0.2, 0.1)])
def test_the_correction_removes_most_of_the_bias(p):
    n = 10
    corrected = sum(w * beyond.entropy(c[c > 0]) for c, w in samples(p, n))
    naive = sum(w * entropy_of(c / n) for c, w in samples(p, n))
    truth = entropy_of(p)
    assert abs(corrected - truth) < abs(naive - truth) / 4


@pytest.mark.parametrize("once, twice, large", [(3, 2, 5), (4, 0, 9), (1, 3, 0), (12, 1, 30)])
def test_both_ends_of_the_series_agree(once, twice, large):
    counts = np.array([1] * once + [2] * twice + [large] * (large > 0))
    n = counts.sum()
    a = 2 * twice / ((n - 1) * once + 2 * twice) if twice else 2 / ((n - 1) * (once - 1) + 2)
    q = 1 - a
    from_far = sum(q**j / (n - 1 + j) for j in range(1, 200_000))
    seen = (counts / n * [sum(1 / k for k in range(c, n)) for c in counts]).sum()
    assert beyond.entropy(counts) == pytest.approx(seen + once / n * from_far, rel=1e-9)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_estimates_stay_where_they_must(counts):
    value, unseen = beyond.entropy(np.array(counts)), beyond.unseen(np.array(counts))
    assert math.isfinite(value) and value >= -1e-12
    assert 0 <= unseen.low <= unseen.value <= unseen.high <= 1


def test_one_answer_only_and_all_different():
    found = beyond.summarise(["Paris"] * 40)
    assert found.effective.value == found.effective.low == found.effective.high == 1
    assert found.top_share.value == 1 and found.top_share.low > 0.9
    assert found.unseen.value == 0 and found.unseen.high == pytest.approx(3 / 40)
    found = beyond.summarise(map(str, range(50)))
    assert found.effective.value > 500  # fifty distinct answers say: many more
    assert (found.unseen.value, found.unseen.low) == (1, pytest.approx(47 / 50))


# Distributions whose effective number and unseen mass are known.
KNOWN = {
    "one dominates": (np.r_[0.8, 0.1 * 0.5 ** np.arange(20)], 300),
    "50 alike": (np.ones(50), 300),
    "500 alike": (np.ones(500), 300),
    "harmonic": (1 / np.arange(1, 301), 300),
    "power law": (1 / np.arange(1, 1001) ** 1.5, 100),
}


def coverage(p, n, runs):
    p = p / p.sum()
    truth, held = np.exp(entropy_of(p)), []
    for run, counts in enumerate(np.random.default_rng(7).multinomial(n, p, size=runs)):
        effective = beyond.effective_number(counts, seed=run)
        unseen, mass = beyond.unseen(counts[counts > 0]), p[counts == 0].sum()
        held.append((effective.low <= truth <= effective.high, unseen.low <= mass <= unseen.high))
    return np.mean(held, axis=0)


@pytest.mark.parametrize("name", KNOWN)
def test_intervals_cover_at_about_the_stated_rate(name, monkeypatch):
    """But for a long tail, the limit that the docstring states."""
    monkeypatch.setattr(beyond, "N_RESAMPLES", 100)
    p, n = KNOWN[name]
    effective, unseen = coverage(p, n, 120)
    assert unseen >= 0.86
    assert effective < 0.9 if name == "power law" else effective >= 0.86


def test_what_counts_as_the_same_answer():
    for text in ("Tokyo", " TOKYO.", "**Tokyo**", "\n\n“Tokyo”\nIt is large."):
        assert beyond.plain_answer(text) == "tokyo"
    assert beyond.plain_answer("Valparai\u0301so,  Chile!") == "valparaíso, chile"
    assert beyond.plain_answer("") == beyond.plain_answer(" ... ") == ""


def test_counts_do_not_depend_on_the_order_of_the_texts():
    texts = ["b", "a", "c", "a", "b", "A."]
    found = [beyond.summarise(order) for order in (texts, texts[::-1], sorted(texts))]
    assert list(found[0].counts.items()) == [("a", 3), ("b", 2), ("c", 1)]
    assert all(f.effective == found[0].effective and f.unseen == found[0].unseen for f in found)
    with pytest.raises(InvalidRequestError, match="at least two"):
        beyond.summarise(["Paris"])


def test_another_question_is_not_taken_for_the_kept_one(tiny, tmp_path):
    model, options = tiny("llama", chat=True), {"n": 6, "results_dir": tmp_path}
    found = beyond.ask(model, CITY._replace(temperature=0.7), **options)
    assert list(found.columns) == programs.COLUMNS and len(found) == 6
    with pytest.raises(ResultsError, match="another"):
        beyond.ask(model, CITY._replace(prompt="Name a random fruit"), **options)


def test_the_figure_shows_every_answer_once():
    texts = ["a"] * 20 + ["b"] * 5 + ["c"] * 2 + ["d", "e", "$x"]
    found = beyond.summarise(texts)
    ax = figures.answer_bars(found, top=2)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[:-1] == [20, 5, 2, 3]
    assert widths[-1] == pytest.approx(30 * found.unseen.value)
    only = beyond.summarise(["$5", "$5"])
    labels = [label.get_text() for label in figures.answer_bars(only).get_yticklabels()]
    assert labels[0] == r"\$5"


# Programs


ORDERED = [(k, -5.0 - k, k < 5) for k in range(10)]
RNG = np.random.default_rng(0)


def test_the_order_is_decided_both_ways():
    perfect = decided(table=programs_of(*[ORDERED] * 6))
    assert (perfect["interleave"], perfect["chance"]) == (NOT_REPRODUCED, YES)
    shuffled = [[(k, -RNG.random(), k < 10) for k in range(20)] for _ in range(12)]
    chance = decided(table=programs_of(*shuffled))
    assert (chance["interleave"], chance["chance"]) == (REPRODUCED, NOT_DECIDED)
    backwards = [[(k, -5.0 - k, k >= 5) for k in range(10)]] * 6
    assert decided(table=programs_of(*backwards))["chance"] == NO
    # 20 of 25 pairs in order.
    better = [[(k, -5.0 - k, k in (0, 1, 2, 4, 8)) for k in range(10)]] * 6
    both = decided(table=programs_of(*better))
    assert (both["interleave"], both["chance"]) == (REPRODUCED, YES)
    # Fewer than ten problems decide only together, and fewer than six not at all.
    mixed = decided(table=programs_of(*better, *backwards[:3]))
    assert (mixed["interleave"], mixed["chance"]) == (REPRODUCED, NOT_DECIDED)
    few = findings(replies_of(*PAIRS), [CITY, COUNTRY], programs_of(*better[:5]))
    assert set(few.verdict[2:4]) == {NOT_DECIDED}
    assert few.found[2].startswith("AUC 0.80 (points 0.80, 0.80")


def test_without_both_kinds_there_is_no_order():
    table = programs_of(*[[(k, -1.0 - k, True) for k in range(10)]] * 4, ORDERED, ORDERED)
    found = decided(table=table)
    assert found["interleave"] == found["chance"] == NOT_DECIDED
    told = findings(replies_of(*PAIRS), [CITY, COUNTRY], table).found[2]
    assert told.endswith("problems: 2")


def test_a_model_whose_programs_hardly_pass_is_excluded():
    table = programs_of(*[[(k, -1.0 - k, False) for k in range(10)]] * 4, ORDERED[4:])
    found = findings(replies_of(*PAIRS), [CITY, COUNTRY], table)
    assert set(found.verdict[2:]) == {EXCLUDED}
    assert set(found.found[2:]) == {"excluded: 1 of 46 replies pass"}


def test_the_mass_of_all_programs():
    for problem, said in (
        ([(k, -5.0, True) for k in range(10)], NOT_REPRODUCED),
        ([(k % 2, -5.0, True) for k in range(10)], REPRODUCED),
        ([(k % 6, -5.0, True) for k in range(18)], NOT_REPRODUCED),
    ):
        assert decided(table=programs_of(*[problem] * 6))["whole"] == said
        assert decided(table=programs_of(*[problem] * 5))["whole"] == NOT_DECIDED


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_same_program_by_all_pairs(numbers):
    table = programs_of([(k, -1.0, True) for k in numbers] + [(9, -1.0, False)])
    row = beyond.same_program(table).iloc[0]
    pairs = list(itertools.combinations(numbers, 2))
    assert row.same == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert (row.passing, row.different) == (len(numbers), len(set(numbers)))


def test_same_program_is_unbiased():
    p = np.array([0.6, 0.3, 0.1])
    expected = 0.0
    for drawn in itertools.product(range(3), repeat=4):
        table = programs_of([(k, -1.0, True) for k in drawn])
        expected += p[list(drawn)].prod() * beyond.same_program(table).same[0]
    assert expected == pytest.approx((p**2).sum())


def test_a_base_model_is_not_asked_for_programs(tiny):
    table = beyond.draw_programs(tiny("llama"))
    assert list(table.columns) == programs.TESTED_COLUMNS and table.empty
    found = findings(replies_of(*PAIRS), [CITY, COUNTRY], table)
    assert (found.found[2:] == beyond.NOT_RUN).all()
    assert (found.verdict[2:] == EXCLUDED).all()
    assert beyond.example_programs(table) == ""
    assert beyond.why_not(table) == beyond.NOT_RUN != beyond.why_not(programs_of(ORDERED))
    assert beyond.shape_table(table).empty
    told = beyond.headline(replies_of(*PAIRS), [CITY], table)
    assert told["pass_1"] == told["program_auc"] == "not run"
    assert told["city_names"].startswith("1.00 (") and told["city_top"].startswith("paris 1.00 (")


def test_what_is_drawn_is_kept_by_name(tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        programs, "sample_programs", lambda *args, **options: seen.append((args, options))
    )
    chat = tiny("llama", chat=True)
    beyond.draw_programs(chat, results_dir=tmp_path)
    beyond.draw_programs(chat, 5, 2, quick=True)
    (first, usual), (second, other) = seen
    assert usual["name"] == "programs" and (len(first[1]), first[2]) == (12, 20)
    # The call whose result is stored with the project is `sample_programs` without more.
    assert (usual["max_tokens"], usual["seed"]) == (256, 0)
    assert other["name"] == "programs-quick-n5-seed2" and len(second[1]) == 1


def test_tables_of_programs():
    table = programs_of(ORDERED, [(k, -9.0, True) for k in range(8)], [(0, -1.0, False)] * 3)
    table.loc[0, "ended"] = False
    row = beyond.pass_table(table).iloc[0]
    assert (row.problems, row.replies, row.passed, row.failed, row["cut off"]) == (3, 21, 13, 8, 1)
    assert row["pass@1"].startswith("0.50 (") and "pass@5" not in row  # three draws of one problem
    order = beyond.order_table(table)
    assert list(order.problem) == ["p0", "p1", "p2", "mean over 1"]
    assert order.auc[0] == 1 and np.isnan(order.auc[1]) and order.programs[0] == 9
    assert order.auc[3] == "1.00 (points 1.00)"
    assert order["auc, shorter first"][0] == 0.5  # lengths are equal
    shape = beyond.shape_table(table)
    assert list(shape.problem) == ["p0", "p1"] and list(shape["share that pass"]) == [0.5, 1.0]
    assert shape["top three"][1] == pytest.approx(3 / 8)
    assert shape["two are the same"][1] == 0
    assert shape["ln of their mass"][1] == pytest.approx(-9 + np.log(8))


def test_the_examples_are_the_shortest_pair_of_one_problem():
    table = programs_of(ORDERED, [(1000 * k, -1.0, k > 3) for k in range(6)])
    said = beyond.example_programs(table)
    assert said.startswith("# p0: passes\ndef f(x):") and "# p0: fails\ndef f(x):" in said
    broken = table.assign(outcome=table.outcome.replace("failed", "error"))
    assert beyond.example_programs(broken) == ""


# The pages


@pytest.mark.models
@pytest.mark.parametrize("name", CORE)
def test_a_page_tells_what_the_stored_texts_hold(name, glued, monkeypatch):
    """Nothing is drawn: what is stored was asked for by the present code."""

    def never(*args, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(generation.Continuations, "complete", never)
    model, store = cu.load_model(name), paths.default_results_dir()
    asked = beyond.questions(model)
    replies = beyond.ask_all(model, asked, results_dir=store)
    table = beyond.draw_programs(model, results_dir=store)
    found = findings(replies, asked, table)
    told = beyond.headline(replies, asked, table)
    numbers = glued(name, "07_beyond")
    assert told.items() <= numbers.items()
    said = found[["claim", "kind", "verdict"]].to_dict("records")
    assert json.loads(numbers["verdicts"]) == said
    assert (len(replies), len(table)) == (200 * len(asked), 0 if table.empty else 240)


@pytest.mark.skipif(bool(sandbox.fault()), reason="no namespaces here")
def test_stored_programs_fare_again_as_they_did():
    folder = paths.default_results_dir() / "qwen2.5-coder-0.5b-instruct" / "texts" / "programs"
    stored = records.read_completions(folder)
    stored = stored[stored.problem == "second-largest"].reset_index(drop=True)
    drawn = stored.drop(columns=["outcome", "reason", "n_passed", "n_tests"])
    again = programs.run_programs(drawn, programs.read_problems())
    assert list(again.outcome) == list(stored.outcome)
    assert {"passed", "failed"} <= set(stored.outcome)


@pytest.mark.models
@pytest.mark.notebooks
@pytest.mark.skipif(bool(sandbox.fault()), reason="no namespaces here")
def test_a_quick_page_keeps_only_what_it_is_told_to(tmp_path):
    before = set(paths.default_results_dir().rglob("*"))
    parameters = {"model": "smollm2-135m-instruct", "quick": True, "results_dir": str(tmp_path)}
    output = tmp_path / "page" / "07.ipynb"
    first = notebooks.run("07_beyond", parameters, output).read_bytes()
    kept = {path.name for path in tmp_path.glob("*/texts/*")}
    assert kept == {"repeats-random-city-n8", "repeats-country-n8", "programs-quick-n3"}
    assert notebooks.run("07_beyond", parameters, output).read_bytes() == first
    assert set(paths.default_results_dir().rglob("*")) == before

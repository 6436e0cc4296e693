"""The study of Sec. 4 on made labels and tiny models: reuse, labels, claims in both directions."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils.core import metrics
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import ResultsError
from calib_utils.models import generation, registry
from calib_utils.openended import table1, verifiers
from calib_utils.openended.prompts import open_prompts
from calib_utils.openended.sweeps import node_table
from calib_utils.openended.table1 import plan_generations
from calib_utils.paths import default_results_dir
from calib_utils.results.records import read_completions
from calib_utils.studies import order_calibration, reporting
from calib_utils.studies.reporting import EXCLUDED, NOT_DECIDED, NOT_REPRODUCED, REPRODUCED

ITEM = OpenPrompt("item-city", "item", "Name a city. Answer with the name only.", "city")


class Counting:
    """A judge that calls texts with an "a" valid, and counts what it is asked."""

    name, criteria = "counting", ("overall",)

    def __init__(self, version=1):
        self.version, self.asked = version, []

    @property
    def identity(self):
        return {"version": self.version}

    def judge(self, items):
        self.asked += list(items.text)
        verdicts = (verifiers.Verdict(overall=10 if "a" in text else 1) for text in items.text)
        return verifiers.label_table(verdicts, ["overall"])


def texts(*rows):
    frame = pd.DataFrame(rows, columns=["text", "ended"])
    return frame.assign(prompt_id="item-city", category="item")


# Labels


def test_each_text_is_judged_once_and_labels_are_reused_for_the_same_texts_and_judge(tmp_path):
    rows = texts(("Paris", True), ("Rome", True), ("Paris", True))
    path, judge = tmp_path / "deep" / "x.parquet", Counting()
    first = verifiers.labels_of(rows, (ITEM,), judge, path)
    assert judge.asked == ["Paris", "Rome"]
    assert list(first.columns) == verifiers.COLUMNS and first.valid.tolist() == [True, False]
    again = verifiers.labels_of(rows, (ITEM,), judge, path)
    pd.testing.assert_frame_equal(first, again)
    assert len(judge.asked) == 2
    # Another version of the judge, another text, or another question: judged anew.
    for change in (
        (rows, (ITEM,), Counting(2)),
        (texts(("Paris", True), ("Riga", True)), (ITEM,), Counting()),
        (texts(("Paris", False), ("Rome", True)), (ITEM,), Counting()),
        (rows, (replace(ITEM, prompt="Name a town."),), Counting()),
    ):
        verifiers.labels_of(*change, path)
        assert len(change[2].asked) == 2
    assert [p.name for p in path.parent.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("damage", [b"PAR1 and nothing", None])
def test_kept_labels_that_cannot_be_read_are_made_anew(tmp_path, damage):
    rows, path = texts(("Paris", True)), tmp_path / "x.parquet"
    verifiers.labels_of(rows, (ITEM,), Counting(), path)
    path.write_bytes(damage or path.read_bytes()[:-40])
    judge = Counting()
    assert verifiers.labels_of(rows, (ITEM,), judge, path).valid.tolist() == [True]
    assert judge.asked == ["Paris"]
    with pytest.raises(ResultsError, match="writable results_dir"):
        verifiers.labels_of(rows, (ITEM,), Counting(), path / "x.parquet")


def test_missing_verdicts_survive_the_file(tmp_path):
    rows, path = texts(("Kashmir", True), ("", False)), tmp_path / "x.parquet"
    first, again = (verifiers.labels_of(rows, (ITEM,), verifiers.ExactJudge(), path) for _ in "12")
    assert first.valid.isna().any()
    pd.testing.assert_frame_equal(first, again)


def test_the_lists_decide_every_item_prompt_of_the_project():
    own = open_prompts(["item"])
    assert {verifiers.known_prompts()[prompt.prompt] for prompt in own} == {p.verifier for p in own}
    assert isinstance(order_calibration.judge_of(own), verifiers.ExactJudge)
    assert isinstance(order_calibration.judge_of(open_prompts()), verifiers.LanguageChecker)
    for judge in (verifiers.ExactJudge(), verifiers.LanguageChecker()):
        assert json.loads(json.dumps(judge.identity)) == judge.identity


# Plans


@pytest.mark.parametrize("make", [order_calibration.laptop, order_calibration.quick])
def test_plans_have_names_of_their_own_for_every_seed(make):
    names = [{s.name for s in make(seed).sweeps} for seed in (0, 1, 12)]
    assert len(set.union(*names)) == sum(map(len, names))
    plan = make()
    for own in plan.trees.values():
        assert [sweep.depth for sweep in own] == sorted({sweep.depth for sweep in own})
    assert set(plan.drawn.ranks) <= set(plan.trees["lists"][0].ranks)
    assert all(sweep in plan.sweeps and sweep.depth == 2 for sweep in plan.oracle.values())


# The study on a tiny model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(tiny, store):
    return order_calibration.run(tiny("llama", chat=True), order_calibration.quick(), store)


def test_the_study_is_read_back_without_running_anything(study, tiny, store, monkeypatch):
    def run(*_, **__):
        raise AssertionError("the model ran")

    monkeypatch.setattr("calib_utils.openended.sweeps.grow", run)
    monkeypatch.setattr(verifiers.ExactJudge, "judge", run)
    monkeypatch.setattr(verifiers.LanguageChecker, "judge", run)
    again = order_calibration.run(tiny("llama", chat=True), order_calibration.quick(), store)
    for name, own in study.candidates.items():
        pd.testing.assert_frame_equal(own, again.candidates[name])
    sizes = order_calibration.sizes(study).set_index("sweep")
    assert sizes.judge.drop("paper").to_dict() == {
        s.name: "harper" if s.name.startswith("texts") else "exact" for s in study.plan.sweeps
    }
    assert sizes.texts["paper"] == 10 * 100**3


def test_table1_texts_are_kept_and_start_with_the_forced_tokens(tiny, tmp_path):
    model, prompts = tiny("llama", chat=True), {p.id: p for p in open_prompts(["joke"])[:2]}
    plan = plan_generations(list(prompts), 3, 1)
    start = generation.start_of(model, prompts["joke-cat"])
    inner = [i for i in range(60) if i not in start.end_ids]
    forced = {key: [tuple(inner[5 * k : 5 * k + 2]) for k in range(3)] for key in prompts}
    first = table1.generate(model, plan, prompts, forced, 6, results_dir=tmp_path)
    assert len(first) == len(plan) * 3
    opened = first[(first.strategy == "oracle") & (first.prompt_id == "joke-cat")]
    for text, tokens in zip(opened.text, forced["joke-cat"], strict=True):
        assert text.startswith(model.tokenizer.decode(list(tokens)))
    again = table1.generate(model, plan, prompts, forced, 6, results_dir=tmp_path)
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(ResultsError, match="another"):
        other = {**forced, "joke-cat": forced["joke-cat"][::-1]}
        table1.generate(model, plan, prompts, other, 6, results_dir=tmp_path)


def test_table1_settings_are_the_cutoffs_of_transformers(tiny, monkeypatch):
    """A cutoff that keeps one token writes the greedy text, whatever the temperature."""
    model, prompt = tiny("llama", chat=True), open_prompts(["joke"])[0]
    rows = [("top_k", 1.0), ("top_p", 1e-6), ("min_p", 1.0), ("none", np.nan)]
    plan = pd.DataFrame(rows, columns=["strategy", "parameter"])
    plan = plan.assign(prompt_id=prompt.id, temperature=2.0, n_texts=4, seed=range(4))
    found = table1.generate(model, plan, {prompt.id: prompt}, {prompt.id: []}, 5)
    start = generation.start_of(model, prompt)
    ((cold,),) = table1.draw_texts(model, start, [{"top_k": 1}], [0], [()], 5)
    assert set(found.text[found.strategy != "none"]) == {cold[0]}
    assert found.text[found.strategy == "none"].nunique() > 1


def test_table1_draws_more_texts_a_setting_than_fit_into_a_pass(tiny):
    """As at the paper's size."""
    model, prompt = tiny("qwen3", chat=True), open_prompts(["joke"])[0]
    n, start = table1.ROWS + 8, generation.start_of(model, prompt)
    inner = next(i for i in range(60) if i not in start.end_ids)
    rows = [("top_k", 5.0, 0), (table1.ORACLE, np.nan, 1)]
    plan = pd.DataFrame(rows, columns=["strategy", "parameter", "seed"])
    plan = plan.assign(prompt_id=prompt.id, temperature=1.0, n_texts=n)
    found = table1.generate(model, plan, {prompt.id: prompt}, {prompt.id: [(inner,)] * n}, 4)
    assert found.groupby("strategy").size().to_dict() == {"top_k": n, table1.ORACLE: n}


def test_the_shared_prompt_changes_no_text(architecture, tiny, monkeypatch):
    model, prompt = tiny(architecture, chat=True), open_prompts(["joke"])[0]
    start = generation.start_of(model, prompt)
    inner = [i for i in range(60) if i not in start.end_ids]
    forced = [(inner[k],) for k in range(4)]
    drawn = model, start, [{"temperature": 1.5, "top_k": 20}], [5], forced, 6
    found = table1.draw_texts(*drawn)
    monkeypatch.setattr(table1, "_prompt_once", lambda *given: {})
    assert found == table1.draw_texts(*drawn)


# Claims, in both directions


def depth_row(recall_at=(0.2, 0.1, 0.3), area_gain=(0.1, 0.0, 0.2), **values):
    row = {"kind": "lists", "forced": 1, "depth": 1, "n_prompts": 12, "prevalence": 0.3}
    row |= {"area": 0.4, "random_area": 0.32, "random_recall_at": 0.0} | values
    for bound, recall, gain in zip(("", "_low", "_high"), recall_at, area_gain, strict=True):
        row |= {f"recall_at{bound}": recall, f"area_gain{bound}": gain}
        row[f"past_half{bound}"] = gain - (1 - row["random_area"]) / 2
    return row


def change_row(difference, low, high, measure="area", **values):
    row = {"kind": "lists", "forced": 3, "depth": 3, "minus": 1, "n_prompts": 12} | values
    return row | {"measure": measure, "difference": difference, "low": low, "high": high}


def source_rows(shifts):
    rows = [
        {"labels": labels, "prompt_id": f"p{tree}", "area": 0.5 + 0.01 * tree + shift, "node": ()}
        for labels, shift in zip(order_calibration.SOURCES, (0.0, *shifts), strict=True)
        for tree in range(12)
    ]
    known = {"seed": 0, "depth": 1, "recall": "unweighted", "n_valid": 3, "area_gain": 0.1}
    return pd.DataFrame(rows).assign(**known, recall_at=0.2)


def apart_rows(low, high, n_prompts=12):
    table = pd.DataFrame({"strategy": ["top_k", "min_p", "top_p", "none"]})
    known = {"kind": "lists", "measure": "embedding_diversity", "n_prompts": n_prompts}
    return table.assign(**known, low=low, high=high, difference=(low + high) / 2, in_favour=3)


ABLE = {"lists": (12, 21), "forms": (12, 23)}


def found(change=(-2, -3, -1), shifts=(0, 0), apart=(1, 2), validity=0.9, can=ABLE, **row):
    """The chapter's claims on tables of which all but the given numbers are usual."""
    changes = pd.DataFrame([change_row(*change), change_row(*change, measure="area_gain")])
    table = apart_rows(*apart) if apart else pd.DataFrame()
    reached = pd.DataFrame({"strategy": ["top_k", "min_p", "top_p", "none", "oracle"]})
    reached = reached.assign(kind="lists", validity=validity)
    depths = pd.DataFrame([depth_row(**row)])
    return order_calibration.findings(depths, changes, source_rows(shifts), reached, table, can)


RECALL, RANKING = "keeps less than half of the valid", "closer to a random order"
DEPTH, GREEDY, ORACLE = "worsens with depth", "one greedy completion", "An oracle"


@pytest.mark.parametrize(
    ("claim", "numbers", "said"),
    [
        (RECALL, {"recall_at": (0.2, 0.1, 0.3)}, REPRODUCED),
        (RECALL, {"recall_at": (0.8, 0.7, 0.9)}, NOT_REPRODUCED),
        (RECALL, {"recall_at": (0.5, 0.3, 0.7)}, NOT_DECIDED),
        (RECALL, {"recall_at": (np.nan,) * 3}, NOT_DECIDED),
        # Where most candidates are valid, recall at a precision says nothing.
        (RECALL, {"recall_at": (0.9, 0.8, 1.0), "random_recall_at": 0.5}, NOT_DECIDED),
        (RECALL, {"recall_at": (0.2, 0.1, 0.3), "random_recall_at": 0.5}, NOT_DECIDED),
        # Half of a perfect gain is 0.34 here.
        (RANKING, {"area_gain": (0.1, 0.0, 0.3)}, "yes"),
        (RANKING, {"area_gain": (0.5, 0.4, 0.6)}, "no"),
        (RANKING, {"area_gain": (0.34, 0.2, 0.5)}, NOT_DECIDED),
        (RANKING, {"area_gain": (0.1, 0.0, 0.3), "n_prompts": 3}, NOT_DECIDED),
        (DEPTH, {"change": (0.2, 0.1, 0.3)}, NOT_REPRODUCED),
        (DEPTH, {"change": (-0.2, -0.3, -0.1)}, REPRODUCED),
        (DEPTH, {"change": (-0.1, -0.3, 0.1)}, NOT_DECIDED),
        # Both readings have to be close.
        (GREEDY, {"shifts": (0.01, -0.02)}, REPRODUCED),
        (GREEDY, {"shifts": (0.0, -0.2)}, NOT_REPRODUCED),
        (ORACLE, {"apart": (0.1, 0.2)}, REPRODUCED),
        (ORACLE, {"apart": (-0.2, -0.1)}, NOT_REPRODUCED),
        (ORACLE, {"apart": (-0.2, 0.1)}, NOT_DECIDED),
        (ORACLE, {"apart": None}, NOT_DECIDED),
        (ORACLE, {"validity": 0.6}, NOT_DECIDED),  # diverse, but not valid enough
    ],
)
def test_claims_on_lists_follow_their_intervals(claim, numbers, said):
    table = found(**numbers)
    own = table[table.claim.str.contains(claim) & table.claim.str.contains(r"\(lists")]
    assert set(own.verdict) == {said} and len(own) == (4 if claim == ORACLE else 1)
    # Nothing was measured of forms.
    assert set(table.verdict[table.claim.str.contains(r"\(forms")]) == {NOT_DECIDED}


def test_a_model_that_cannot_do_the_prompts_is_excluded():
    table = found(can={"lists": (9, 21), "forms": (12, 23)})
    assert table.verdict[0] == EXCLUDED and "valid on 9 of 21 prompts" in table.found[0]
    assert EXCLUDED not in set(table.verdict[table.claim.str.contains("forms")])


# The judge of judges


def judged_study(n_valid, n_invalid):
    rows = [f"good {i}" for i in range(n_valid)] + [f"bad {i}" for i in range(n_invalid)]
    frame = texts(*[(row, True) for row in [*rows, "", "open"]])
    valid = [True] * n_valid + [False] * n_invalid + [False, None]
    labels = frame.drop(columns="category").assign(valid=pd.array(valid, dtype="boolean"))
    plan = order_calibration.laptop()
    name = plan.trees["lists"][0].name
    return order_calibration.Study(plan, {name: frame}, {name: labels}, {})


@pytest.mark.parametrize(
    ("n_valid", "n_invalid", "shares"), [(50, 50, (15, 15)), (4, 50, (4, 26)), (50, 3, (27, 3))]
)
def test_half_of_the_texts_judged_are_valid_where_there_are_enough(n_valid, n_invalid, shares):
    found = order_calibration.sample_texts(judged_study(n_valid, n_invalid), "lists", 30)
    assert (found.valid.sum(), (~found.valid).sum()) == shares
    assert found.text.is_unique and set(found.text.str.split().str[0]) <= {"good", "bad"}
    again = order_calibration.sample_texts(judged_study(n_valid, n_invalid), "lists", 30)
    pd.testing.assert_frame_equal(found, again)


def test_agreement_and_noise_of_a_judge_with_known_errors():
    study = judged_study(40, 40)
    sample = order_calibration.sample_texts(study, "lists", 60)
    wrong = sample.text.isin(sample.text[sample.valid].iloc[:6])
    says = sample.valid.astype(bool) ^ wrong
    scores = {"grammar": 10, "semantics": says.map({True: 9, False: 8}), "overall": 10}
    judged = sample[["prompt_id", "text"]].assign(valid=says, **scores)
    table = order_calibration.agreement_table({"lists": sample}, {"lists": judged}, study)
    row = table.iloc[0]
    assert row.accuracy == pytest.approx(54 / 60) and row.always_invalid == pytest.approx(0.5)
    assert row.accuracy_low < row.accuracy < row.accuracy_high
    assert (row.false_negative, row.false_positive) == (pytest.approx(6 / 30), 0)
    assert table.accuracy.nunique() == 1  # the score on semantics says the same here
    noise = order_calibration.noise_table(table, 0.5).set_index("judge")
    assert noise.area["this page's judge on lists"] < 1
    assert len(order_calibration.noise_table(pd.DataFrame(), 0.5)) == 2


def test_texts_for_people_make_a_sheet(study, tmp_path):
    items = order_calibration.to_annotate(study, 2)
    sheet = verifiers.write_sheet(tmp_path / "sheet.csv", items).read_text("utf-8")
    assert all(prompt in sheet for prompt in set(items.prompt))


def test_intervals_move_into_the_cell_of_their_estimate():
    row = {"n": 3, "area": 0.5, "area_low": 0.25, "area_high": 0.75, "left": 1.0}
    row |= {"difference": np.nan, "low": np.nan, "high": np.nan}
    table = reporting.with_intervals(pd.DataFrame([row]))
    assert list(table.columns) == ["n", "area", "left", "difference"]
    assert table.iloc[0].tolist() == [3, "0.50 (0.25 to 0.75)", 1.0, "–"]
    assert reporting.with_intervals(pd.DataFrame()).empty
    assert metrics.as_text(0.5, np.nan, np.nan) == "0.50 (no interval)"


def test_without_a_judge_nothing_is_asked(study):
    assert order_calibration.judge_by_name("") is None
    assert order_calibration.ask(study, None) == ({}, {})
    with pytest.raises(cu.CalibUtilsError):
        order_calibration.judge_by_name("no-such-model")


def test_table1_counts_undecided_texts_as_not_valid(study, tiny, tmp_path, monkeypatch):
    """Labels by hand, since a tiny random model names no city."""
    model = tiny("llama", chat=True)
    sweep = study.plan.oracle["lists"]
    labels = study.labels[sweep.name].assign(valid=pd.array([True] * len(study.labels[sweep.name])))
    candidates = node_table(study.completions[sweep.name], labels)
    changed = replace(study, candidates={**study.candidates, sweep.name: candidates})
    found = order_calibration.texts_of(model, changed, 0, tmp_path)["lists"]
    assert {"item-city"} <= set(found.prompt_id) <= {p.id for p in sweep.prompts}
    assert found.valid.dtype == bool
    assert set(found.strategy) == {"top_k", "min_p", "top_p", "none", "oracle"}


@pytest.mark.models
@pytest.mark.parametrize("model", registry.CORE)
def test_the_chapter_tells_what_its_stored_texts_and_labels_say(model, glued):
    numbers = glued(model, "04_order_calibration")
    verdicts = [int(numbers[v]) for v in ("reproduced", "not_reproduced", "not_decided")]
    assert sum(verdicts) == int(numbers["claims"])
    kinds = [one["kind"] for one in json.loads(numbers["verdicts"])]
    assert kinds.count(reporting.OURS) == 4
    for kind, judge in (("lists", "exact"), ("forms", "exact"), ("texts", "harper")):
        sweep = f"{kind}-1"
        # From the files alone, node by node, without the study's own functions.
        folder = default_results_dir() / model
        texts = read_completions(folder / "texts" / sweep)
        labels = pd.read_parquet(folder / "labels" / f"{sweep}@{judge}.parquet")
        rows = texts.merge(labels[["prompt_id", "text", "valid"]], on=["prompt_id", "text"])
        trees = rows.dropna(subset="valid").astype({"valid": float}).groupby(["prompt_id", "seed"])
        share = trees.valid.mean().groupby("prompt_id").mean().mean()
        assert float(numbers[f"{kind}_prevalence"]) == pytest.approx(share, abs=0.006)


def test_a_plan_forces_no_rank_that_a_vocabulary_does_not_have():
    plan = order_calibration.laptop()
    assert plan.within(1000) == plan
    small = plan.within(257)
    assert [sweep.name for sweep in small.sweeps] == [sweep.name for sweep in plan.sweeps]
    assert max(max(sweep.ranks) for sweep in small.sweeps) < 257
    assert small.trees[order_calibration.LISTS][0].ranks == tuple(range(0, 257, 10))

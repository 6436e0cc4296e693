"""The chapter on models that meet, or break, each hypothesis; the worked example by hand."""

import functools
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils import paths
from calib_utils.book import check
from calib_utils.errors import ResultsError
from calib_utils.figures import formal_framework as formal_framework_figures
from calib_utils.figures.explorer import group_masses, groups_of, step_data
from calib_utils.models.registry import CORE
from calib_utils.results import records, storage
from calib_utils.studies import errata, formal_framework
from calib_utils.studies.reporting import EXCLUDED, TESTABLE
from calib_utils.theory import theorems

SHARP = cu.EquallySharp(3.0)
items = functools.cache(errata.items)
LAWS = {"sharp": SHARP, "displaced": cu.Displaced(SHARP, 2), "uniform": cu.UniformOverV()}
FREE, BOUND, NAMES = "rng-2", "rng-2-sum-at-most-10", "us-states-shortest-11"


@pytest.fixture(scope="module")
def studies():
    return {
        (name, task): formal_framework.study(cu.reference_model(law, task), task)
        for name, law in LAWS.items()
        for task in ((FREE, BOUND, NAMES) if name == "sharp" else (FREE, NAMES))
    }


def test_the_worked_example_is_what_one_gets_by_hand():
    table = formal_framework.definitions(formal_framework.worked_example())
    p = {"at": 0.2 * 0.5, "ta": 0.5 * 0.4, "to": 0.5 * 0.4}
    given = np.array(list(p.values())) / sum(p.values())
    div = np.exp(-(given * np.log(given)).sum()) / 3
    start = (1 / 3 - 0.2) + (2 / 3 - 0.5)
    expected = [0.5, div, 2, 2, 0.5, 2 / 3, 1, 0.5, 2 / 3, 0.5, 2 / 3, "no", "yes", start, 0.2]
    for found, by_hand in zip(table.computed, expected, strict=True):
        assert found == (by_hand if isinstance(by_hand, str) else pytest.approx(by_hand, abs=1e-6))


def test_factors_multiply_to_what_the_book_reports(studies):
    assert formal_framework.factor_gap(studies.values()) < 1e-9
    study = studies["displaced", NAMES]
    table = cu.evaluate(cu.reference_model(LAWS["displaced"], NAMES), NAMES, ["top_k=5"], [1.0])
    precision = study.factors.precision[study.settings.index((cu.TopK(5), 1.0))]
    assert precision == pytest.approx(table.sequence_precision[0], rel=1e-6)


def test_no_step_of_an_ordered_model_is_hard_and_some_of_a_displaced_one_are(studies):
    def hardest(name):
        table = formal_framework.hardness_table([studies[name, "rng-2"]], (0.05,))
        return table.filter(like="step").to_numpy().max()

    assert hardest("sharp") < 1e-12 and hardest("uniform") < 1e-12
    assert hardest("displaced") > formal_framework.HARD


def test_every_setting_stays_under_the_bound(studies):
    for study in studies.values():
        table = formal_framework.recall_bounds(study)
        assert (table.recall <= table.bound + 1e-9).all()
    assert formal_framework.recall_bounds(studies["displaced", FREE]).bound.min() < 0.9


def test_only_tasks_of_fixed_branching_have_a_price(studies):
    fixed = [
        formal_framework.has_fixed_branching(studies["sharp", t]) for t in (FREE, BOUND, NAMES)
    ]
    assert fixed == [True, False, False]
    price = formal_framework.validity_price(studies["sharp", FREE])
    warm = price[price.validity < 0.999]
    assert (warm.diversity <= warm.bound).all() and price.temperature.is_monotonic_increasing
    assert formal_framework.validity_price(studies["sharp", NAMES]).bound.isna().all()


def test_statements_are_decided_by_the_model(studies):
    chosen = ([studies[name, FREE], studies[name, NAMES]] for name in LAWS)
    found = [formal_framework.findings(own) for own in chosen]
    met = formal_framework.hypotheses_met(found[0])
    assert met == "meets 3 of the 4 hypotheses that its tasks could decide"
    sharp, displaced, uniform = (own.set_index("claim").verdict.to_dict() for own in found)
    hard = next(claim for claim in sharp if "hard steps" in claim)
    fails = "does not apply to this model"
    assert (sharp[hard], displaced[hard]) == (fails, "holds")
    assert displaced["Valid tokens hold the first ranks"] == fails
    premises = ("Valid tokens", "Logits of valid", "All prefixes")
    assert {sharp[claim] for claim in sharp if claim.startswith(premises)} == {"holds"}
    assert next(sharp[claim] for claim in sharp if claim.startswith("Diversity")) == "yes"
    shaped = "The first token is far from shape calibrated"
    assert (sharp[shaped], uniform[shaped]) == ("reproduced", "not reproduced")
    exact = next(claim for claim in sharp if claim.startswith("Precision and recall"))
    assert sharp[exact] == displaced[exact] == uniform[exact] == "holds"


def test_a_wrong_factor_is_a_violated_theorem_check(studies):
    one = studies["displaced", FREE]
    wrong = replace(one, factors=theorems.Factors(one.factors.alpha * 0.9, one.factors.beta))
    found = formal_framework.findings([wrong])
    assert set(found.verdict[found.kind == "theorem check"]) == {"violated"}


def test_a_task_that_the_model_hardly_does_is_excluded_by_name(studies):
    able = studies["sharp", FREE]
    numbers = able.numbers.assign(validity=able.numbers.validity * TESTABLE / 2)
    task = replace(able.task, name="rng-unable")
    unable = replace(able, numbers=numbers, task=task)
    found = formal_framework.findings([unable])
    assert set(found.verdict[found.kind != "theorem check"]) == {EXCLUDED}
    assert formal_framework.hypotheses_met(found).startswith("does none of the tasks")
    both, alone = formal_framework.findings([able, unable]), formal_framework.findings([able])
    assert (both.verdict == alone.verdict).all()
    assert both.found[both.kind != "theorem check"].str.endswith("; excluded: rng-unable").all()


def test_a_bound_that_says_nothing_does_not_vote(studies):
    one = studies["sharp", FREE]
    hot = one.numbers.assign(validity=0.06)
    found = formal_framework.findings([replace(one, numbers=hot)])
    assert set(found.verdict[found.kind == "test of ours"]) == {"not decided"}


def test_calibration_is_counted_prefix_by_prefix(studies):
    one = formal_framework.calibration_table([studies["uniform", NAMES]])
    assert (one["order calibrated"] == 1).all() and (one["shape error, largest"] < 1e-6).all()
    assert one.prefixes.sum() == studies["uniform", NAMES].trie.n_nodes
    broken = formal_framework.calibration_table([studies["displaced", FREE]])
    assert broken["order calibrated"].iloc[0] == 0


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    """The study of two digits by a tiny model, and the folder in which it is kept."""
    store = tmp_path_factory.mktemp("rows")
    return formal_framework.study(tiny("llama", chat=True), "rng-2", results_dir=store), store


@pytest.fixture
def kept(original, tiny, tmp_path):
    """The model, its study, and a copy to spoil of where it is kept: folder and both tables."""
    measured, store = original
    model, store = tiny("llama", chat=True), shutil.copytree(store, tmp_path / "rows")
    return model, measured, store, *files_of(store, model.key)


def files_of(store, key):
    return sorted((store / key / formal_framework.FOLDER).iterdir())


def test_a_kept_study_is_the_measured_one_and_stays(kept):
    model, measured, store, *tables = kept
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tables}
    assert len(before) == 2
    again = formal_framework.study(model, "rng-2", results_dir=store)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tables} == before
    pd.testing.assert_frame_equal(again.numbers, measured.numbers, check_exact=True)
    assert (again.edge_log_p == measured.edge_log_p).all() and again.record == measured.record
    assert (again.factors.alpha == measured.factors.alpha).all()
    calibrated = [theorems.order_calibrated(one.ranks).tolist() for one in (again, measured)]
    assert calibrated[0] == calibrated[1]
    assert formal_framework.factor_gap([again]) < 1e-9


def test_only_a_study_of_this_convention_with_both_tables_is_reused(kept):
    model, measured, store, settings, tokens = kept
    table, record = formal_framework.read(settings)
    table.loc[0, "validity"] = 0.123
    records.write(settings, table, record)
    reused = formal_framework.study(model, "rng-2", results_dir=store)
    assert reused.numbers.validity[0] == 0.123  # it was read, not measured
    records.write(settings, table, record | {"convention": 0})
    again = formal_framework.study(model, "rng-2", results_dir=store)
    pd.testing.assert_frame_equal(again.numbers, measured.numbers, atol=1e-6)
    assert formal_framework.read(settings)[1]["convention"] == record["convention"]
    records.write(settings, table.iloc[1:], record)  # other settings than today's
    assert len(formal_framework.study(model, "rng-2", results_dir=store).numbers) == len(table)
    tokens.unlink()
    formal_framework.study(model, "rng-2", results_dir=store)
    assert files_of(store, model.key) == [settings, tokens]


def test_a_study_of_another_model_is_not_replaced(kept):
    model, _, store, *_ = kept
    other = replace(model, weights_sha256="0" * 64)
    with pytest.raises(ResultsError, match=r"differs in weights_sha256.*delete it"):
        formal_framework.study(other, "rng-2", results_dir=store)


def test_a_broken_study_names_itself_and_is_a_fault(kept):
    model, _, store, settings, tokens = kept
    (found,) = check.check(store)
    assert found.kind == "framework" and found.verdict != "error"
    whole = {path: path.read_bytes() for path in (settings, tokens)}
    _, record = formal_framework.read(settings)
    for path, column, value in (
        (settings, "beta_1", 1.5),
        (settings, "validity", np.nan),
        (tokens, "rank", -1),
        (tokens, "log_p", 0.5),
    ):
        table, _ = formal_framework.read(path)
        table.loc[0, column] = value
        records.write(path, table, record)
        with pytest.raises(ResultsError, match="no possible study: delete it and run 01_formal"):
            formal_framework.study(model, "rng-2", results_dir=store)
        (found,) = check.check(store)
        (fault,) = (fault for fault in found.faults if fault.level == "error")
        assert path.name in fault.what
        path.write_bytes(whole[path])
    table, _ = formal_framework.read(tokens)
    records.write(tokens, table.iloc[1:], record)
    with pytest.raises(ResultsError, match="not of this prefix tree"):
        formal_framework.study(model, "rng-2", results_dir=store)
    tokens.write_bytes(whole[tokens][:200])
    with pytest.raises(ResultsError, match="holds no framework"):
        formal_framework.study(model, "rng-2", results_dir=store)
    with pytest.raises(ResultsError, match="its record lacks"):
        records.write(tokens, table, {})
        formal_framework.read(tokens)


@pytest.mark.models
@pytest.mark.parametrize("task", ["rng-2", pytest.param("us-states", marks=pytest.mark.full)])
def test_the_committed_study_is_what_the_weights_give(task, tmp_path):
    """The smallest model's, measured anew; and a number that is not shows."""
    (path,) = (
        path
        for path in check.stored(paths.default_results_dir(), "smollm2-135m-instruct", "framework")
        if path.name.startswith(f"{task}.")
    )
    row = check.recompute(path).iloc[0]
    assert row.same and row["convention is current"]
    if task == "rng-2":
        table, record = formal_framework.read(path)
        table.loc[3, "diversity"] += 0.01
        spoilt = tmp_path / path.parent.parent.name / formal_framework.FOLDER / path.name
        records.write(spoilt, table, record)
        tokens = path.name.replace("settings", "tokens")
        shutil.copy(path.with_name(tokens), spoilt.with_name(tokens))
        (spoilt,) = check.stored(tmp_path, kind="framework")
        row = check.recompute(spoilt, update=True).iloc[0]
        assert not row.same and row.of == "settings, diversity"
        mended = formal_framework.read(spoilt)[0]
        gaps = storage.differences(mended, formal_framework.read(path)[0], storage.KEY)
        assert max(gaps.values()) <= storage.tolerance_of(record)


def test_groups_of_a_step_and_their_masses():
    model = cu.reference_model(cu.Displaced(SHARP, 2), "us-states")
    step = step_data(model, "us-states")
    groups = groups_of(step)
    valid = [t.n_answers > 0 for t in step.tokens]
    assert [g != "invalid" for g in groups] == valid
    total = sum(np.exp(-t.gap) for t in step.tokens if t.n_answers)
    for token, group in zip(step.tokens, groups, strict=True):
        if token.n_answers:
            fair = np.exp(-token.gap) / total >= token.n_answers / 50
            assert group == ("valid and frequent" if fair else "valid and rare")
    masses = group_masses(step, np.array([0.2, 1.0, 5.0]))
    assert masses.drop(columns="temperature").sum(axis=1).to_numpy() == pytest.approx(1)
    assert masses.invalid.is_monotonic_increasing
    assert 1 - masses.invalid.to_numpy() == pytest.approx([step.validity(t) for t in (0.2, 1, 5)])


@pytest.mark.usefixtures("book_style")
def test_every_figure_is_drawn_from_what_it_is_given(studies):
    example, study = formal_framework.worked_example(), studies["displaced", FREE]
    ax = formal_framework_figures.tree(example)
    assert {"at\nN = 1", "t\nN = 2", "(start)\nN = 3"} <= {t.get_text() for t in ax.texts}
    ax = formal_framework_figures.compounding(study, ax=plt.subplots()[1])
    drawn = [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata()) > 1]
    column = study.settings.index((cu.TopK(20), 1.0))
    assert float(study.factors.recall[column]) in drawn
    bounds, price = formal_framework.recall_bounds(study), formal_framework.validity_price(study)
    ax = formal_framework_figures.recall_bound(bounds, plt.subplots()[1])
    assert ax.get_xlabel() == "sequence precision"
    formal_framework_figures.price_of_validity({"rng-2": price}, ax=plt.subplots()[1])
    published = formal_framework.published_masses()
    step = step_data(cu.reference_model(SHARP, "us-states"), "us-states")
    figure = formal_framework_figures.head_and_tail(step, published)
    assert figure.axes[1].get_xlim()[1] > 7.9


@pytest.mark.usefixtures("book_style")
def test_the_figures_data_and_the_figure():
    laws = {"V": cu.UniformOverV(), "G": cu.UniformOverG(), "geometric": cu.Geometric(0.5)}
    steps = formal_framework.first_steps("rng-2-sum-at-most-10", laws)
    assert steps.groupby("law").p.sum().to_numpy() == pytest.approx(1)
    first = steps[steps.law == "V"].head(10)
    assert first.n_answers.tolist() == [10, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert first.p.to_numpy() == pytest.approx(first.n_answers / 64)
    curves = formal_framework.temperature_curves("rng-2-sum-at-most-10", laws)
    assert (curves[curves.law == "G"].diversity.nunique()) == 1
    figure = formal_framework_figures.laws_under_temperature(steps, curves)
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert bars == pytest.approx(first.p)
    titles = [ax.get_title(loc="right") for ax in figure.axes]
    assert titles[1] == "at T = 1\nVal 1.00, Div 1.00" and titles[2] == "invalid 0.0%"


@pytest.mark.models
@pytest.mark.parametrize("model", CORE)
def test_the_chapter_tells_what_its_functions_find(model, glued):
    numbers = glued(model, "01_formal_framework")
    verdicts = [int(numbers[v]) for v in ("reproduced", "not_reproduced", "not_decided")]
    assert sum(verdicts) == int(numbers["claims"])
    assert numbers["theorems_hold"] == numbers["theorems"]
    for item in items():
        assert numbers[f"errata_{item.number}"] == item.found

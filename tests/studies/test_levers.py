"""Levers on tiny models: mixtures by brute force, kept files, equal budgets."""

import itertools

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils.errors import ResultsError
from calib_utils.results import conventions, records
from calib_utils.studies import levers


@pytest.fixture
def short(monkeypatch):
    """Two short lists and few prompts, so that the tiny models take seconds."""
    monkeypatch.setattr(levers, "wordings", lambda: ("", ""))
    monkeypatch.setattr(levers, "N_SEEDS", 2)
    return ("planet", "greek-muse")


def page_of(model, store=None):
    return cu.studies.reporting.Page(model, store, "eos", "")


def test_a_mixture_is_the_mean_of_its_prompts(tiny, short):
    model = tiny("llama")
    page = page_of(model)
    found, table = levers.answers(page, short), levers.settings(page, short)[0]
    settings = levers.levers(found, table)
    prompts = [p for name, p in levers.prompts_of("planet").items() if name.startswith("seed")]
    p = np.mean(
        [np.exp(cu.answer_probabilities(model, prompt, [0.6]).log_p) for prompt in prompts], axis=0
    )
    inside = p / p.sum()
    own = settings.query("task == 'planet' and lever == 'mixture of seeds' and setting == 'T=0.6'")
    assert own.validity.item() == pytest.approx(p.sum(), rel=1e-5)
    effective = np.exp(-(inside * np.log(inside)).sum())
    assert own.diversity.item() == pytest.approx(effective / 8, rel=1e-5)
    assert set(settings.lever) == {
        *("wording", "wording and temperature", "mixture of wordings", "mixture of seeds"),
        *("temperature", "top_k", "top_p", "min_p", levers.ALONE),
    }
    alone = settings.query("lever == @levers.ALONE and task == 'greek-muse'").validity.item()
    same = table.query("task == 'greek-muse' and rule == 'none' and temperature == 1")
    assert alone == pytest.approx(same.validity.item(), rel=1e-4)


def test_what_is_kept_is_used_again_and_guarded(tiny, short, tmp_path, monkeypatch):
    model = tiny("llama")
    first = levers.answers_of(model, "planet", results_dir=tmp_path)
    monkeypatch.setattr(levers, "answer_probabilities", None)
    again = levers.answers_of(model, "planet", results_dir=tmp_path)
    pd.testing.assert_frame_equal(first, again)
    path = tmp_path / model.key / conventions.LEVERS / "planet.parquet"
    table, record = levers.read(path)
    records.write(path, table.assign(log_p=0.5), record)
    with pytest.raises(ResultsError, match="no possible log-probabilities"):
        levers.read(path)


def rows(**levers_of):
    """One task; a lever's settings as pairs of validity and diversity."""
    return pd.DataFrame(
        {"task": "a", "lever": lever, "setting": "s", "validity": v, "diversity": d}
        for lever, pairs in levers_of.items()
        for v, d in pairs
    )


def test_every_lever_has_the_same_budget():
    pairs = [(0.9, 0.1), (0.9, 0.2), (0.5, 0.9), (0.9, 0.4), (0.9, 0.3), (0.9, 0.05)]
    settings = rows(temperature=pairs[:5], wording=pairs, **{levers.ALONE: pairs[:1]})
    found = levers.best(settings, 0.8).loc["a"]
    chosen = itertools.combinations([d if v >= 0.8 else 0.0 for v, d in pairs], levers.BUDGET)
    assert found["wording"] == pytest.approx(np.mean([max(few) for few in chosen]))
    assert found["temperature"] == pytest.approx(0.4)
    assert found[levers.ALONE] == pytest.approx(0.1)


def test_a_list_that_the_model_cannot_do_is_left_out_by_name():
    able = rows(temperature=[(0.9, 0.2)] * 5)
    unable = rows(temperature=[(0.01, 0.9)] * 5).assign(task="b")
    both = pd.concat([able, unable], ignore_index=True)
    assert levers.done(both) == (["a"], ["b"])
    found = levers.compared(both, [0.8])
    assert found.tasks.tolist() == ["1 of 1"] and found.diversity.tolist() == [0.2]


def test_cards_choose_one_setting_for_all_lists():
    """The most diverse on average among those that are valid enough on most lists."""
    values = {0.5: (0.9, 0.2), 1.0: (0.85, 0.4), 2.0: (0.3, 0.9)}
    table = pd.DataFrame(
        {"task": task, "rule": "none", "parameter": np.nan, "temperature": t}
        | {"validity": v, "diversity": d}
        for task in "abc"
        for t, (v, d) in values.items()
    )
    shipped = table[table.temperature == 1].assign(engine="vLLM, OpenAI's API")
    found = levers.cards(table, shipped)
    assert found.sampler.tolist() == ["vLLM, OpenAI's API", *["temperature alone"] * 2]
    assert found.setting.tolist() == ["none, T=1", "none, T=1", "none is valid enough"]
    assert found["best for"].tolist()[1:] == ["0.8", "0.95"]
    assert found.loc[1, "Val ≥ 0.8"] == "3 of 3"


def test_a_model_that_can_do_no_list_says_so():
    settings = rows(temperature=[(0.01, 0.9)] * 5, **{levers.ALONE: [(0.01, 0.9)]})
    found = levers.compared(settings)
    said = levers.headline(found, settings, 1)
    assert found.empty and said["able"] == "0 of 1"
    assert said["best_diversity"] == said["sampler_diversity"] == "none that is valid enough"
    assert levers.choices(*levers.before_and_after(settings)).empty
    none = levers.answers(page_of(None), ())
    columns = ["task", "rule", "parameter", "temperature", "validity", "diversity"]
    table = pd.DataFrame(columns=columns).astype({"parameter": float, "temperature": float})
    assert levers.levers(none, table).empty
    assert levers.cards(table, table.assign(engine="")).empty

"""All models side by side: only what is stored, only of this code, pairs paired."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from calib_utils import paths
from calib_utils.book import check
from calib_utils.core.rules import TABLE3_TEMPERATURES
from calib_utils.errors import InvalidRequestError, ResultsError
from calib_utils.figures import model_panel as model_panel_figures
from calib_utils.results import records, storage
from calib_utils.studies import logit_shape, model_panel, order_calibration
from calib_utils.studies.oracle_cutoffs import LIMIT
from calib_utils.studies.order_calibration import FORMS, LISTS
from calib_utils.studies.reporting import (
    EXCLUDED,
    NOT_DECIDED,
    NOT_REPRODUCED,
    REPRODUCED,
    VERDICTS,
)

REAL = "qwen2.5-coder-0.5b-instruct"
STORE = paths.default_results_dir()
PAIR = ("Qwen--Qwen3-0.6B-Base", "Qwen--Qwen3-0.6B")


def copied(target, *names):
    """Stored rows of one real model under other names: whatever compares them must find none."""
    tasks = ("us-states", "rng-2", "rng-2-sum-at-most-10")
    for name in names:
        for part in (*tasks, "texts/lists-1", "texts/forms-1", "labels", "logits"):
            shutil.copytree(STORE / REAL / part, target / name / part)
    return target


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return model_panel.read(copied(tmp_path_factory.mktemp("twins"), *PAIR))


@pytest.fixture(scope="module")
def real():
    return model_panel.read(STORE)


def test_every_model_with_results_is_read_and_none_else(real):
    stored = {path.name for path in STORE.iterdir() if path.is_dir()}
    assert set(real.models.model) == stored
    assert set(real.settings.model) == stored
    assert real.left_out.empty
    for table in (model_panel.compared, model_panel.order_table, model_panel.shape_table):
        assert set(table(real).model) <= stored


def test_numbers_are_those_that_are_stored(real):
    own = real.settings[(real.settings.model == REAL) & (real.settings.task == "rng-2")]
    stored = storage.read(STORE / REAL / "rng-2").settings
    merged = own.merge(stored, on=["rule", "parameter", "temperature"], suffixes=("", "_stored"))
    assert len(merged) == len(own) > 150
    assert (merged.validity == merged.validity_stored).all()
    ends = real.settings.groupby("model").end.unique()  # a base model as its chapter asked it
    assert list(ends["gemma-3-270m"]) == ["line"] and list(ends[REAL]) == ["eos"]
    # As many temperatures for every rule, whatever other chapters have stored.
    assert set(real.settings.temperature) == set(real.losses.temperature)
    assert set(real.settings.temperature) <= {*TABLE3_TEMPERATURES, LIMIT}
    parts = model_panel.split_table(real)
    assert np.allclose(parts.total, parts.order + parts["shape"] + parts["size"], atol=1e-9)
    expected = -np.log(parts.validity) - np.log(parts.diversity)
    assert np.allclose(parts.total, expected, atol=1e-6)


def test_twins_are_a_pair_without_a_difference(twins):
    assert model_panel.stage_pairs(twins.models) == [PAIR]
    assert model_panel.size_pairs(twins.models) == []
    table = model_panel.pair_table(twins)
    assert set(table.by) == {model_panel.STAGE}
    assert {f"area, {LISTS}", f"recall_at, {FORMS}"} <= set(table.measure)
    assert (table.difference.abs() < 1e-12).all()
    of_prompts = table.over.str.fullmatch(r"\d\d prompts")
    assert (table.loc[of_prompts, ["low", "high"]].abs() < 1e-12).all(axis=None)
    # Three tasks have no interval, and are counted.
    assert table.loc[~of_prompts, ["low", "high"]].isna().all(axis=None)
    assert set(table.over[~of_prompts]) == {"larger on 0 of 3 tasks"}


def test_sizes_of_one_family_are_neighbours_and_others_never():
    names = {"model": list("abcdefgh"), "family": [*"FFFFFG", "", ""], "dtype": [*"xxxxyx", "", ""]}
    table = pd.DataFrame(names).assign(parameters=[3.0, 1, 2, 9, 9, 9, np.nan, np.nan])
    table["stage"] = [*["base"] * 3, "post-trained", *["base"] * 2, "", ""]
    assert model_panel.size_pairs(table) == [("b", "c"), ("c", "a")]


def test_models_of_ones_own_have_what_is_said_of_them(tmp_path):
    (tmp_path / "models.yml").write_text(
        "mine-base: {family: Mine, stage: base, parameters: 1.0e+9}\n"
        "mine: {family: Mine, stage: post-trained, parameters: 1.0e+9, base: mine-base}\n"
        "mine-2: {family: Mine, stage: post-trained, parameters: 2.0e+9, licence: MIT}\n"
    )
    table = model_panel.models(["mine", "mine-2", "mine-base", "other", REAL], tmp_path)
    assert model_panel.stage_pairs(table) == [("mine-base", "mine")]
    assert model_panel.size_pairs(table) == [("mine", "mine-2")]
    assert table.set_index("model").family.to_dict()["other"] == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mine: {colour: red}", "no 'colour'; there is family, stage"),
        ("mine: {parameters: many}", "parameters = 'many' is not a number"),
        ("mine: {stage: tuned}", "stage 'tuned' is not base or post-trained"),
        ("mine: 3", "cannot be read"),
        ("mine: [5]", "cannot be read"),
        ("[", "cannot be read"),
    ],
)
def test_what_is_said_wrongly_of_a_model_is_refused(tmp_path, text, told):
    (tmp_path / "models.yml").write_text(text)
    with pytest.raises(InvalidRequestError, match=re.escape(told)):
        model_panel.models(["mine"], tmp_path)


def test_the_area_rises_only_where_an_interval_says_so():
    """Most pairs decide; an undecided one votes for neither side."""
    row = {"by": "size", "minus": "small", "over": "12 prompts", "difference": 0.1}

    def verdict(*intervals):
        rows = pd.DataFrame(intervals, columns=["low", "high"], dtype=float).assign(**row)
        rows["model"] = [f"model {i}" for i in range(len(rows))]
        tables = [rows.assign(measure=f"{name}, {LISTS}") for name in ("area", "area_gain")]
        found = model_panel._rise("rises", LISTS, pd.concat(tables))
        lone = len(rows) == 1 and rows.low[0] > 0
        assert ("one pair is no trend" in found.found) == lone
        return found.verdict

    up, down, open_ = (0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1)
    assert verdict(up, up) == verdict(up, up, down) == verdict(up, up, open_) == REPRODUCED
    assert verdict(down, down) == verdict(down) == verdict(up, down, down) == NOT_REPRODUCED
    none = (np.nan, np.nan)
    assert verdict(up) == verdict(up, open_) == verdict(none, none) == verdict() == NOT_DECIDED


def test_tasks_vote_within_a_model_and_models_with_each_other():
    index = [(model, task) for model in "abc" for task in "xyz"]
    by = pd.Series(
        [1, 1, -1, 1, 1, 1, -1, -1, 0], index=pd.MultiIndex.from_tuples(index), dtype=float
    )
    by.index.names = ["model", "task"]
    found = model_panel._vote("claim", "source", by, list("abcd"))
    assert found.verdict == REPRODUCED
    told = "on 2 of 3 models: a on 2 of 3 tasks, b on 3 of 3 tasks, c on 0 of 3 tasks; excluded: d"
    assert found.found == told
    assert model_panel._vote("claim", "source", by[["a"]] * 0, list("a")).verdict == NOT_DECIDED
    assert model_panel._vote("claim", "source", by.iloc[:0], list("a")).verdict == EXCLUDED


def test_claims_are_decided_and_say_of_which_model(real):
    found = model_panel.findings(real)
    assert found.claim.is_unique and set(found.verdict) <= {*VERDICTS, EXCLUDED}
    assert found.found.str.contains(f"{REAL}|no pair to decide it on").all()


def test_nothing_stored_is_nothing_shown(tmp_path):
    empty = model_panel.read(tmp_path)
    assert set(model_panel.findings(empty).verdict) == {NOT_DECIDED}
    assert model_panel.pair_table(empty).empty


def test_rows_of_an_older_convention_or_broken_ones_are_left_out_and_named(tmp_path):
    folder = copied(tmp_path, PAIR[0]) / PAIR[0]
    record = folder / "rng-2" / "provenance.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"convention": 0}))
    (folder / "us-states" / "settings.csv").write_text("broken")
    next((folder / "texts" / "lists-1").glob("*.parquet")).write_bytes(b"broken")
    (folder / "logits" / "logit-shape.parquet").write_bytes(b"broken")
    found = model_panel.read(tmp_path)
    assert set(found.settings.task) == {"rng-2-sum-at-most-10"}
    assert found.order.empty and not found.logits
    why = found.left_out.set_index("folder").why
    assert "older convention" in why[f"{PAIR[0]}/rng-2"]
    assert len(why) == 4


@pytest.mark.parametrize("models", [1, 2])
def test_figures_draw_few_models_as_well(twins, models):
    order = model_panel.sized(model_panel.order_table(twins), twins.models)
    order = order[(order.forced == 1) & order.model.isin(PAIR[:models])]
    figure = model_panel_figures.against_size(order, [PAIR], model_panel.published_order())
    drawn = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    lines = [line for line in drawn if len(line.get_xdata()) == 2]
    assert len(lines) == models - 1
    tasks = ["rng-2", "rng-4"]
    figure = model_panel_figures.frontier_panels(twins.settings, list(PAIR[:models]), tasks)
    assert [len(ax.lines) > 0 for ax in figure.axes] == [True] * models
    alone = model_panel.split_table(twins).query("decoder == @model_panel.ALONE")
    panels = model_panel_figures.split_of_models(alone).axes
    assert len(panels[0].get_yticklabels()) == 2 and len(panels) == alone.task.nunique()


# Order read from stored texts


def test_a_stored_study_is_the_study_that_ran(tiny, tmp_path):
    model, plan = tiny("llama", chat=True), order_calibration.quick()
    ran = order_calibration.run(model, plan, tmp_path)
    read = order_calibration.read(plan, tmp_path, model.key)
    pd.testing.assert_frame_equal(*map(order_calibration.measures, (ran, read)))
    shutil.rmtree(records.folder_of(tmp_path, model.key, plan.trees["lists"][0].name))
    less = order_calibration.read(plan, tmp_path, model.key)
    assert set(less.completions) == set(read.completions) - {plan.trees["lists"][0].name}
    other = order_calibration.read(order_calibration.quick(end="line"), tmp_path, model.key)
    assert not other.completions and order_calibration.measures(other).empty


# Kept logits


def kept(model, folder, curves):
    path = records.logits_path(folder, model.key, logit_shape.STUDY)
    records.keep_logits(curves, model, path)
    return path


@pytest.fixture(scope="module")
def curves(tiny):
    return logit_shape.logit_curves(tiny("llama", chat=True))


def test_kept_logits_are_the_logits_and_stay_while_they_are(tiny, curves, tmp_path):
    model = tiny("llama", chat=True)
    path = kept(model, tmp_path, curves)
    read, record = records.read_logits(path)
    pd.testing.assert_frame_equal(read, curves)
    assert record["weights_sha256"] == model.weights_sha256
    before = path.stat().st_mtime_ns, path.read_bytes()
    kept(model, tmp_path, curves + 1e-4)  # another machine's rounding
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    kept(model, tmp_path, curves + 1)
    assert records.read_logits(path)[0].equals((curves + 1).astype(np.float32).astype(float))
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"another measurement.*delete it"):
        records.keep_logits(curves, tiny("qwen2", chat=True), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: None,
        lambda table: table.take(list(range(table.num_rows))[::-1]),  # rising
        lambda table: table.replace_schema_metadata({"calib_utils": "{}"}),
        lambda table: table.slice(0, 0),
    ],
)
def test_broken_logits_are_a_named_error_and_a_fault(tiny, curves, tmp_path, spoil):
    path = kept(tiny("llama", chat=True), tmp_path, curves)
    table = spoil(pq.read_table(path))
    path.write_bytes(b"no table") if table is None else pq.write_table(table, path)
    with pytest.raises(ResultsError, match="delete it and run 06_logit_shape"):
        records.read_logits(path)
    (found,) = check.check(path.parent.parent)
    assert (found.kind, found.verdict) == ("logits", "error")


def test_committed_logits_pass_the_check(tmp_path):
    for part in ("logits", "rng-2"):
        shutil.copytree(STORE / REAL / part, tmp_path / REAL / part)
    found = {one.kind: one for one in check.check(tmp_path)}
    assert found["logits"].verdict == "ok", found["logits"].faults
    (tmp_path / REAL / "logits" / "stray.txt").touch()
    assert "not a file of logits" in str(check.check(tmp_path))

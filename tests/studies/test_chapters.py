"""Numbers of the chapters: glued text against stored rows, stored rows against the weights."""

import ast

import nbformat
import numpy as np
import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.book import check
from calib_utils.models.registry import CORE, find
from calib_utils.results import records, storage
from calib_utils.studies import errata

pytestmark = pytest.mark.models


def glued(model, notebook):
    """Every number a chapter glues into the book, as text."""
    path = paths.executed_dir(model) / f"{notebook}.ipynb"
    outputs = (o for c in nbformat.read(path, 4).cells for o in c.get("outputs", ()))
    found = {}
    for output in outputs:
        for name in [output.get("metadata", {}).get("scrapbook", {}).get("name")]:
            if name:
                text = output.data["application/papermill.record/text/plain"]
                found[name] = ast.literal_eval(text)
    return found


@pytest.mark.parametrize("model", CORE)
def test_the_states_rows_are_what_the_weights_give(model):
    """Every setting, loss and frontier stored for the states, measured again."""
    found = check.recompute(storage.folder_of(paths.default_results_dir(), model, "us-states"))
    row = found.iloc[0]
    assert row.same, row.to_dict()
    assert row["code is current"]
    assert row.settings > 20


@pytest.mark.parametrize("model", CORE)
def test_glued_numbers_are_those_of_the_rows(model):
    numbers, claims = glued(model, "02_controlled_tasks"), glued(model, "03_oracle_cutoffs")
    suffix = "@end=line" if find(model).stage == "base" else ""
    stored = storage.read(paths.default_results_dir() / model / f"us-states{suffix}").settings
    plain = stored[(stored.rule == "none") & (stored.temperature == 1)].iloc[0]
    assert float(numbers["validity_us-states"]) == pytest.approx(plain.validity, rel=0.05)
    assert float(numbers["diversity_us-states"]) == pytest.approx(plain.diversity, rel=0.05)
    oracle = stored[stored.rule == "oracle_size"]
    best = oracle.loc[(oracle.validity * oracle.diversity).fillna(0.0).idxmax()]
    assert float(claims["oracle_validity_us-states"]) == pytest.approx(best.validity, rel=0.05)
    verdicts = [int(claims[v]) for v in ("reproduced", "not_reproduced", "not_testable_here")]
    assert sum(verdicts) == int(claims["claims"]) == 5


@pytest.mark.parametrize("model", CORE)
def test_the_framework_chapter_tells_what_its_functions_find(model):
    numbers = glued(model, "01_formal_framework")
    verdicts = [int(numbers[v]) for v in ("reproduced", "not_reproduced", "not_testable_here")]
    assert sum(verdicts) == int(numbers["claims"]) == 7
    assert numbers["theorems_hold"] == numbers["theorems"] == "6"
    for item in errata.items_of(errata, errata):
        assert numbers[f"errata_{item.number}"] == item.found


@pytest.mark.parametrize("model", CORE)
def test_the_order_chapter_tells_what_its_stored_texts_and_labels_say(model):
    numbers = glued(model, "04_order_calibration")
    verdicts = [int(numbers[v]) for v in ("reproduced", "not_reproduced", "not_testable_here")]
    assert sum(verdicts) == int(numbers["claims"]) == 13
    assert sum(map(int, numbers["own_verdicts"].split(", "))) == 2
    for kind, sweep, judge in (("items", "items-1", "gazetteer"), ("texts", "texts-1", "harper")):
        # From the files alone, node by node, without the study's own functions.
        folder = paths.default_results_dir() / model
        texts = records.read_completions(folder / "texts" / sweep)
        labels = pd.read_parquet(folder / "labels" / f"{sweep}@{judge}.parquet")
        rows = texts.merge(labels[["prompt_id", "text", "valid"]], on=["prompt_id", "text"])
        rows = rows[rows.valid.notna()]
        shares = []
        for _, own in rows.groupby("prompt_id"):
            trees = [tree.valid.astype(bool) for _, tree in own.groupby("seed")]
            shares.append(np.mean([tree.mean() for tree in trees]))
        assert float(numbers[f"{kind}_prevalence"]) == pytest.approx(np.mean(shares), abs=0.006)

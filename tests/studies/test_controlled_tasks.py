"""The study of controlled tasks: claims from hand-made curves, stored rows, glued numbers."""

import numpy as np
import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.book import check
from calib_utils.models.registry import CORE, find
from calib_utils.results import storage
from calib_utils.studies import controlled_tasks, reporting
from calib_utils.studies.reporting import EXCLUDED, NOT_REPRODUCED, REPRODUCED

full = pytest.mark.full
TASKS = controlled_tasks.task_names((2, 3))
NONE = pd.DataFrame({"task": [], "temperature": [], "log_p": []})  # no answers


def curves(scale):
    """Val falls and Div rises with temperature; longer and bounded answers are worse by `scale`."""
    parts = []
    for place, task in enumerate(TASKS):
        best = 0.8 * scale**place
        table = {
            "validity": [best, best / 2, best / 4, best / 50],
            "diversity": [0.1, 0.3, 0.4, 0.6],
        }
        parts.append(pd.DataFrame({**table, "task": task, "temperature": [0.5, 1.0, 1.6, 4.0]}))
    return controlled_tasks.label_tasks(pd.concat(parts, ignore_index=True))


def decided(scale, p):
    answers = [pd.DataFrame({"task": t, "temperature": 1.0, "log_p": np.log(p)}) for t in TASKS]
    found = controlled_tasks.findings(curves(scale), pd.concat(answers))
    return found.set_index("claim").verdict


def test_tasks_are_told_by_family_and_length():
    table = curves(1.0)
    assert table.groupby("task", sort=False).length.first().tolist() == [2, 3] * 3 + [0]
    assert table.family.iloc[-1] == "states"


def test_claims_follow_the_curves():
    few, even = [0.2, *[0.001] * 9], [0.02] * 10
    good = decided(0.9, few)
    assert set(good) == {REPRODUCED}
    other = decided(1.1, even)
    worse = [claim for claim in other.index if "worse" in claim]
    assert len(worse) == 3 and (other[worse] == NOT_REPRODUCED).all()
    assert other["At T = 1 a few valid answers have most of the valid mass"] == NOT_REPRODUCED


def test_tasks_that_a_model_hardly_does_are_excluded_by_name():
    table = curves(1.0)
    nothing = controlled_tasks.findings(table.assign(validity=table.validity / 100), NONE)
    assert set(nothing.verdict) == {EXCLUDED}
    one = table.task == "rng-3"
    found = controlled_tasks.findings(table.assign(validity=table.validity.where(~one, 0.01)), NONE)
    told = found.set_index("claim").found
    heating = next(claim for claim in told.index if claim.startswith("Raising T"))
    assert told[heating].startswith(f"on {len(TASKS) - 1} of {len(TASKS) - 1} tasks")
    assert told[heating].endswith("excluded: rng-3")
    # What is left of the free digits has one length, so it says nothing of lengths.
    assert found.verdict[0] == EXCLUDED and "excluded: rng-3" in found.found[0]


def test_most_tasks_decide():
    table = curves(0.9)
    hot = (table.task == "us-states") & (table.temperature == 1.6)
    table.loc[hot, "validity"] = 0.9  # one task of seven that heating makes more valid
    found = controlled_tasks.findings(table, NONE).set_index("claim")
    row = found[found.index.str.startswith("Raising T")].iloc[0]
    assert row.verdict == REPRODUCED and row.found.startswith("on 6 of 7 tasks")


def test_over_lists_says_how_many_hold_and_nothing_of_a_model_that_does_none(tiny, tmp_path):
    """By hand from one list's exact numbers; a random model does no list."""
    page = reporting.Page(tiny("llama", chat=True), tmp_path, "eos", "")
    own = controlled_tasks.list_curves(page, ["planet"])
    row = controlled_tasks.list_table(page, own)
    at = own.set_index("temperature")
    assert row["validity lost"][0] == at.validity[0.5] - at.validity[1.6]
    assert row["best of both"][0] == np.minimum(at.validity, at.diversity).max()
    assert controlled_tasks.over_lists(row).empty
    able = row.assign(**{"best validity": 0.5, "validity lost": 0.1, "diversity won": -0.1})
    told = controlled_tasks.over_lists(able)
    assert told["holds on"].tolist()[:3] == ["1 of 1", "0 of 1", "1 of 1"]


@pytest.mark.models
@pytest.mark.parametrize("model", CORE)
@pytest.mark.parametrize("task", ["rng-2@end=none", pytest.param("us-states", marks=full)])
def test_stored_rows_are_what_the_weights_give(model, task):
    """Of every model a few settings on each push, nightly every setting, loss and frontier."""
    row = check.recompute(storage.folder_of(paths.default_results_dir(), model, task)).iloc[0]
    assert row.same and row["convention is current"], row.to_dict()


@pytest.mark.models
@pytest.mark.parametrize("model", CORE)
def test_glued_numbers_are_those_of_the_rows(model, glued):
    numbers, claims = glued(model, "02_controlled_tasks"), glued(model, "03_oracle_cutoffs")
    suffix = "@end=line" if find(model).stage == "base" else ""
    stored = storage.read(paths.default_results_dir() / model / f"us-states{suffix}").settings
    plain = stored[(stored.rule == "none") & (stored.temperature == 1)].iloc[0]
    assert float(numbers["validity_us-states"]) == pytest.approx(plain.validity, rel=0.05)
    assert float(numbers["diversity_us-states"]) == pytest.approx(plain.diversity, rel=0.05)
    oracle = stored[stored.rule == "oracle_size"]
    best = oracle.loc[(oracle.validity * oracle.diversity).fillna(0.0).idxmax()]
    assert float(claims["oracle_validity_us-states"]) == pytest.approx(best.validity, rel=0.05)
    verdicts = [int(claims[v]) for v in ("reproduced", "not_reproduced", "not_decided")]
    assert sum(verdicts) == int(claims["claims"])

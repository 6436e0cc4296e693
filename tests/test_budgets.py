"""Equal budgets against every subset of settings."""

import itertools

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils.errors import InvalidRequestError

VALIDITY = [0.9, 0.85, 0.5, 0.8, 0.95, 0.0]
DIVERSITY = [0.3, 0.6, 0.9, 0.4, 0.1, np.nan]
TABLE = pd.DataFrame({"rule": "x", "validity": VALIDITY, "diversity": DIVERSITY})


@pytest.mark.parametrize("level", [0.4, 0.8, 0.9, 1.0])
def test_mean_and_band_are_those_of_all_subsets(level):
    usable = [d if v >= level else 0.0 for v, d in zip(VALIDITY, DIVERSITY, strict=True)]
    found = cu.best_by_budget(TABLE, level).set_index("budget")
    for budget in range(1, len(usable) + 1):
        best = np.sort([max(s) for s in itertools.combinations(usable, budget)])
        row = found.loc[budget]
        assert row["mean"] == pytest.approx(best.mean())
        for column, q in (("low", 0.05), ("high", 0.95)):
            assert row[column] == best[int(np.ceil(q * len(best) - 1e-9)) - 1]
    assert found["mean"].is_monotonic_increasing
    last = found.loc[len(usable)]
    assert last["low"] == last["high"] == max(usable)
    assert last["mean"] == pytest.approx(max(usable))


def test_samplers_are_kept_apart():
    two = pd.concat([TABLE, TABLE.assign(rule="y", diversity=0.2)])
    found = cu.best_by_budget(two)
    assert found[found.rule == "y"]["mean"].max() == pytest.approx(0.2)
    assert len(found) == 2 * len(TABLE)


@pytest.mark.parametrize("level", [0, -1, 1.5, np.nan])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(InvalidRequestError, match="validity level"):
        cu.best_by_budget(TABLE, level)

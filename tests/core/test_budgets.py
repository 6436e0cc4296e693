"""The best of so many settings, against all subsets of that many."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.errors import InvalidRequestError

NAN = math.nan


def table_of(pairs, rule="x"):
    validity, diversity = zip(*pairs, strict=True)
    return pd.DataFrame({"rule": rule, "validity": validity, "diversity": diversity})


settings = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 0.79, 0.8, 0.9, 1.0]),
        st.one_of(st.sampled_from([0.1, 0.2, 0.7, NAN]), st.floats(0.01, 1)),
    ),
    min_size=1,
    max_size=9,
)


def brute_force(pairs, level, budget):
    """(mean, 5 % and 95 % quantile) of the best diversity over all subsets of a size."""
    usable = [d if v >= level and not math.isnan(d) else 0.0 for v, d in pairs]
    best = sorted(max(some) for some in combinations(usable, budget))
    # The smallest value that at least q of the subsets do not exceed, in whole numbers.
    low, high = (best[-(-len(best) * twentieths // 20) - 1] for twentieths in (1, 19))
    return sum(best) / len(best), low, high


@given(settings, st.sampled_from([0.3, 0.8, 0.85, 1.0]))
def test_mean_and_band_are_those_over_all_subsets(pairs, level):
    found = cu.best_by_budget(table_of(pairs), level)
    assert found.columns.tolist() == ["rule", "budget", "mean", "low", "high"]
    assert found.budget.tolist() == list(range(1, len(pairs) + 1))
    for row in found.itertuples():
        mean, low, high = brute_force(pairs, level, row.budget)
        assert row.mean == pytest.approx(mean, abs=1e-12)
        assert (row.low, row.high) == (low, high)


@pytest.mark.parametrize("n", [20, 21, 40])
def test_a_quantile_that_falls_between_two_settings_is_the_lower_one(n):
    # One of 20 is exactly 5 %: rounding must not move on to the next.
    values = np.arange(1, n + 1) / n
    first = cu.best_by_budget(table_of([(1.0, v) for v in values])).iloc[0]
    assert first.low == values[-(-n // 20) - 1]
    assert first.high == values[-(-19 * n // 20) - 1]
    assert first["mean"] == pytest.approx(values.mean())


@given(settings)
def test_more_tries_never_make_it_worse(pairs):
    found = cu.best_by_budget(table_of(pairs))
    for column in ("mean", "low", "high"):
        assert (np.diff(found[column]) >= -1e-12).all()
    assert (found.low <= found.high).all()


@given(settings, st.floats(0.01, 1))
def test_the_whole_grid_gives_its_best_with_no_band(pairs, level):
    last = cu.best_by_budget(table_of(pairs), level).iloc[-1]
    best = max([d for v, d in pairs if v >= level and not math.isnan(d)], default=0.0)
    assert last.low == last.high == best
    assert last["mean"] == pytest.approx(best, abs=1e-15)


def test_one_try_is_the_average_setting():
    pairs = [(0.9, 0.3), (0.95, 0.6), (0.2, 0.9), (0.0, NAN)]
    found = cu.best_by_budget(table_of(pairs), 0.8)
    assert found["mean"][0] == pytest.approx((0.3 + 0.6 + 0 + 0) / 4)
    assert found["mean"].iloc[-1] == pytest.approx(0.6)


def test_what_is_not_valid_enough_or_undefined_counts_as_0():
    for pairs in ([(0.7999, 0.9)], [(0.9, NAN)], [(0.0, NAN)]):
        found = cu.best_by_budget(table_of(pairs), 0.8)
        assert found[["mean", "low", "high"]].to_numpy().tolist() == [[0.0, 0.0, 0.0]]
    assert cu.best_by_budget(table_of([(0.8, 0.9)]), 0.8)["mean"].tolist() == [0.9]


def test_samplers_are_apart_and_in_the_tables_order():
    one, other = table_of([(1, 0.2), (1, 0.4)], "z"), table_of([(1, 0.9)], "a")
    found = cu.best_by_budget(pd.concat([one, other], ignore_index=True))
    assert found.rule.tolist() == ["z", "z", "a"]
    assert found["mean"].tolist() == pytest.approx([0.3, 0.4, 0.9])
    renamed = one.rename(columns={"rule": "family"})
    assert cu.best_by_budget(renamed, by="family").family.tolist() == ["z", "z"]


def test_it_takes_the_rows_of_evaluate(tiny):
    model, task = tiny("llama", chat=True), cu.Task("few", "Name one:", ["ab", "zo"])
    table = cu.evaluate(model, task, ["none", "top_k=5", "top_k=50"], [0.5, 1.0])
    found = cu.best_by_budget(table, level=table.validity.median())
    assert found.groupby("rule", sort=False).budget.max().to_dict() == {"none": 2, "top_k": 4}
    assert 0 < found["mean"].max() <= 1


@pytest.mark.parametrize("level", [0, -0.1, 1.01, NAN, math.inf, 80])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(InvalidRequestError, match=f"level {level}: must be above 0 and at most 1"):
        cu.best_by_budget(table_of([(1.0, 0.5)]), level)

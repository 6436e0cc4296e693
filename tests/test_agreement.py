"""Agreement against numbers worked by hand and pair counting; the noise floor against draws."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils.agreement import (
    alpha_interval,
    compare,
    krippendorff_alpha,
    noise_draws,
    noise_floor,
)
from calib_utils.errors import InvalidRequestError

NA = None


def test_alpha_worked_by_hand():
    """Ten items, two coders, the textbook case of binary data: o_01 = 4, n_0 = 14, n_1 = 6.

    Alpha = 1 - (20 - 1) * 4 / (14 * 6) = 0.0952.
    """
    first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(np.transpose([first, second])) == pytest.approx(1 - 19 * 4 / 84)


def test_alpha_with_missing_labels_and_four_coders():
    """Krippendorff's published example of twelve units: 0.743 for nominal labels."""
    coders = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NA, NA, NA],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NA, 3],
        [NA, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NA],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NA],
    ]
    assert krippendorff_alpha(pd.DataFrame(coders).T) == pytest.approx(0.743, abs=5e-4)


def alpha_by_pairs(rows):
    """Every ordered pair of labels of one item, each weighted by 1 / (labels of the item - 1)."""
    items = [[v for v in row if v is not None] for row in rows]
    items = [row for row in items if len(row) > 1]
    labels = [v for row in items for v in row]
    n = len(labels)
    expected = sum(a != b for a, b in itertools.permutations(labels, 2)) / (n * (n - 1)) if n else 0
    if expected == 0:
        return float("nan")
    observed = sum(
        (a != b) / (len(row) - 1) for row in items for a, b in itertools.permutations(row, 2)
    )
    return 1 - observed / n / expected


@given(
    st.lists(st.lists(st.sampled_from([NA, True, False, "x"]), min_size=3, max_size=3), min_size=1)
)
def test_alpha_is_pair_counting(rows):
    assert krippendorff_alpha(rows) == pytest.approx(alpha_by_pairs(rows), nan_ok=True)


def test_alpha_at_its_ends():
    assert krippendorff_alpha([[1, 1], [0, 0]]) == 1
    assert np.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.random((20_000, 2)) < 0.3)) < 0.03
    low, high = alpha_interval(rng.random((200, 2)) < 0.5)
    assert low < 0 < high
    with pytest.raises(InvalidRequestError, match="undefined"):
        alpha_interval([[1, 1], [1, 1]])


def test_alpha_interval_contains_the_estimate_and_shrinks():
    rng = np.random.default_rng(1)
    a = rng.random(800) < 0.4
    table = np.stack([a, a ^ (rng.random(800) < 0.2)], axis=1)
    wide, narrow = alpha_interval(table[:50]), alpha_interval(table)
    assert wide[0] < krippendorff_alpha(table[:50]) < wide[1]
    assert narrow[0] < krippendorff_alpha(table) < narrow[1]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert alpha_interval(table, seed=3) == alpha_interval(table, seed=3)


def test_comparison_worked_by_hand():
    judge = [True, True, True, False, False, NA, True, False]
    truth = [True, True, False, True, False, True, NA, False]
    found = compare(judge, pd.array(truth, dtype="boolean"))
    assert (found.true_positive, found.false_positive) == (2, 1)
    assert (found.false_negative, found.true_negative) == (1, 2)
    assert (found.n, found.n_unlabelled) == (6, 2)
    assert found.accuracy == pytest.approx(4 / 6) and found.f1 == pytest.approx(4 / 6)
    assert found.false_positive_rate == found.false_negative_rate == pytest.approx(1 / 3)
    assert found.accuracy_interval[0] < 4 / 6 < found.accuracy_interval[1]
    assert found.f1_interval[0] < 4 / 6 < found.f1_interval[1]
    assert found.alpha == pytest.approx(alpha_by_pairs(zip(judge, truth, strict=True)))


def test_the_f1_bootstrap_is_the_bootstrap_over_items():
    rng = np.random.default_rng(2)
    truth = rng.random(120) < 0.4
    judge = truth ^ (rng.random(120) < 0.25)
    values = []
    for _ in range(4_000):
        draw = rng.integers(0, 120, 120)
        both = (judge & truth)[draw].sum()
        values.append(2 * both / (judge[draw].sum() + truth[draw].sum()))
    expected = np.quantile(values, [0.025, 0.975])
    assert compare(judge, truth).f1_interval == pytest.approx(tuple(expected), abs=0.015)


def test_comparison_at_its_ends():
    none = compare([False, False], [False, False])
    assert none.accuracy == 1 and np.isnan(none.f1) and np.isnan(none.false_negative_rate)
    assert np.isnan(none.f1_interval).all()
    assert compare([True, False], [True, False]).f1 == 1
    with pytest.raises(InvalidRequestError, match="2 labels against 1"):
        compare([True, False], [True])
    with pytest.raises(InvalidRequestError, match="no item"):
        compare([NA, True], [True, NA])


CASES = [(8_000, 80_000, 0.1, 0.1), (500, 5_000, 0.02, 0.3), (3_000, 5_000, 0.3, 0.1)]


@pytest.mark.parametrize("case", [*CASES, (2_000, 5_000, 0.9, 0.1), (4_000, 4_000, 0.5, 0.05)])
def test_the_noise_floor_is_the_mean_of_draws(case):
    floor, draws = noise_floor(*case), noise_draws(*case, draws=40)
    for name in ("area", "recall", "prevalence"):
        error = draws[name].std() / np.sqrt(40)
        # The curve of expected counts is the limit; one draw deviates by the order of 1 / n.
        assert getattr(floor, name) == pytest.approx(draws[name].mean(), abs=5 * error + 0.003)
    assert (draws["frontier_area"] >= draws["area"] - 1e-12).all()


def test_ten_percent_errors_on_a_tenth_of_valid_items():
    """One draw is quoted elsewhere as 0.608 and 0.511; both lie within the scatter of draws."""
    draws = noise_draws(8_000, 80_000, 0.1, 0.1, draws=200, seed=1)
    assert draws["area"].mean() == pytest.approx(0.6023, abs=0.001)
    assert draws["recall"].mean() == pytest.approx(0.5079, abs=0.001)
    for quoted, names in ((0.608, ("area", "frontier_area")), (0.511, ("recall",))):
        for name in names:
            assert abs(quoted - draws[name].mean()) < 2 * draws[name].std()
    # Against the true valid items instead of the judge's own the same cutoff recalls 0.9 or more.
    assert noise_floor(8_000, 80_000, 0.1, 0.1).prevalence == pytest.approx(0.18)


def test_a_perfect_judge_measures_a_perfect_ranking():
    floor = noise_floor(10, 100, 0, 0)
    assert (floor.area, floor.recall, floor.prevalence) == pytest.approx((1, 1, 0.1))
    assert np.isnan(noise_floor(0, 100, 0, 0).area)
    assert noise_floor(0, 100, 0.2, 0).area == pytest.approx(0.2)
    assert noise_floor(100, 100, 0.2, 0.1).recall == 1
    assert noise_floor(50, 100, 0.1, 0.3).recall == 0


@given(st.integers(1, 400), st.floats(0, 0.3), st.floats(0, 0.19))
def test_the_area_integrates_the_curve(n_valid, false_positive, false_negative):
    n, hit = 100_000, 1 - false_negative
    v = n_valid * 100
    k = np.arange(1, n + 1)
    counts = hit * np.minimum(k, v) + false_positive * np.maximum(k - v, 0)
    area = (counts / k * np.diff(counts, prepend=0)).sum() / counts[-1]
    floor = noise_floor(v, n, false_positive, false_negative)
    assert floor.area == pytest.approx(area, abs=1e-3)
    reached = counts[counts / k >= 0.8 - 1e-12].max(initial=0) / counts[-1]
    assert floor.recall == pytest.approx(reached, abs=2e-3)


@pytest.mark.parametrize("wrong", [(5, 4, 0, 0), (0, 0, 0, 0), (1, 2, 1.5, 0), (1, 2, 0, -0.1)])
def test_noise_out_of_range(wrong):
    with pytest.raises(InvalidRequestError):
        noise_floor(*wrong)
    with pytest.raises(InvalidRequestError):
        noise_draws(*wrong)

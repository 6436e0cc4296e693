"""Agreement against numbers worked by hand and pair counting."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils.errors import InvalidRequestError
from calib_utils.openended.judges import alpha_interval, compare, krippendorff_alpha

NA = None


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


def test_alpha_and_its_interval_at_their_ends():
    assert krippendorff_alpha([[1, 1], [0, 0]]) == 1
    assert np.isnan([krippendorff_alpha([[1, 1]] * 2), *alpha_interval([[1, 1]] * 2)]).all()
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.random((20_000, 2)) < 0.3)) < 0.03
    a = rng.random(800) < 0.4
    table = np.stack([a, a ^ (rng.random(800) < 0.2)], axis=1)
    wide, narrow = alpha_interval(table[:50]), alpha_interval(table)
    assert wide[0] < krippendorff_alpha(table[:50]) < wide[1]
    assert narrow[0] < krippendorff_alpha(table) < narrow[1]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert alpha_interval(table, seed=3) == alpha_interval(table, seed=3) != narrow


def test_comparison_worked_by_hand():
    judge = [True, True, True, False, False, NA, True, False]
    truth = [True, True, False, True, False, True, NA, False]
    found = compare(judge, pd.array(truth, dtype="boolean"))
    assert (found["n"], found["unreadable"]) == (6, 1 / 8)
    assert found["says_valid"] == found["reference_valid"] == found["always_invalid"] == 0.5
    assert found["accuracy"] == found["f1"] == pytest.approx(4 / 6)
    assert found["false_positive"] == found["false_negative"] == pytest.approx(1 / 3)
    for name in ("accuracy", "f1", "alpha"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["alpha"] == pytest.approx(alpha_by_pairs(zip(judge, truth, strict=True)))


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
    found = compare(judge, truth)
    assert [found["f1_low"], found["f1_high"]] == pytest.approx(expected, abs=0.015)


def test_comparison_at_its_ends():
    none = compare([False, False], [False, False])
    assert none["accuracy"] == 1 and none["false_positive"] == 0
    assert np.isnan([none[name] for name in ("f1", "f1_low", "f1_high", "false_negative")]).all()
    assert compare([True, False], [True, False])["f1"] == 1
    with pytest.raises(InvalidRequestError, match="2 labels against 1"):
        compare([True, False], [True])
    with pytest.raises(InvalidRequestError, match="no item"):
        compare([NA, True], [True, NA])

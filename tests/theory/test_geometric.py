"""The geometric model against direct sums, exact series and simulation of its definition."""

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.errors import InvalidRequestError
from calib_utils.results.measure import measure, untouched
from calib_utils.theory import theorems
from calib_utils.theory.laws import Displaced, Geometric, UniformOverG, reference_model

sharpness = st.floats(1e-6, 200)
branching = st.integers(1, 400)


def entropy_by_sum(v, a):
    p = np.exp(-a * np.arange(v) / v)
    p /= p.sum()
    return -(p[p > 0] * np.log(p[p > 0])).sum()


@given(branching, sharpness)
def test_entropy_is_the_sum_of_its_definition(v, a):
    assert theorems.head_entropy(v, a) == pytest.approx(entropy_by_sum(v, a), abs=1e-11)


def test_entropy_at_its_ends():
    assert theorems.head_entropy(9, 0.0) == pytest.approx(np.log(9))
    assert theorems.head_entropy(9, np.inf) == 0
    assert theorems.head_entropy(1, 3.0) == 0
    with pytest.raises(InvalidRequestError, match="needs v >= 1"):
        theorems.head_entropy(0, 1.0)


@given(st.integers(2, 10**6), sharpness, sharpness)
def test_loss_never_falls_with_sharpness(v, a, b):
    low, high = sorted((a, b))
    assert theorems.head_loss(v, low) <= theorems.head_loss(v, high) + 1e-12


@given(st.lists(st.tuples(branching, st.floats(0.01, 12)), min_size=1, max_size=6))
def test_the_bound_holds_for_the_model_it_is_about(steps):
    v, z = (np.array(part) for part in zip(*steps, strict=True))
    val = np.prod(-np.expm1(-z))
    div = np.exp(-sum(theorems.head_loss(n, a) for n, a in steps))
    assert div <= theorems.diversity_bound(val, v) + 1e-9


@pytest.mark.parametrize("v", [2, 5, 50])
def test_one_step_attains_the_bound(v):
    for z in (0.1, 1.0, 8.0):
        val, div = theorems.product_law(z, [v])
        assert div == pytest.approx(theorems.diversity_bound(val, [v]), abs=1e-12)


def test_the_product_law_is_the_model_of_the_definition():
    """Summed over a wide vocabulary, sequence by sequence."""
    v, z, ranks = [3, 4], 1.3, 400
    laws = []
    for n in v:
        q = np.exp(-z / n)
        laws.append(((1 - q) * q ** np.arange(ranks))[:n])
    answers = np.outer(*laws).ravel()
    val, div = theorems.product_law(z, v)
    p = answers / answers.sum()
    assert answers.sum() == pytest.approx(val)
    assert np.exp(-(p * np.log(p)).sum()) / 12 == pytest.approx(div)
    assert theorems.at_validity(float(val), v) == pytest.approx(div)


def test_a_reference_model_of_the_law_has_what_the_formulas_say():
    """Through tokens, logits and `evaluate`; the vocabulary ends, so validity is a little more."""
    task, z = cu.get_task("rng-2"), 10 * 0.5
    model = reference_model(Geometric(0.5), task, end="none")
    row = cu.evaluate(model, task, end="none").iloc[0]
    # digit, comma, digit: the comma is alone, with sharpness 1/10 of a digit's.
    val = (-np.expm1(-z)) ** 2 * -np.expm1(-0.5)
    assert row.validity == pytest.approx(val, abs=1e-6)
    assert row.diversity == pytest.approx(np.exp(-2 * theorems.head_loss(10, z)), abs=1e-6)
    assert row.diversity < theorems.diversity_bound(row.validity, [10, 1, 10])


def test_the_least_loss_is_the_binary_closed_form():
    for eps in (0.9, 0.5, 0.1, 1e-6):
        p = 1 / (1 + np.sqrt(eps))
        h = -(p * np.log(p) + (1 - p) * np.log1p(-p))
        assert theorems.least_loss(eps) == pytest.approx(np.log(2) - h, abs=1e-12)


def test_the_series_of_the_least_loss_is_exact():
    x = sympy.symbols("x", positive=True)
    p = 1 / (1 + sympy.exp(-x / 2))
    c = sympy.log(2) + p * sympy.log(p) + (1 - p) * sympy.log(1 - p)
    expected = x**2 / 32 - x**4 / 1024
    assert sympy.series(c, x, 0, 6).removeO() - expected == 0


def test_the_search_would_find_another_minimum():
    assert theorems.least_loss_by_search(0.1, 5000) == (
        pytest.approx(theorems.least_loss(0.1)),
        2,
    )
    losses = theorems.head_loss(np.arange(2, 5001), -np.log(0.1))
    assert losses[1:].min() > losses[0]


def heads_of(law, task="rng-2"):
    task = cu.get_task(task)
    model = reference_model(law, task, end="none")
    prompt = cu.render_prompt(model, task, end="none")
    return theorems.heads(measure(model, prompt, untouched([1.0]), ranks=True).steps)


def test_heads_of_a_geometric_law_meet_every_hypothesis():
    found = heads_of(Geometric(0.5))
    assert found.in_order.all() and found.r2.to_numpy() == pytest.approx(1)
    assert found.slope.to_numpy() == pytest.approx(0.5)
    table = theorems.hypotheses(found)
    assert table.step.tolist() == [1, 3] and table.prefixes.tolist() == [1, 10]
    assert table["most sharpness"].to_numpy() == pytest.approx(5)
    assert table["valid first"].tolist() == [1, 1]


def test_heads_of_another_law_do_not():
    flat = heads_of(UniformOverG())
    assert flat.slope.to_numpy() == pytest.approx(0) and flat.r2.isna().all()
    broken = heads_of(Displaced(Geometric(0.5), 2))
    assert not broken.in_order.any()

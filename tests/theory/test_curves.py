"""Fits of curves against a search of its own at every breakpoint, and against known truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from calib_utils.errors import InvalidRequestError
from calib_utils.theory import curves
from calib_utils.theory.curves import two_part, two_part_continuous

FITS = {family: fit for family, (fit, _) in curves.FAMILIES.items()}
BROKEN = ("two_part", "two_part_continuous", "two_part_log_head")
K = np.arange(1, 2001.0)


def squared_error(columns, y):
    x = np.stack(columns, axis=1)
    x = x / np.abs(x).max(axis=0)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return rest @ rest


def brute_force(y, family, weights=None, points=40, breakpoints=None):
    """Least squared error at each breakpoint: scipy over log u, linear algebra for all else."""
    n = len(y)
    k, seen = np.arange(1, n + 1.0), np.ones(n, bool) if weights is None else weights > 0
    one, found = np.ones(n), {}
    grid = np.linspace(np.log(1e-9), np.log(1e4 * n), points)
    for c in breakpoints or range(2, n - 3):
        head, tail = (k <= c) & seen, (k > c) & seen
        if head.sum() < 2 or tail.sum() < 4:
            continue
        if family != "two_part_continuous" and not seen[c]:
            continue

        def error(v, c=c, head=head, tail=tail):
            beyond = np.maximum(k - c - (family != "two_part_continuous"), 0)
            x = np.log1p(beyond / np.exp(v))
            if family == "two_part_continuous":
                return squared_error([one[seen], np.minimum(k - c, 0)[seen], x[seen]], y[seen])
            h = k if family == "two_part" else np.log(k)
            return squared_error([one[tail], x[tail]], y[tail]) + squared_error(
                [one[head], h[head]], y[head]
            )

        errors = [error(v) for v in grid]
        at = int(np.argmin(errors))
        bounds = grid[max(at - 1, 0)], grid[min(at + 1, points - 1)]
        refined = optimize.minimize_scalar(
            error, bounds=bounds, method="bounded", options={"xatol": 1e-7}
        )
        found[c] = min(errors[at], refined.fun)
    return found


@pytest.mark.parametrize("family", BROKEN)
@pytest.mark.parametrize("trial", range(8))
def test_short_curves_agree_with_a_search_at_every_breakpoint(family, trial):
    rng = np.random.default_rng(trial)
    n = int(rng.integers(8, 50))
    # Sorted and heavy-tailed, or not sorted at all; every other one with ranks held out.
    y = np.sort(rng.standard_t(3, size=n))[::-1] if trial % 4 else rng.normal(size=n)
    weights = (rng.random(n) > 0.2).astype(float) if trial % 2 and n > 12 else None
    fit, found = FITS[family](y, weights), brute_force(y, family, weights)
    least = min(found.values())
    assert fit.sse <= least * (1 + 1e-6) + 1e-9
    assert fit.sse >= least * (1 - 1e-4) - 1e-9  # or the search found what is not there
    for c, error in found.items():
        assert error - 1e-9 <= fit.profile[c] * (1 + 1e-4) and fit.profile[c] <= 1.03 * error + 1e-6
    k = np.arange(1, n + 1)
    missed = (np.ones(n) if weights is None else weights) * (y - fit.predict(k)) ** 2
    assert missed.sum() == pytest.approx(fit.sse, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("family", BROKEN)
def test_a_long_curve_agrees_with_a_search_at_every_breakpoint(family):
    rng = np.random.default_rng(1)
    y = np.sort(rng.standard_t(4, size=50_000))[::-1][:2000]
    # Every breakpoint where the least lies, some beyond.
    some = [*range(2, 60), *range(60, 1996, 120)]
    fit, found = FITS[family](y), brute_force(y, family, points=30, breakpoints=some)
    assert fit.c in found, "the best breakpoint has to be among those tried"
    assert fit.sse == pytest.approx(min(found.values()), rel=1e-6)
    assert all(fit.profile[c] <= 1.03 * error for c, error in found.items())
    assert np.flatnonzero(fit.profile == fit.profile.min())[0] == fit.c


def test_the_search_does_not_trust_its_parabola():
    """Breakpoint 1 is the better one, though on the grid it looks worse and flat at its least."""
    step, off = 0.35, 0.04
    grid = np.linspace(-2 * step, 2 * step, 5)
    # Equal at both neighbours of the least, so that the parabola sees no fall at all.
    up, down = step - off, -step - off
    cubic = 10 * (down**2 - up**2) / (up**3 - down**3)

    def exact(c, v):
        x = v - off
        return 1 + v * v if c == 0 else 0.999 + 10 * x * x + cubic * x**3

    errors = np.array([[exact(c, v) for c in (0, 1)] for v in grid])
    assert errors[1, 1] == pytest.approx(errors[3, 1]) and errors[2, 1] > errors[2, 0]
    best = curves.search(grid, errors, exact, 1e-12)
    assert (best.c, best.v) == (1, pytest.approx(off, abs=1e-5))
    assert best.sse == pytest.approx(0.999) == errors[2, 1]


@pytest.mark.parametrize("c", [2, 12, 300])
@pytest.mark.parametrize("shift", [0.5, 6.0, 400.0])
def test_a_curve_without_noise_is_found_again(c, shift):
    y = np.where(c >= K, 25 - 0.05 * K, 14 - 1.3 * np.log(np.maximum(K - c - 1, 0) + shift))
    fit = two_part(y)
    assert (fit.c, fit.r2) == (c, pytest.approx(1, abs=1e-9))
    found = [fit.m, fit.b, fit.A, fit.B, fit.shift]
    assert found == pytest.approx([-0.05, 25, 14, -1.3, shift], rel=1e-3)
    assert pytest.approx(shift - c - 1, rel=1e-3, abs=1e-3) == fit.C


def test_the_continuous_form_has_no_jump_and_costs_no_less():
    y = np.where(K <= 30, 20 - 0.3 * K, 11 - np.log((K + 5) / 35)) + np.sin(K) / 50
    bent, free = two_part_continuous(y), two_part(y)
    c = bent.c
    assert bent.m * c + bent.b == pytest.approx(bent.A + bent.B * np.log(c + bent.C))
    assert abs(c - 30) <= 1 and bent.sse >= free.sse


@given(st.integers(0, 10**6), st.floats(0.1, 1e3), st.floats(-1e4, 1e4))
def test_fits_follow_a_change_of_scale_and_level(seed, scale, level):
    y = np.random.default_rng(seed).standard_t(3, size=30)
    for family, fit in FITS.items():
        one, other = fit(y), fit(level - scale * y)  # B and m change sign too
        assert other.sse == pytest.approx(scale**2 * one.sse, rel=1e-4, abs=1e-9 * scale**2), family


@pytest.mark.parametrize("family", FITS)
def test_limits_a_flat_curve_a_straight_one_and_a_first_rank_apart(family):
    flat = FITS[family](np.full(50, 3.0))
    assert flat.sse == pytest.approx(0, abs=1e-20) and np.isnan(flat.r2)
    assert flat.predict([1, 50]) == pytest.approx([3, 3])
    straight = FITS[family](5 - 0.01 * np.arange(50))
    if family != "power_law":
        assert straight.r2 == pytest.approx(1, abs=1e-6)
    spike = np.full(50, 1.0)
    spike[0] = 9.0
    assert np.isfinite(FITS[family](spike).predict(np.arange(1, 51))).all()


@pytest.mark.parametrize("family", FITS)
def test_held_out_ranks_have_no_say_but_are_predicted(family):
    y = 10 - np.log(K[:200] + 3)
    weights = np.ones(200)
    weights[40:60] = 0
    spoiled = y.copy()
    spoiled[40:60] += 1000
    one, other = FITS[family](y, weights), FITS[family](spoiled, weights)
    # The mean that is taken off ignores them too, so nothing may change at all.
    np.testing.assert_allclose(one.predict(K[:200]), other.predict(K[:200]), atol=1e-9)
    if "power" not in family or "shifted" in family:
        kept = weights > 0
        missed = ((y - one.predict(K[:200])) ** 2)[kept].sum()
        assert missed == pytest.approx(one.sse, rel=1e-6, abs=1e-12)


def test_a_breakpoint_in_a_gap_is_where_it_jumps_least():
    k = K[:300]
    y = np.where(k <= 20, 30 - 0.5 * k, 20 - np.log((np.maximum(k, 20) - 15) / 5))  # meet at 20
    weights = np.ones(300)
    weights[14:26] = 0
    fit = two_part(y, weights)
    assert 15 < fit.c < 26 and weights[fit.c] == 0
    assert np.abs(y - fit.predict(k)).max() < 1


@pytest.mark.parametrize(
    ("y", "weights", "said"),
    [
        (np.arange(5.0), None, "at least 6"),
        (np.ones((3, 3)), None, r"shape \(3, 3\)"),
        ([5, 4, np.nan, 2, 1, 0.5], None, "nan at rank 3"),
        (np.arange(9.0), np.ones(8), "weights"),
        (np.arange(9.0), -np.ones(9), "weights"),
        (np.arange(9.0), np.eye(9)[0], "fewer than 6"),
    ],
)
@pytest.mark.parametrize("family", FITS)
def test_curves_that_cannot_be_fitted_are_refused(family, y, weights, said):
    with pytest.raises(InvalidRequestError, match=said):
        FITS[family](y, weights)

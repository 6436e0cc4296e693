"""Least-squares fits to a curve y[k] over ranks k = 1..n, and which family of curves fits best.

Arrays in, a `Fit` or a table out. Knows nothing of models or logits.

The paper's form (App. I) is a line up to a breakpoint c and A + B log(k + C) beyond, with a jump
allowed. Given c and C all else is linear. With u = c + 1 + C, the value under the logarithm at the
first rank of the tail, the tail's regressor is log(j + u) for j = 0, 1, ... whatever c is, so its
sums over all tails are correlations with one kernel, which a Fourier transform gives for a whole
grid of u. What can still win is then refined in u by bounded search, best first.

Weights of 0 hold ranks out; every fit still speaks for all n ranks. u lies between 1e-9, where
the first rank of the tail is a point apart, and 1e4 n, where the tail is a line to four digits.
"""

import heapq
import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import fft, optimize, stats

from calib_utils.errors import InvalidRequestError

_MIN_RANKS = 6
_MIN_HEAD, _MIN_TAIL = 2, 4  # ranks with weight
_EXACT = 1e-12  # of the total sum of squares: as good as 0
_LOWEST_U, _HIGHEST_U = 1e-9, 1e4  # the second in units of n
_STEP = 0.35  # of log u on the grid
_UNEVEN = 0.02  # ten times the most seen on real curves, at this step


@dataclass(frozen=True)
class Fit:
    """One fitted curve: m h(k) + b for k <= c, then A + B log(k + C), h(k) = k or log k.

    What a family lacks is NaN; `c` is 0 without a head and n without a tail. `shift` is c + 1 + C,
    kept because C alone has lost the digits of a small one. `profile[c]` is the least squared
    error with breakpoint c on the grid of u, some percent too high where it cannot win and refined
    where it can; infinite where a side has too few ranks. `mse`, `r2`: over ranks with weight.
    """

    family: str
    n: int
    c: int
    m: float
    b: float
    A: float
    B: float
    shift: float
    sse: float
    mse: float
    r2: float
    profile: np.ndarray | None = None

    @property
    def C(self) -> float:
        return self.shift - self.c - 1

    @property
    def jump(self) -> float:
        """How far the head, carried on by one rank, lies above the tail's first value."""
        h = math.log(self.c + 1) if self.family == "two_part_log_head" else self.c + 1
        return self.m * h + self.b - self.A - self.B * math.log(self.shift)

    def predict(self, ranks) -> np.ndarray:
        """The curve at ranks (from 1), as float64."""
        k = np.asarray(ranks, dtype=float)
        h = np.log(k) if self.family == "two_part_log_head" else k
        beyond = np.maximum(k - self.c - 1, 0)
        with np.errstate(invalid="ignore"):
            return np.where(
                k <= self.c, self.m * h + self.b, self.A + self.B * np.log(beyond + self.shift)
            )


def exponential(y, weights=None) -> Fit:
    """Logits linear in the rank, so probabilities geometric (Def. F.1): m k + b. 2 parameters."""
    curve = _Curve(y, weights)
    found = _line(curve, curve.k, slice(None))
    return _fit(curve, "exponential", curve.n, found.sse, m=found.slope, b=found.intercept)


def power_law(y, weights=None) -> Fit:
    """Probabilities a power of the rank: A + B log k. 2 parameters."""
    curve = _Curve(y, weights)
    found = _tail(curve, 0, 0.0)
    return _fit(curve, "power_law", 0, found.sse, A=found.intercept, B=found.slope, shift=1.0)


def shifted_power_law(y, weights=None) -> Fit:
    """Zipf and Mandelbrot's law: A + B log(k + C) over all ranks. 3 parameters."""
    curve = _Curve(y, weights)
    grid = _u_grid(curve.n)
    errors = np.array([[_tail(curve, 0, v).sse] for v in grid])
    best = search(grid, errors, lambda c, v: _tail(curve, 0, v).sse, _EXACT * curve.sst)
    found = _tail(curve, 0, best.v)
    parameters = {"A": found.intercept, "B": found.slope, "shift": math.exp(best.v)}
    return _fit(curve, "shifted_power_law", 0, found.sse, **parameters)


def two_part(y, weights=None, head: str = "linear") -> Fit:
    """The paper's form: a line for k <= c, A + B log(k + C) beyond, free at c. 6 parameters with c.

    Every c from 2 to n - 4 is tried. Where ranks around the breakpoint are held out, the split of
    the others does not say where in the gap it is; of those places the one with the least jump is
    taken (a tail continued backwards would meet its logarithm's pole).

    Args:
        y: [n] values over ranks from 1.
        weights: [n], at least 0; 0 holds a rank out.
        head: "linear", or "log" for m log k + b: a rival of equal size whose head is not a line.

    Raises:
        InvalidRequestError: too few ranks, or values that are not finite.
    """
    curve, grid = _Curve(y, weights), _u_grid(len(y))
    h = curve.k if head == "linear" else np.log(curve.k)
    w, before = curve.w, _head_errors(curve, h)
    # Sums beyond c: all less those up to c.
    n, y, yy = (x.sum() - _before(x) for x in (w, w * curve.y, w * curve.y**2))
    errors = before + np.stack([_residual(n, *s, y, yy) for s in _tail_sums(curve, 0)])
    # The tail starts at a seen rank, so that every split of the seen ranks is tried once.
    errors[:, ~(_allowed(curve) & np.append(curve.w > 0, False))] = np.inf
    best = search(
        grid, errors, lambda c, v: float(before[c]) + _tail(curve, c, v).sse, _EXACT * curve.sst
    )
    first, second = _line(curve, h[: best.c], slice(best.c)), _tail(curve, best.c, best.v)
    family, sse = "two_part" + "_log_head" * (head == "log"), first.sse + second.sse
    parts = {"m": first.slope, "b": first.intercept, "A": second.intercept, "B": second.slope}
    parts |= {"shift": math.exp(best.v), "profile": errors.min(axis=0)}
    found = _fit(curve, family, best.c, sse, **parts)
    c = found.c
    while c > _MIN_HEAD and curve.w[c - 1] == 0 and found.shift - (found.c - c + 1) > 0:
        c -= 1
    gap = [replace(found, c=p, shift=found.shift - (found.c - p)) for p in range(c, found.c + 1)]
    return min(gap, key=lambda place: abs(place.jump))


def two_part_continuous(y, weights=None) -> Fit:
    """Line and logarithm that meet at c: no jump. 5 parameters with c."""
    curve, grid = _Curve(y, weights), _u_grid(len(y))
    hinge = _hinge_sums(curve)
    errors = np.stack([_bent_errors(curve, hinge, sums) for sums in _tail_sums(curve, 1)])
    errors[:, ~_allowed(curve)] = np.inf
    best = search(grid, errors, lambda c, v: _bent_at(curve, c, v)[-1], _EXACT * curve.sst)
    level, m, slope, sse = _bent_at(curve, best.c, best.v)
    # level + m (k - c), then level + B log((k + C) / (c + C)), with c + C = exp(v).
    parts = {"m": m, "b": level - m * best.c, "A": level - slope * best.v, "B": slope}
    parts |= {"shift": math.exp(best.v) + 1, "profile": errors.min(axis=0)}
    return _fit(curve, "two_part_continuous", best.c, sse, **parts)


class _Curve:
    """Checked input, and the sums that every family needs. y is taken about its mean."""

    def __init__(self, y, weights):
        y = np.asarray(y, dtype=float)
        w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=float)
        if y.ndim != 1 or len(y) < _MIN_RANKS:
            raise InvalidRequestError(
                f"a curve of shape {y.shape}: give one value per rank, at least {_MIN_RANKS}"
            )
        if w.shape != y.shape or not (np.isfinite(w).all() and (w >= 0).all()):
            raise InvalidRequestError("weights: give one finite number, at least 0, per rank")
        if not np.isfinite(y).all():
            bad = int(np.flatnonzero(~np.isfinite(y))[0])
            raise InvalidRequestError(f"the curve is {y[bad]} at rank {bad + 1}: drop such ranks")
        if (w > 0).sum() < _MIN_RANKS:
            raise InvalidRequestError(f"weights leave fewer than {_MIN_RANKS} ranks: keep more")
        self.n, self.w, self.k = len(y), w, np.arange(1.0, len(y) + 1)
        self.mean = float((w * y).sum() / w.sum())
        self.y = y - self.mean
        self.sst = float((w * self.y**2).sum())


def _fit(curve: _Curve, family: str, c: int, sse: float, profile=None, **parameters) -> Fit:
    """A `Fit` with the curve's mean, which `_Curve` takes off, put back."""
    found = dict.fromkeys(("m", "b", "A", "B", "shift"), math.nan) | parameters
    found["b"] += curve.mean
    found["A"] += curve.mean
    mse, sst = sse / float(curve.w.sum()), curve.sst
    r2 = 1 - sse / sst if sst > 0 else math.nan
    return Fit(family, curve.n, c, sse=sse, mse=mse, r2=r2, profile=profile, **found)


# --- Sums of a curve's head and tail for every breakpoint at once ---


def _before(x) -> np.ndarray:
    """Sums of x over ranks 1..c, for c = 0..n."""
    return np.concatenate([[0.0], np.cumsum(x)])


class _Line(NamedTuple):
    slope: float
    intercept: float
    sse: float


def _line(curve: _Curve, x, part: slice) -> _Line:
    """The line of y on x over a part of the ranks, summed about the means. x: [rank of the part]"""
    y, w = curve.y[part], curve.w[part]
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    x, y = x - mean_x, y - mean_y
    spread = (w * x * x).sum()
    slope = (w * x * y).sum() / spread if spread > 0 else 0.0
    rest = y - slope * x
    return _Line(float(slope), float(mean_y - slope * mean_x), float((w * rest * rest).sum()))


def _tail(curve: _Curve, c: int, v: float) -> _Line:
    """The tail beyond c at log u = v: B, A and squared error."""
    x = np.log1p(np.arange(curve.n - c) / math.exp(v))
    B, level, sse = _line(curve, x, slice(c, None))
    return _Line(B, level - B * v, sse)


def _u_grid(n: int) -> np.ndarray:
    """log u from one bound to the other."""
    low, high = math.log(_LOWEST_U), math.log(_HIGHEST_U * n)
    return np.linspace(low, high, math.ceil((high - low) / _STEP) + 1)


def _allowed(curve: _Curve) -> np.ndarray:
    """Breakpoints 0..n with enough ranks on both sides. [n + 1]"""
    seen, c = _before(curve.w > 0), np.arange(curve.n + 1)
    inner = (c >= _MIN_HEAD) & (c <= curve.n - _MIN_TAIL)
    return inner & (seen >= _MIN_HEAD) & (seen[-1] - seen >= _MIN_TAIL)


def _head_errors(curve: _Curve, h) -> np.ndarray:
    """Squared error of the line through ranks 1..c, for every c. [n + 1]"""
    w, y = curve.w, curve.y
    h = (h - h.mean()) / h.std()
    return _residual(*map(_before, (w, w * h, w * h * h, w * h * y, w * y, w * y * y)))


def _residual(s, x, xx, xy, sy, yy) -> np.ndarray:
    """Squared error of a line with intercept from weighted sums: of 1, x, x^2, x y, y, y^2."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread, common, total = xx - x * x / s, xy - x * sy / s, yy - sy * sy / s
        explained = np.where(spread > 1e-14 * xx, common**2 / spread, 0.0)
    return np.nan_to_num(np.maximum(total - explained, 0.0))


def _tail_sums(curve: _Curve, offset: int) -> np.ndarray:
    """Sums of w x, w x^2, w x y over ranks beyond c, for each u of `_u_grid`. [u, 3, n + 1]

    x is log(1 + j/u), j = k - c - 1 + offset, over its largest value: an affine change of
    log(j + u), which no fitted value depends on, but which rounding does.
    """
    n, w = curve.n, curve.w
    length, spectra = _spectra(n, offset)
    sums = fft.irfft(spectra * fft.rfft([w, w, w * curve.y], length), length)[..., : n + 1]
    sums[..., n] = 0.0
    return sums


@lru_cache(maxsize=2)  # one of each offset; all curves of n ranks have it in common
def _spectra(n: int, offset: int) -> tuple[int, np.ndarray]:
    """The length of the transform, and that of `_tail_sums`'s x, x^2, x. [u, 3, frequency]"""
    x = np.log1p((np.arange(n) + offset) / np.exp(_u_grid(n))[:, None])
    x /= x[:, -1:]
    length = fft.next_fast_len(2 * n, real=True)
    return length, fft.rfft(np.stack([x, x * x, x], axis=1), length).conj()


def _hinge_sums(curve: _Curve) -> np.ndarray:
    """Sums of w h, w h^2, w h y for h = min(k - c, 0), for every c. [3, n + 1]"""
    w, y, k, c = curve.w, curve.y, curve.k, np.arange(curve.n + 1.0)
    s, x, xx, sy, xy = map(_before, (w, w * k, w * k * k, w * y, w * k * y))
    return np.stack([x - c * s, xx - 2 * c * x + c * c * s, xy - c * sy])


def _bent_errors(curve: _Curve, hinge, sums) -> np.ndarray:
    """Squared error of the continuous form for every c, for one u. [n + 1]

    h is 0 in the tail and the tail's regressor g is 0 in the head, so h g sums to 0.
    """
    (h, hh, hy), (g, gg, gy) = hinge, sums
    total = curve.w.sum()
    hh, gg, hg = hh - h * h / total, gg - g * g / total, -h * g / total
    determinant = hh * gg - hg * hg
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = (hy * hy * gg - 2 * hy * gy * hg + gy * gy * hh) / determinant
    explained = np.where(determinant > 1e-14 * hh * gg, explained, 0.0)
    return np.clip(curve.sst - explained, 0.0, curve.sst)


def _bent_at(curve: _Curve, c: int, v: float) -> tuple[float, ...]:
    """The continuous form at c and log(c + C) = v: its value at c, m, B and squared error."""
    w, y = curve.w, curve.y
    h, g = np.minimum(curve.k - c, 0), np.log1p(np.maximum(curve.k - c, 0) / math.exp(v))
    x = np.stack([h, g])
    mean = (w * x).sum(axis=1) / w.sum()
    centred = x - mean[:, None]
    scale = np.sqrt((w * centred**2).sum(axis=1))
    unit = centred / scale[:, None]
    m, slope = np.linalg.solve((w * unit) @ unit.T, (w * unit) @ y) / scale
    rest = y - m * centred[0] - slope * centred[1]
    level = -m * mean[0] - slope * mean[1]
    return float(level), float(m), float(slope), float((w * rest * rest).sum())


class Optimum(NamedTuple):
    """Where a search ended: breakpoint, log u, squared error."""

    c: int
    v: float
    sse: float


def search(grid, errors, exact, tolerance: float) -> Optimum:
    """The best c and u: grid minima refined, best first, while one can win.

    A parabola through three points of the grid says how far the error may fall between them. Twice
    that is allowed for, and a share of its bend, since the error is not quite a parabola. `errors`
    [grid, c] gets the refined values.
    """
    padded = np.pad(errors, ((1, 1), (0, 0)), constant_values=np.inf)
    left, right = padded[:-2], padded[2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        bend = left - 2 * errors + right
        fall = 2 * (right - left) ** 2 / (8 * bend) + _UNEVEN * bend
    least = errors - np.where(np.isfinite(fall), np.maximum(fall, 0.0), 0.0)
    rows, columns = np.nonzero((errors <= left) & (errors <= right) & np.isfinite(errors))
    hopeful = [(float(least[i, c]), int(c), int(i)) for i, c in zip(rows, columns, strict=True)]
    heapq.heapify(hopeful)
    best = Optimum(0, 0.0, math.inf)
    while hopeful:
        hope, c, i = heapq.heappop(hopeful)
        if hope >= best.sse - tolerance:
            break
        bracket = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        found = optimize.minimize_scalar(
            lambda v, c=c: exact(c, v), bounds=bracket, method="bounded", options={"xatol": 1e-6}
        )
        sse, v = min((exact(c, v), v) for v in (grid[i], float(found.x)))
        errors[i, c] = sse
        if sse < best.sse:
            best = Optimum(c, float(v), sse)
    return best


# --- Which family describes ranked values best ---
# Residuals of a smooth, sorted curve are not noise: neighbours miss by almost the same amount, so a
# criterion that counts every rank (AIC, BIC) rewards every wiggle a family can follow. So blocked
# cross-validation decides: contiguous blocks of equal width in log-rank are held out in turn, and
# each has one vote, the log ratio of mean squared errors on it. The interval is Student's over
# blocks; blocks share most of their training ranks, so it is a guide to size, not an exact level.
# BIC with an effective sample size is shown beside it and does not decide.

N_BLOCKS = 12
_LEVEL = 0.95
REFERENCE = "two_part"
# Name: fit, number of parameters (a breakpoint counts as one).
FAMILIES = {
    "exponential": (exponential, 2),
    "power_law": (power_law, 2),
    "shifted_power_law": (shifted_power_law, 3),
    "two_part_continuous": (two_part_continuous, 5),
    "two_part_log_head": (partial(two_part, head="log"), 6),
    "two_part": (two_part, 6),
}
# Below this share of the total variance an error is rounding, and a ratio of two such says nothing.
_ROUNDING = 1e-10


def blocks(n: int, n_blocks: int = N_BLOCKS) -> np.ndarray:
    """The block of each rank 1..n, from 0: equal widths in log-rank, none empty. [n]

    >>> blocks(10, 3)
    array([0, 0, 1, 1, 2, 2, 2, 2, 2, 2])
    """
    edges = np.exp(np.linspace(0, math.log(n + 1), n_blocks + 1))
    number = np.searchsorted(edges, np.arange(1, n + 1) + 1e-9, side="right") - 1
    return np.unique(number, return_inverse=True)[1]


def held_out_errors(y, n_blocks: int = N_BLOCKS) -> pd.DataFrame:
    """Mean squared error of every family on every block, fitted to all other blocks.

    Of values over ranks from 1. Rows of family, block, first and last rank, error, log_ratio: ln of
    the error over the reference's on the same block.
    """
    y = np.asarray(y, dtype=float)
    number, rows = blocks(len(y), n_blocks), []
    floor = _ROUNDING * float(np.var(y))
    for block in range(number.max() + 1):
        held = np.flatnonzero(number == block)
        weights = (number != block).astype(float)
        for family, (fit, _) in FAMILIES.items():
            missed = y[held] - fit(y, weights).predict(held + 1)
            rows.append((family, block, held[0] + 1, held[-1] + 1, (missed**2).mean()))
    table = pd.DataFrame(rows, columns=["family", "block", "first", "last", "error"])
    logs = np.log(table.error + floor)
    base = logs[table.family == REFERENCE].to_numpy()[table.block]
    return table.assign(log_ratio=logs - base)


def mean_interval(values) -> tuple[float, float, float]:
    """Mean and Student's 95 % interval over values taken as independent."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = stats.sem(values) * stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)
    return mean, float(mean - half), float(mean + half)


def effective_size(residuals) -> float:
    """n (1 - r) / (1 + r) with r the lag-1 autocorrelation, kept between 0 and 1 - 2/n."""
    e = np.asarray(residuals, dtype=float)
    power = (e * e).sum()
    r = (e[1:] * e[:-1]).sum() / power if power > 0 else 0.0
    r = min(max(r, 0.0), 1 - 2 / len(e))
    return float(len(e) * (1 - r) / (1 + r))


def compare(y, errors: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every family on one curve of values over ranks from 1: fit, held-out error, BIC.

    A row per family: parameters, mse, r2, held_out (mean of the blocks' errors), ratio with low and
    high (geometric mean over blocks of its held-out error over the reference's, and the interval),
    bic_effective, bic_naive (each less the smallest), effective_n, preferred. `errors`: of
    `held_out_errors`, if at hand.
    """
    y = np.asarray(y, dtype=float)
    errors = held_out_errors(y) if errors is None else errors
    n, floor = len(y), max(_ROUNDING * float(np.var(y)), np.finfo(float).tiny)
    fits = {family: fit(y) for family, (fit, _) in FAMILIES.items()}
    best = min(fits.values(), key=lambda fit: fit.sse)
    # One n for all families, so that their BIC can be compared.
    effective = effective_size(y - best.predict(np.arange(1, n + 1)))
    chosen, rows = preferred(errors), []
    for family, own in errors.groupby("family", sort=False):
        fit, size = fits[family], FAMILIES[family][1]
        row = {"family": family, "parameters": size, "mse": fit.mse, "r2": fit.r2}
        row["held_out"] = own.error.mean()
        ratio = map(math.exp, mean_interval(own.log_ratio))
        row |= dict(zip(("ratio", "low", "high"), ratio, strict=True))
        for name, n_ranks in (("bic_effective", effective), ("bic_naive", n)):
            row[name] = n_ranks * math.log(max(fit.mse, floor)) + size * math.log(n_ranks)
        rows.append(row | {"effective_n": effective, "preferred": family == chosen})
    table = pd.DataFrame(rows)
    bic = ["bic_effective", "bic_naive"]
    table[bic] -= table[bic].min()
    return table


def preferred(errors: pd.DataFrame) -> str:
    """The family with the fewest parameters that blocks do not tell apart from the best.

    The best has the smallest geometric mean of held-out errors; among families of one size the
    better one stands for them. `errors`: of `held_out_errors`.
    """
    wide = errors.pivot(index="block", columns="family", values="log_ratio")
    means = wide.mean()
    best = means.idxmin()
    equal = [f for f in wide if f == best or mean_interval(wide[f] - wide[best])[1] <= 0]
    return str(min(equal, key=lambda f: (FAMILIES[f][1], means[f])))

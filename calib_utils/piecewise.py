"""Least-squares fits to one curve y[k] over ranks k = 1..n: two parts, and simpler rivals (App. I).

Arrays in, a `Fit` out. Knows nothing of models, logits or which family is the better one.

The paper's form is a line up to a breakpoint c and A + B log(k + C) beyond, with a jump allowed.
Given c and C all else is linear, so the search is over those two. For one C it is fast for *every*
c at once, if C moves along with c: with u = c + 1 + C, the value under the logarithm at the first
rank of the tail, the tail's regressor is log(j + u) for j = 0, 1, ... whatever c is. Its sums with
w, w x and w y over all tails are then correlations with one kernel, which a Fourier transform gives
for a whole grid of u. What can still win is then refined in u by bounded search, best first.

Weights of 0 hold ranks out; every fit still speaks for all n ranks. u lies between 1e-9, where the
first rank of the tail is a point apart, and 1e4 n, where the tail is a line to four digits.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from calib_utils.breakpoints import (
    EXACT,
    MIN_HEAD,
    Curve,
    after,
    allowed,
    heads,
    line,
    residual,
    search,
    tail,
    tail_sums,
    u_grid,
)
from calib_utils.errors import InvalidRequestError


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
    curve = Curve(y, weights)
    found = line(curve, curve.k, slice(None))
    return _fit(curve, "exponential", curve.n, found.sse, m=found.slope, b=found.intercept)


def power_law(y, weights=None) -> Fit:
    """Probabilities a power of the rank: A + B log k. 2 parameters."""
    curve = Curve(y, weights)
    found = tail(curve, 0, 0.0)
    return _fit(curve, "power_law", 0, found.sse, A=found.intercept, B=found.slope, shift=1.0)


def shifted_power_law(y, weights=None) -> Fit:
    """Zipf and Mandelbrot's law: A + B log(k + C) over all ranks. 3 parameters."""
    curve = Curve(y, weights)
    grid = u_grid(curve.n)
    errors = np.array([[tail(curve, 0, v).sse] for v in grid])
    best = search(grid, errors, lambda c, v: tail(curve, 0, v).sse, EXACT * curve.sst)
    found = tail(curve, 0, best.v)
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
    if head not in ("linear", "log"):
        raise InvalidRequestError(f"head={head!r}: must be 'linear' or 'log'")
    curve, grid = Curve(y, weights), u_grid(len(y))
    h = curve.k if head == "linear" else np.log(curve.k)
    before, rest = heads(curve, h), after(curve)
    errors = np.stack([residual(rest[0], *s, *rest[1:]) for s in tail_sums(curve, 0)])
    errors += before
    # The tail starts at a seen rank, so that every split of the seen ranks is tried once.
    errors[:, ~(allowed(curve) & np.append(curve.w > 0, False))] = np.inf
    best = search(
        grid, errors, lambda c, v: float(before[c]) + tail(curve, c, v).sse, EXACT * curve.sst
    )
    first, second = line(curve, h[: best.c], slice(best.c)), tail(curve, best.c, best.v)
    found = _fit(
        curve,
        "two_part" if head == "linear" else "two_part_log_head",
        best.c,
        first.sse + second.sse,
        profile=errors.min(axis=0),
        **{"m": first.slope, "b": first.intercept, "A": second.intercept, "B": second.slope},
        shift=math.exp(best.v),
    )
    return _least_jump(curve, found)


def two_part_continuous(y, weights=None) -> Fit:
    """Line and logarithm that meet at c: no jump. 5 parameters with c."""
    curve, grid = Curve(y, weights), u_grid(len(y))
    hinge = _hinge_sums(curve)
    errors = np.stack([_bent(curve, hinge, sums) for sums in tail_sums(curve, 1)])
    errors[:, ~allowed(curve)] = np.inf
    best = search(grid, errors, lambda c, v: _bent_at(curve, c, v).sse, EXACT * curve.sst)
    found = _bent_at(curve, best.c, best.v)
    # level + m (k - c), then level + B log((k + C) / (c + C)), with c + C = exp(v).
    return _fit(
        curve,
        "two_part_continuous",
        best.c,
        found.sse,
        profile=errors.min(axis=0),
        **{"m": found.m, "b": found.level - found.m * best.c},
        **{"A": found.level - found.B * best.v, "B": found.B, "shift": math.exp(best.v) + 1},
    )


def _fit(curve: Curve, family: str, c: int, sse: float, profile=None, **parameters) -> Fit:
    """A `Fit` with the curve's mean, which `Curve` takes off, put back."""
    found = dict.fromkeys(("m", "b", "A", "B", "shift"), math.nan) | parameters
    found["b"] += curve.mean
    found["A"] += curve.mean
    mse, sst = sse / float(curve.w.sum()), curve.sst
    r2 = 1 - sse / sst if sst > 0 else math.nan
    return Fit(family, curve.n, c, sse=sse, mse=mse, r2=r2, profile=profile, **found)


def _hinge_sums(curve: Curve) -> np.ndarray:
    """Sums of w h, w h^2, w h y for h = min(k - c, 0), for every c. [3, n + 1]"""
    w, y, k, c = curve.w, curve.y, curve.k, np.arange(curve.n + 1.0)
    s, x, xx, sy, xy = map(curve.before, (w, w * k, w * k * k, w * y, w * k * y))
    return np.stack([x - c * s, xx - 2 * c * x + c * c * s, xy - c * sy])


def _bent(curve: Curve, hinge, sums) -> np.ndarray:
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


@dataclass(frozen=True)
class _Bent:
    """The continuous form at one c and C; `level` is its value at c."""

    level: float
    m: float
    B: float
    sse: float


def _bent_at(curve: Curve, c: int, v: float) -> _Bent:
    """The continuous form at c and log(c + C) = v, summed about the means."""
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
    return _Bent(float(level), float(m), float(slope), float((w * rest * rest).sum()))


def _least_jump(curve: Curve, fit: Fit) -> Fit:
    """The fit with its breakpoint moved within a gap of held-out ranks to where it jumps least."""
    c = fit.c
    while c > MIN_HEAD and curve.w[c - 1] == 0 and fit.shift - (fit.c - c + 1) > 0:
        c -= 1
    places = [replace(fit, c=p, shift=fit.shift - (fit.c - p)) for p in range(c, fit.c + 1)]
    return min(places, key=lambda place: abs(place.jump))

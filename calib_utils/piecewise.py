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

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, optimize

from calib_utils.errors import InvalidRequestError

MIN_RANKS = 6
_MIN_HEAD, _MIN_TAIL = 2, 4  # ranks with weight
_LOWEST_U, _HIGHEST_U = 1e-9, 1e4  # the second in units of n
_STEP = 0.25  # of log u on the grid
_CHUNK = 4_000_000  # numbers in memory at once
_EXACT = 1e-12  # of the total sum of squares: as good as 0


@dataclass(frozen=True)
class Fit:
    """One fitted curve: m h(k) + b for k <= c, then A + B log(k + C), h(k) = k or log k.

    What a family lacks is NaN; `c` is 0 without a head and n without a tail. `shift` is c + 1 + C,
    kept because C alone has lost the digits of a small one. `profile[c]` is the least squared
    error with breakpoint c on the grid of u (refined where that could win), infinite where there
    are too few ranks on a side. `mse` and `r2` are over the ranks with weight.
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

    def predict(self, ranks) -> np.ndarray:
        """The curve at ranks (from 1), as float64."""
        k = np.asarray(ranks, dtype=float)
        h = np.log(k) if self.family == "two_part_log_head" else k
        beyond = np.maximum(k - self.c - 1, 0)
        with np.errstate(invalid="ignore"):
            return np.where(
                k <= self.c, self.m * h + self.b, self.A + self.B * np.log(beyond + self.shift)
            )


class _Curve:
    """Checked input, and the sums that every family needs. y is taken about its mean."""

    def __init__(self, y, weights):
        y = np.asarray(y, dtype=float)
        w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=float)
        if y.ndim != 1 or len(y) < MIN_RANKS:
            raise InvalidRequestError(
                f"a curve of shape {y.shape}: give one value per rank, at least {MIN_RANKS}"
            )
        if w.shape != y.shape or not (np.isfinite(w).all() and (w >= 0).all()):
            raise InvalidRequestError("weights: give one finite number, at least 0, per rank")
        if not np.isfinite(y).all():
            bad = int(np.flatnonzero(~np.isfinite(y))[0])
            raise InvalidRequestError(f"the curve is {y[bad]} at rank {bad + 1}: drop such ranks")
        if (w > 0).sum() < MIN_RANKS:
            raise InvalidRequestError(f"weights leave fewer than {MIN_RANKS} ranks: keep more")
        self.n, self.w, self.k = len(y), w, np.arange(1.0, len(y) + 1)
        self.mean = float((w * y).sum() / w.sum())
        self.y = y - self.mean
        self.sst = float((w * self.y**2).sum())

    def fit(self, family: str, c: int, sse: float, profile=None, **parameters) -> Fit:
        found = {"m": math.nan, "b": math.nan, "A": math.nan, "B": math.nan, "shift": math.nan}
        found |= parameters
        found["b"] += self.mean
        found["A"] += self.mean
        sse = max(sse, 0.0)
        r2 = 1 - sse / self.sst if self.sst > 0 else math.nan
        return Fit(
            family, self.n, c, sse=sse, mse=sse / self.w.sum(), r2=r2, profile=profile, **found
        )

    def before(self, x) -> np.ndarray:
        """Sums of x over ranks 1..c, for c = 0..n."""
        return np.concatenate([[0.0], np.cumsum(x)])

    def seen(self, first: int, last: int) -> slice:
        return slice(first - 1, last)

    def line(self, x, part: slice) -> tuple[float, float, float]:
        """Slope, intercept and squared error of y on x over a part of the ranks. x: [n]"""
        return _line(x[part], self.y[part], self.w[part])


def _line(x, y, w) -> tuple[float, float, float]:
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    x, y = x - mean_x, y - mean_y
    spread = (w * x * x).sum()
    slope = (w * x * y).sum() / spread if spread > 0 else 0.0
    rest = y - slope * x
    return float(slope), float(mean_y - slope * mean_x), float((w * rest * rest).sum())


def exponential(y, weights=None) -> Fit:
    """Logits linear in the rank, so probabilities geometric (Def. F.1): m k + b. 2 parameters."""
    curve = _Curve(y, weights)
    m, b, sse = curve.line(curve.k, slice(None))
    return curve.fit("exponential", curve.n, sse, m=m, b=b)


def power_law(y, weights=None) -> Fit:
    """Probabilities a power of the rank: A + B log k. 2 parameters."""
    curve = _Curve(y, weights)
    slope, intercept, sse = curve.line(np.log(curve.k), slice(None))
    return curve.fit("power_law", 0, sse, A=intercept, B=slope, shift=1.0)


def shifted_power_law(y, weights=None) -> Fit:
    """Zipf and Mandelbrot's law: A + B log(k + C) over all ranks. 3 parameters."""
    curve = _Curve(y, weights)
    grid = _grid(curve.n)
    errors = np.array([[_tail(curve, 0, v)[2]] for v in grid])
    _, v, sse = _search(grid, errors, lambda c, v: _tail(curve, 0, v)[2], _EXACT * curve.sst)
    slope, intercept, _ = _tail(curve, 0, v)
    return curve.fit("shifted_power_law", 0, sse, A=intercept, B=slope, shift=math.exp(v))


def two_part(y, weights=None, head: str = "linear") -> Fit:
    """The paper's form: a line for k <= c, A + B log(k + C) beyond, free at c. 6 parameters with c.

    Every c from 2 to n - 4 is tried. Where ranks around the breakpoint are held out the split of
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
    curve = _Curve(y, weights)
    h = curve.k if head == "linear" else np.log(curve.k)
    heads = _heads(curve, h)
    # The tail starts at a seen rank, so that every split of the seen ranks is tried once.
    allowed = _allowed(curve) & np.append(curve.w > 0, False)
    grid = _grid(curve.n)
    rest = _after(curve)
    errors = heads + np.stack(
        [_residual(rest[0], *s, *rest[1:]) for s in _tail_sums(curve, grid, 0)]
    )
    errors[:, ~allowed] = np.inf

    def exact(c, v):
        return float(heads[c]) + _tail(curve, c, v)[2]

    c, v, _ = _search(grid, errors, exact, _EXACT * curve.sst)
    m, b, head_sse = curve.line(h, curve.seen(1, c))
    slope, intercept, tail_sse = _tail(curve, c, v)
    found = curve.fit(
        "two_part" if head == "linear" else "two_part_log_head",
        c,
        head_sse + tail_sse,
        profile=errors.min(axis=0),
        **{"m": m, "b": b, "A": intercept, "B": slope, "shift": math.exp(v)},
    )
    return _least_jump(curve, found)


def two_part_continuous(y, weights=None) -> Fit:
    """Line and logarithm that meet at c: no jump. 5 parameters with c."""
    curve = _Curve(y, weights)
    allowed, grid = _allowed(curve), _grid(curve.n)
    sums = _hinge_sums(curve)
    errors = np.stack([_bent(curve, sums, s)[0] for s in _tail_sums(curve, grid, 1)])
    errors[:, ~allowed] = np.inf

    def exact(c, v):
        return _bent_at(curve, c, v)[0]

    c, v, _ = _search(grid, errors, exact, _EXACT * curve.sst)
    sse, level, m, slope = _bent_at(curve, c, v)
    # level + m (k - c) and level + B log((k + C) / (c + C)), with c + C = exp(v).
    return curve.fit(
        "two_part_continuous",
        c,
        sse,
        profile=errors.min(axis=0),
        **{"m": m, "b": level - m * c, "A": level - slope * v, "B": slope},
        shift=math.exp(v) + 1,
    )


def _grid(n: int) -> np.ndarray:
    low, high = math.log(_LOWEST_U), math.log(_HIGHEST_U * n)
    return np.linspace(low, high, math.ceil((high - low) / _STEP) + 1)


def _allowed(curve: _Curve) -> np.ndarray:
    """Breakpoints 0..n with enough ranks on both sides. [n + 1]"""
    seen = curve.before(curve.w > 0)
    c = np.arange(curve.n + 1)
    inner = (c >= _MIN_HEAD) & (c <= curve.n - _MIN_TAIL)
    return inner & (seen >= _MIN_HEAD) & (seen[-1] - seen >= _MIN_TAIL)


def _heads(curve: _Curve, h) -> np.ndarray:
    """Squared error of the line through ranks 1..c, for every c. [n + 1]"""
    w, y = curve.w, curve.y
    h = (h - h.mean()) / h.std()
    s, x, xx, xy, sy, yy = map(curve.before, (w, w * h, w * h * h, w * h * y, w * y, w * y * y))
    return _residual(s, x, xx, xy, sy, yy)


def _residual(s, x, xx, xy, sy, yy) -> np.ndarray:
    """Squared error of a line with intercept from weighted sums: of 1, x, x^2, x y, y, y^2."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread, common, total = xx - x * x / s, xy - x * sy / s, yy - sy * sy / s
        explained = np.where(spread > 1e-14 * xx, common**2 / spread, 0.0)
    return np.nan_to_num(np.maximum(total - explained, 0.0))


def _tail_sums(curve: _Curve, grid, offset: int):
    """For each u of the grid: sums of w x, w x^2, w x y over ranks beyond c. Yields [3, n + 1].

    x is log(1 + j/u), j = k - c - 1 + offset, over its largest value: an affine change of
    log(j + u), which no fitted value depends on, but which rounding does.
    """
    n = curve.n
    length = fft.next_fast_len(2 * n, real=True)
    spectrum = fft.rfft(np.stack([curve.w, curve.w * curve.y]), length)
    lag = np.arange(n) + offset
    for part in np.array_split(grid, math.ceil(len(grid) * length * 3 / _CHUNK)):
        x = np.log1p(lag / np.exp(part)[:, None])
        x /= x[:, -1:]
        first, second = fft.rfft(x, length).conj(), fft.rfft(x * x, length).conj()
        products = [first * spectrum[0], second * spectrum[0], first * spectrum[1]]
        sums = fft.irfft(np.stack(products, axis=1), length)[..., : n + 1]
        sums[..., n] = 0.0
        yield from sums


def _after(curve: _Curve) -> np.ndarray:
    """Sums of w, w y, w y^2 over ranks beyond c, for every c. [3, n + 1]"""
    w, y = curve.w, curve.y
    before = np.stack([curve.before(x) for x in (w, w * y, w * y * y)])
    return before[:, -1:] - before


def _tail(curve: _Curve, c: int, v: float) -> tuple[float, float, float]:
    """B, A and squared error of the tail beyond c at log u = v, summed about the means."""
    part = curve.seen(c + 1, curve.n)
    x = np.log1p(np.arange(curve.n - c) / math.exp(v))
    slope, intercept, sse = _line(x, curve.y[part], curve.w[part])
    return slope, intercept - slope * v, sse


def _hinge_sums(curve: _Curve) -> np.ndarray:
    """Sums of w h, w h^2, w h y for h = min(k - c, 0), for every c. [3, n + 1]"""
    w, y, k, c = curve.w, curve.y, curve.k, np.arange(curve.n + 1.0)
    s, x, xx, sy, xy = map(curve.before, (w, w * k, w * k * k, w * y, w * k * y))
    return np.stack([x - c * s, xx - 2 * c * x + c * c * s, xy - c * sy])


def _bent(curve: _Curve, hinge, sums):
    """Squared error and both slopes of the continuous form, from sums.

    h is 0 in the tail and the tail's regressor g is 0 in the head, so h g sums to 0.
    """
    (h, hh, hy), (g, gg, gy) = hinge, sums
    total = curve.w.sum()
    hh, gg, hg = hh - h * h / total, gg - g * g / total, -h * g / total
    determinant = hh * gg - hg * hg
    with np.errstate(divide="ignore", invalid="ignore"):
        m, slope = (hy * gg - gy * hg) / determinant, (gy * hh - hy * hg) / determinant
        sse = np.where(determinant > 1e-14 * hh * gg, curve.sst - m * hy - slope * gy, curve.sst)
    return np.clip(sse, 0.0, curve.sst), m, slope


def _bent_at(curve: _Curve, c: int, v: float) -> tuple[float, float, float, float]:
    """Squared error, level at c, m and B of the continuous form at c and log(c + C) = v."""
    w, y = curve.w, curve.y
    h, g = np.minimum(curve.k - c, 0), np.log1p(np.maximum(curve.k - c, 0) / math.exp(v))
    x = np.stack([h, g])
    mean = (w * x).sum(axis=1) / w.sum()
    centred = x - mean[:, None]
    scale = np.sqrt((w * centred**2).sum(axis=1))
    unit = centred / scale[:, None]
    m, slope = np.linalg.solve((w * unit) @ unit.T, (w * unit) @ y) / scale
    rest = y - m * centred[0] - slope * centred[1]
    return float((w * rest * rest).sum()), float(-m * mean[0] - slope * mean[1]), m, slope


def _search(grid, errors, exact, tolerance: float) -> tuple[int, float, float]:
    """The best (c, log u, squared error): grid minima refined, best first, while one can win.

    A parabola through three points of the grid says how far the error may fall between them; twice
    that is allowed for. `errors` [grid, c] gets the refined values.
    """
    padded = np.pad(errors, ((1, 1), (0, 0)), constant_values=np.inf)
    left, right = padded[:-2], padded[2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        drop = (right - left) ** 2 / (8 * (left - 2 * errors + right))
    least = errors - 2 * np.where(np.isfinite(drop), np.maximum(drop, 0.0), 0.0)
    rows, columns = np.nonzero((errors <= left) & (errors <= right) & np.isfinite(errors))
    hopeful = [(float(least[i, c]), int(c), int(i)) for i, c in zip(rows, columns, strict=True)]
    heapq.heapify(hopeful)
    best = (0, 0.0, math.inf)
    while hopeful:
        hope, c, i = heapq.heappop(hopeful)
        if hope >= best[2] - tolerance:
            break
        bracket = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        found = optimize.minimize_scalar(
            lambda v, c=c: exact(c, v), bounds=bracket, method="bounded", options={"xatol": 1e-6}
        )
        ends = [(exact(c, v), v) for v in (grid[i], float(found.x))]
        sse, v = min(ends)
        errors[i, c] = sse
        if sse < best[2]:
            best = (c, float(v), sse)
    return best


def _least_jump(curve: _Curve, fit: Fit) -> Fit:
    """The fit with its breakpoint moved within a gap of held-out ranks to where it jumps least."""
    c = fit.c
    while c > _MIN_HEAD and curve.w[c - 1] == 0 and fit.shift - (fit.c - c + 1) > 0:
        c -= 1
    places = [replace(fit, c=p, shift=fit.shift - (fit.c - p)) for p in range(c, fit.c + 1)]

    def jump(place: Fit) -> float:
        h = math.log(place.c + 1) if fit.family == "two_part_log_head" else place.c + 1
        return abs(place.m * h + place.b - place.A - place.B * math.log(place.shift))

    return min(places, key=jump)

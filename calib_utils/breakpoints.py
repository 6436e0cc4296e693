"""Sums of a curve's head and tail for every breakpoint at once, and the search over them.

What `piecewise` is made of: arrays in, arrays out. Knows a weighted curve over ranks 1..n, a grid
of u = c + 1 + C, and how to find the least of an error over both. Knows no family of curves.
"""

import heapq
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft, optimize

from calib_utils.errors import InvalidRequestError

MIN_RANKS = 6
MIN_HEAD, MIN_TAIL = 2, 4  # ranks with weight
EXACT = 1e-12  # of the total sum of squares: as good as 0
_LOWEST_U, _HIGHEST_U = 1e-9, 1e4  # the second in units of n
_STEP = 0.35  # of log u on the grid
_UNEVEN = 0.02  # ten times the most seen on real curves, at this step
_CHUNK = 4_000_000  # numbers in memory at once


class Curve:
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

    def before(self, x) -> np.ndarray:
        """Sums of x over ranks 1..c, for c = 0..n."""
        return np.concatenate([[0.0], np.cumsum(x)])


@dataclass(frozen=True)
class Line:
    """A weighted least-squares line: slope, intercept, squared error."""

    slope: float
    intercept: float
    sse: float


def line(curve: Curve, x, part: slice) -> Line:
    """The line of y on x over a part of the ranks, summed about the means. x: [rank of the part]"""
    y, w = curve.y[part], curve.w[part]
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    x, y = x - mean_x, y - mean_y
    spread = (w * x * x).sum()
    slope = (w * x * y).sum() / spread if spread > 0 else 0.0
    rest = y - slope * x
    return Line(float(slope), float(mean_y - slope * mean_x), float((w * rest * rest).sum()))


def tail(curve: Curve, c: int, v: float) -> Line:
    """The tail beyond c at log u = v: B, A and squared error."""
    x = np.log1p(np.arange(curve.n - c) / math.exp(v))
    own = line(curve, x, slice(c, None))
    return Line(own.slope, own.intercept - own.slope * v, own.sse)


def u_grid(n: int) -> np.ndarray:
    """log u from one bound to the other."""
    low, high = math.log(_LOWEST_U), math.log(_HIGHEST_U * n)
    return np.linspace(low, high, math.ceil((high - low) / _STEP) + 1)


def allowed(curve: Curve) -> np.ndarray:
    """Breakpoints 0..n with enough ranks on both sides. [n + 1]"""
    seen = curve.before(curve.w > 0)
    c = np.arange(curve.n + 1)
    inner = (c >= MIN_HEAD) & (c <= curve.n - MIN_TAIL)
    return inner & (seen >= MIN_HEAD) & (seen[-1] - seen >= MIN_TAIL)


def heads(curve: Curve, h) -> np.ndarray:
    """Squared error of the line through ranks 1..c, for every c. [n + 1]"""
    w, y = curve.w, curve.y
    h = (h - h.mean()) / h.std()
    s, x, xx, xy, sy, yy = map(curve.before, (w, w * h, w * h * h, w * h * y, w * y, w * y * y))
    return residual(s, x, xx, xy, sy, yy)


def residual(s, x, xx, xy, sy, yy) -> np.ndarray:
    """Squared error of a line with intercept from weighted sums: of 1, x, x^2, x y, y, y^2."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread, common, total = xx - x * x / s, xy - x * sy / s, yy - sy * sy / s
        explained = np.where(spread > 1e-14 * xx, common**2 / spread, 0.0)
    return np.nan_to_num(np.maximum(total - explained, 0.0))


def tail_sums(curve: Curve, offset: int):
    """For each u of `u_grid`: sums of w x, w x^2, w x y over ranks beyond c. Yields [3, n + 1].

    x is log(1 + j/u), j = k - c - 1 + offset, over its largest value: an affine change of
    log(j + u), which no fitted value depends on, but which rounding does.
    """
    n = curve.n
    length = fft.next_fast_len(2 * n, real=True)
    spectrum = fft.rfft(np.stack([curve.w, curve.w * curve.y]), length)
    grid = u_grid(n)
    for part in np.array_split(grid, math.ceil(len(grid) * length * 3 / _CHUNK)):
        first, second = _spectra(tuple(part), n, offset, length)
        products = [first * spectrum[0], second * spectrum[0], first * spectrum[1]]
        sums = fft.irfft(np.stack(products, axis=1), length)[..., : n + 1]
        sums[..., n] = 0.0
        yield from sums


@lru_cache(maxsize=2)  # one chunk of each offset; all curves of n ranks have it in common
def _spectra(v: tuple[float, ...], n: int, offset: int, length: int) -> tuple[np.ndarray, ...]:
    """Transforms of `tail_sums`'s x and x^2 at these log u."""
    x = np.log1p((np.arange(n) + offset) / np.exp(v)[:, None])
    x /= x[:, -1:]
    return fft.rfft(x, length).conj(), fft.rfft(x * x, length).conj()


def after(curve: Curve) -> np.ndarray:
    """Sums of w, w y, w y^2 over ranks beyond c, for every c. [3, n + 1]"""
    w, y = curve.w, curve.y
    before = np.stack([curve.before(x) for x in (w, w * y, w * y * y)])
    return before[:, -1:] - before


@dataclass(frozen=True)
class Optimum:
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
        ends = [(exact(c, v), v) for v in (grid[i], float(found.x))]
        sse, v = min(ends)
        errors[i, c] = sse
        if sse < best.sse:
            best = Optimum(c, float(v), sse)
    return best

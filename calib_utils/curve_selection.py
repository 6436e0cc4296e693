"""Which family of curves describes ranked values best: held-out error, and a BIC beside it.

Arrays in, tables out. Knows the families of `piecewise`; knows nothing of models or logits.

Residuals of a smooth, sorted curve are not noise: neighbours miss by almost the same amount, so
2,000 ranks hold far fewer independent numbers, and a criterion that counts each of them (AIC, BIC)
rewards every wiggle a family can follow. Two remedies:

*Blocked cross-validation*, which decides. Contiguous blocks of equal width in log-rank are held out
in turn, wide enough that a neighbour's residual does not give the answer away. Inner blocks ask a
family to interpolate, the first and the last to extrapolate. Each block has one vote, however many
ranks it holds: families are compared by the logarithm of the ratio of their mean squared errors on
a block, because the errors themselves differ by orders of magnitude from the top to the tail. The
interval is Student's over blocks; blocks share most of their training ranks, so it is a guide to
size, not an exact level. The family with the fewest parameters that is not told apart from the best
is preferred.

*BIC with an effective sample size*: n (1 - r) / (1 + r), r the lag-1 autocorrelation of the
residuals of the family that fits best, the same n for all. It is rough (it takes the residuals to
be a first-order autoregression), so it is shown and does not decide.
"""

import math
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from calib_utils import piecewise

N_BLOCKS = 12
LEVEL = 0.95
REFERENCE = "two_part"
# Name: fit, number of parameters (a breakpoint counts as one).
FAMILIES = {
    "exponential": (piecewise.exponential, 2),
    "power_law": (piecewise.power_law, 2),
    "shifted_power_law": (piecewise.shifted_power_law, 3),
    "two_part_continuous": (piecewise.two_part_continuous, 5),
    "two_part_log_head": (partial(piecewise.two_part, head="log"), 6),
    "two_part": (piecewise.two_part, 6),
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

    Args:
        y: [n] values over ranks from 1.

    Returns:
        Rows of family, block, first and last rank, error, log_ratio: ln of the error over the
        reference's on the same block.
    """
    y = np.asarray(y, dtype=float)
    number, rows = blocks(len(y), n_blocks), []
    floor = _ROUNDING * float(np.var(y))
    for block in range(number.max() + 1):
        held = np.flatnonzero(number == block)
        weights = (number != block).astype(float)
        errors = {}
        for family, (fit, _) in FAMILIES.items():
            missed = y[held] - fit(y, weights).predict(held + 1)
            errors[family] = float((missed**2).mean())
        base = math.log(errors[REFERENCE] + floor)
        for family, error in errors.items():
            ratio = math.log(error + floor) - base
            rows.append((family, block, held[0] + 1, held[-1] + 1, error, ratio))
    columns = ["family", "block", "first", "last", "error", "log_ratio"]
    return pd.DataFrame(rows, columns=columns)


def mean_interval(values) -> tuple[float, float, float]:
    """Mean and Student's interval at `LEVEL` over values taken as independent."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return mean, float(mean - half), float(mean + half)


def effective_size(residuals) -> float:
    """n (1 - r) / (1 + r) with r the lag-1 autocorrelation, kept between 0 and 1 - 2/n."""
    e = np.asarray(residuals, dtype=float)
    power = (e * e).sum()
    r = (e[1:] * e[:-1]).sum() / power if power > 0 else 0.0
    r = min(max(r, 0.0), 1 - 2 / len(e))
    return float(len(e) * (1 - r) / (1 + r))


def compare(y, errors: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every family on one curve: fit, held-out error against `REFERENCE`, BIC.

    Args:
        y: [n] values over ranks from 1.
        errors: of `held_out_errors`, if at hand.

    Returns:
        A row per family: parameters, mse, r2, held_out (mean of the blocks' errors), ratio with
        low and high (geometric mean over blocks of its held-out error over the reference's, and the
        interval), bic_effective, bic_naive (each less the smallest), effective_n, preferred.
    """
    y = np.asarray(y, dtype=float)
    errors = held_out_errors(y) if errors is None else errors
    n, floor = len(y), max(_ROUNDING * float(np.var(y)), np.finfo(float).tiny)
    fits = {family: fit(y) for family, (fit, _) in FAMILIES.items()}
    best = min(fits.values(), key=lambda fit: fit.sse)
    n_effective = effective_size(y - best.predict(np.arange(1, n + 1)))
    chosen, rows = preferred(errors), []
    for family, own in errors.groupby("family", sort=False):
        fit, size = fits[family], FAMILIES[family][1]
        misfit = math.log(max(fit.mse, floor))
        mean, low, high = mean_interval(own.log_ratio)
        rows.append(
            {
                "family": family,
                "parameters": size,
                "mse": fit.mse,
                "r2": fit.r2,
                "held_out": own.error.mean(),
                "ratio": math.exp(mean),
                "low": math.exp(low),
                "high": math.exp(high),
                "bic_effective": n_effective * misfit + size * math.log(n_effective),
                "bic_naive": n * misfit + size * math.log(n),
                "effective_n": n_effective,
                "preferred": family == chosen,
            }
        )
    table = pd.DataFrame(rows)
    for name in ("bic_effective", "bic_naive"):
        table[name] -= table[name].min()
    return table


def preferred(errors: pd.DataFrame) -> str:
    """The family with the fewest parameters that blocks do not tell apart from the best.

    The best has the smallest geometric mean of held-out errors; among families of one size the
    better one stands for them.

    Args:
        errors: of `held_out_errors`.
    """
    wide = errors.pivot(index="block", columns="family", values="log_ratio")
    means = wide.mean()
    best = means.idxmin()
    equal = [f for f in wide if f == best or mean_interval(wide[f] - wide[best])[1] <= 0]
    return str(min(equal, key=lambda f: (FAMILIES[f][1], means[f])))

"""Intervals for means over clusters: prompts and the seeds inside them are drawn again.

A table with one value per row in, a mean and a percentile interval out. Knows nothing of models,
labels or measures.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, t

N_RESAMPLES, COVERAGE = 2000, 0.95
LEAST = 3  # pairs; fewer give an interval that says nothing
DECIDES = 4  # outer clusters; the interval of fewer covers three times in four at best


@dataclass(frozen=True)
class Interval:
    """A mean, its interval, and what it rests on; NaN where there is nothing to rest on."""

    mean: float
    low: float
    high: float
    n_outer: int  # prompts with a value
    n_inner: int  # (prompt, seed) pairs with a value

    def columns(self, name: str) -> dict[str, float]:
        """The mean as `name`, and its bounds as `name_low` and `name_high`."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def cluster_interval(
    table: pd.DataFrame,
    value: str,
    outer: str = "prompt_id",
    inner: str | None = "seed",
    seed: int = 0,
) -> Interval:
    """Mean over clusters with a two-level bootstrap interval.

    Rows of one (outer, inner) pair are averaged, pairs within an outer cluster, then outer
    clusters: a prompt counts once, however many nodes or seeds it has. A resample draws as many
    outer clusters with replacement, and inside each drawn one as many inner clusters with
    replacement; rows of a pair stay together. Percentiles of the resampled means are the interval,
    further out the fewer the outer clusters. It ends at the least and the largest resample, so with
    fewer than six clusters it still is too narrow: print their number beside it.

    Args:
        table: rows with `outer`, `inner` and `value`; rows where the value is NaN are left out.
        value: the column to average.
        outer: clusters of the first level (prompts).
        inner: clusters inside them (seeds); None where there is one level.
        seed: of the resamples.

    Returns:
        An `Interval`; low and high are NaN with fewer than `LEAST` (outer, inner) pairs. One outer
        cluster with several inner ones gives an interval for that one cluster only.

    >>> table = pd.DataFrame({"prompt_id": list("aab"), "seed": [0, 1, 0], "x": [0.0, 1.0, 1.0]})
    >>> cluster_interval(table, "x").mean
    0.75
    """
    pairs = _pair_means(table, value, outer, inner)
    means = pairs.groupby(level=0, sort=True).mean()
    if not len(means):
        return Interval(np.nan, np.nan, np.nan, 0, 0)
    centre = float(means.mean())
    if len(pairs) < LEAST:
        return Interval(centre, np.nan, np.nan, len(means), len(pairs))
    groups = [group.to_numpy(dtype=float) for _, group in pairs.groupby(level=0, sort=True)]
    drawn = _resampled_means(groups, N_RESAMPLES, np.random.default_rng(seed))
    tail = _expanded_tail(len(means) if len(means) > 1 else len(pairs))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(centre, float(low), float(high), len(means), len(pairs))


def _expanded_tail(n: int) -> float:
    """The share of resamples to leave out at each end: the expanded percentiles of Hesterberg.

    (What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015.) Means of
    resamples vary by the variance over n, not n - 1, and like a normal, not a t, so that plain
    percentiles of n clusters are too narrow.
    """
    return float(norm.sf(np.sqrt(n / (n - 1)) * t.isf((1 - COVERAGE) / 2, n - 1)))


def cluster_mean(
    table: pd.DataFrame, value: str, outer: str = "prompt_id", inner: str | None = "seed"
) -> float:
    """The mean of `cluster_interval` alone; NaN where no row has a value."""
    return float(_pair_means(table, value, outer, inner).groupby(level=0).mean().mean())


def _pair_means(table: pd.DataFrame, value: str, outer: str, inner: str | None) -> pd.Series:
    keys = [outer] if inner is None else [outer, inner]
    return table.dropna(subset=value).groupby(keys, sort=True, observed=True)[value].mean()


def as_text(
    value: float,
    low: float,
    high: float,
    *,
    digits: int = 2,
    whole_from: float = np.inf,
    undefined: str = "–",
    alone: str = "no interval",
) -> str:
    """An estimate and its interval as text; `undefined` without it, `alone` without an interval.

    Numbers from `whole_from` on have no decimals. With an empty `alone` the estimate stands alone.
    """
    if pd.isna(value):
        return undefined
    value, low, high = (
        f"{x:.0f}" if x >= whole_from else f"{x:.{digits}f}" for x in (value, low, high)
    )
    inside = alone if low == "nan" else f"{low} to {high}"
    return f"{value} ({inside})" if inside else value


def _resampled_means(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """[resample], the mean over drawn clusters of the mean of what is drawn inside each."""
    sizes = np.array([len(group) for group in groups])
    wide = np.full((len(groups), sizes.max()), np.nan)
    for row, group in zip(wide, groups, strict=True):
        row[: len(group)] = group
    clusters = rng.integers(len(groups), size=(n, len(groups)))
    size = sizes[clusters]
    # The same outer cluster drawn twice draws its inside twice.
    inside = (rng.random((n, len(groups), wide.shape[1])) * size[..., None]).astype(np.int64)
    values = wide[clusters[..., None], inside]
    used = np.arange(wide.shape[1]) < size[..., None]
    return (np.where(used, values, 0.0).sum(axis=2) / size).mean(axis=1)

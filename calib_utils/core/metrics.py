"""Validity, diversity, sequence precision and recall (Def. 3.1, 4.1), budgets and intervals.

Log-probabilities in nats or tables of settings in, numbers out. Knows no model and no rule.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtrit  # scipy.stats would double a command's start

from calib_utils.core.tries import Trie
from calib_utils.errors import InvalidRequestError


def sequence_log_probability(trie: Trie, edge_log_p: np.ndarray) -> np.ndarray:
    """Log-probability of every sequence, the sum over its edges: [sequence, setting].

    Args:
        edge_log_p: [edge, setting], ln p(symbol | prefix) of every edge, -inf where cut off.
    """
    node_log_p = np.zeros((trie.n_nodes, edge_log_p.shape[1]))
    inner = np.flatnonzero(trie.edge_child >= 0)
    depth = trie.node_depth[trie.edge_child[inner]]
    for level in range(1, int(trie.node_depth.max()) + 1):
        edges = inner[depth == level]
        parents = node_log_p[trie.edge_node[edges]]
        node_log_p[trie.edge_child[edges]] = parents + edge_log_p[edges]
    last = trie.sequence_edge
    return node_log_p[trie.edge_node[last]] + edge_log_p[last]


def answer_log_probability(trie: Trie, sequence_log_p: np.ndarray) -> np.ndarray:
    """Log-probability of every answer, summed over its sequences: [answer, setting]."""
    total = np.full((trie.n_answers, sequence_log_p.shape[1]), -np.inf)
    np.logaddexp.at(total, trie.sequence_answer, sequence_log_p)
    return total


def validity(answer_log_p: np.ndarray) -> np.ndarray:
    """Val(p) = sum of p(y) over the valid answers (Def. 3.1), in [0, 1].

    >>> float(validity(np.log([0.5, 0.25])))
    0.75
    """
    # Rounding in the last of 16 digits may carry a sum of 1 above it.
    return np.minimum(np.exp(np.logaddexp.reduce(answer_log_p, axis=0)), 1.0)


def diversity(answer_log_p: np.ndarray) -> np.ndarray:
    """Div(p) = exp(H(p given valid)) / |V| (Def. 3.1), in [1/|V|, 1]; NaN where Val is 0.

    >>> float(diversity(np.log([0.2, 0.2])))
    1.0
    """
    n_answers = answer_log_p.shape[0]
    total = np.logaddexp.reduce(answer_log_p, axis=0)
    with np.errstate(invalid="ignore"):
        conditional = answer_log_p - total
        p = np.exp(conditional)
        entropy = -np.where(p > 0, p * conditional, 0.0).sum(axis=0)
    value = np.clip(np.exp(entropy) / n_answers, 1 / n_answers, 1.0)
    return np.where(np.exp(total) > 0, value, np.nan)


def sequence_precision(uniform_log_p: np.ndarray) -> np.ndarray:
    """Prec_seq (Def. 4.1): validity when each step is drawn uniformly from what is kept.

    Args:
        uniform_log_p: [answer, setting], log-probability of every answer under that sampler.
    """
    return validity(uniform_log_p)


def sequence_recall(uniform_log_p: np.ndarray) -> np.ndarray:
    """Rec_seq (Def. 4.1): the share of answers whose every token survives the cutoff."""
    return np.isfinite(uniform_log_p).mean(axis=0)


def pareto_frontier(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in both coordinates, by rising `first`.

    NaN points are left out; of equal points one stays.

    >>> pareto_frontier(np.array([0.1, 0.5, 0.4, 0.9]), np.array([0.9, 0.5, 0.4, 0.2])).tolist()
    [0, 1, 3]
    """
    order = np.lexsort((-second, -first))
    order = order[~np.isnan(first + second)[order]]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], second[order]]))
    return order[second[order] > best[:-1]][::-1]


def frontier_area(validity: np.ndarray, diversity: np.ndarray) -> float:
    """Area under the best diversity attainable at each validity level, in [0, 1].

    The integral over v from 0 to 1 of max{Div of a point with Val >= v}, 0 where no point
    reaches v. No interpolation, so every value was attained.

    >>> frontier_area(np.array([0.5, 1.0]), np.array([0.8, 0.2]))
    0.5
    """
    frontier = pareto_frontier(validity, diversity)
    steps = np.diff(validity[frontier], prepend=0.0)
    return float((steps * diversity[frontier]).sum())


def best_by_budget(table: pd.DataFrame, level: float = 0.8, by: str = "rule") -> pd.DataFrame:
    """Best diversity at a validity of at least `level`, by the number of settings tried.

    Someone tries `budget` settings of a sampler's grid, drawn without replacement, and takes the
    most diverse one that is valid enough; diversity counts as 0 where none is.

    Args:
        table: rows of `evaluate` for one model and task.
        level: in (0, 1], else an InvalidRequestError.
        by: the column that names a sampler.

    Returns:
        One row per sampler and budget: `by`, budget, and over all such draws, exactly, mean, low
        and high (5 % and 95 %).

    >>> t = pd.DataFrame({"rule": "x", "validity": [0.9, 0.9], "diversity": [0.2, 0.4]})
    >>> best_by_budget(t)["mean"].round(2).tolist()
    [0.3, 0.4]
    """
    if not 0 < level <= 1:
        raise InvalidRequestError(f"validity level {level!r}: must be above 0 and at most 1")
    rows = []
    for name, group in table.groupby(by, sort=False):
        usable = group.diversity.where(group.validity >= level, 0.0).fillna(0.0)
        values = np.sort(usable.to_numpy())
        for budget in range(1, len(values) + 1):
            # P(best <= i-th smallest) = C(i, budget) / C(n, budget)
            ways = [comb(i, budget) for i in range(len(values) + 1)]
            below = np.array([way / ways[-1] for way in ways])
            low, high = (values[np.searchsorted(below[1:], q)] for q in (0.05, 0.95))
            mean = float(np.diff(below) @ values)
            rows.append({by: name, "budget": budget, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


N_RESAMPLES, COVERAGE = 2000, 0.95
LEAST = 3  # pairs; fewer give an interval that says nothing
DECIDES = 10  # outer clusters; fewer are shown as points, without an interval, and decide nothing


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
    clusters: a prompt counts once, however many nodes or seeds it has. A resample draws outer
    clusters with replacement, and inner ones inside each. The interval is of expanded percentiles
    of the resampled means (Hesterberg, The American Statistician 69, 2015); with fewer than six
    outer clusters it still is too narrow, so print their number beside it.

    Args:
        table: rows with `outer`, `inner` and `value`; rows where the value is NaN are left out.
        inner: clusters inside the outer ones; None where there is one level.

    Returns:
        Low and high are NaN with fewer than `LEAST` (outer, inner) pairs. One outer cluster with
        several inner ones gives an interval for that one cluster only.

    >>> table = pd.DataFrame({"prompt_id": list("aab"), "seed": [0, 1, 0], "x": [0.0, 1.0, 1.0]})
    >>> cluster_interval(table, "x").mean
    0.75
    """
    pairs = _pair_means(table, value, outer, inner)
    means = pairs.groupby(level=0, sort=True).mean()
    centre = float(means.mean())
    if len(pairs) < LEAST:
        return Interval(centre, np.nan, np.nan, len(means), len(pairs))
    groups = [group.to_numpy(dtype=float) for _, group in pairs.groupby(level=0, sort=True)]
    drawn = _resampled_means(groups, N_RESAMPLES, np.random.default_rng(seed))
    n = len(means) if len(means) > 1 else len(pairs)
    # Student's quantile in place of the normal one.
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - COVERAGE) / 2))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(centre, float(low), float(high), len(means), len(pairs))


def cluster_mean(table: pd.DataFrame, value: str) -> float:
    """The mean of `cluster_interval` alone; NaN where no row has a value."""
    return float(_pair_means(table, value, "prompt_id", "seed").groupby(level=0).mean().mean())


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
    value, low, high = (f"{x:.{digits * (x < whole_from)}f}" for x in (value, low, high))
    inside = alone if low == "nan" else f"{low} to {high}"
    return f"{value} ({inside})" if inside else value


def _resampled_means(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """[resample], the mean over drawn clusters of the mean of what is drawn inside each."""
    sizes = np.array([len(group) for group in groups])
    wide = np.stack([np.resize(group, sizes.max()) for group in groups])
    clusters = rng.integers(len(groups), size=(n, len(groups)))
    size = sizes[clusters]
    # The same outer cluster drawn twice draws its inside twice.
    inside = (rng.random((n, len(groups), wide.shape[1])) * size[..., None]).astype(np.int64)
    values = wide[clusters[..., None], inside]
    used = np.arange(wide.shape[1]) < size[..., None]
    return (np.where(used, values, 0.0).sum(axis=2) / size).mean(axis=1)

"""How far judges agree, and what a judge's errors do to a measured frontier.

Labels in, numbers out (App. A.2 of the paper). Knows no judge and no text.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from calib_utils.errors import InvalidRequestError
from calib_utils.sampling import share_interval

PRECISION = 0.8  # the paper's level at which recall is reported
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """One judge's labels against another's on the items that both labelled.

    The counts are items: `true_positive` where both say valid, `false_positive` where only the
    first does. `accuracy_interval` is Wilson's, `f1_interval` a percentile bootstrap over items,
    both 95 %. F1 counts valid as positive; it is symmetric in the two judges. A rate without items
    to take it over is NaN.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    n_unlabelled: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]
    alpha: float

    @property
    def n(self) -> int:
        """Items that both labelled."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def false_positive_rate(self) -> float:
        """Share of the reference's invalid items that the first judge calls valid."""
        return _share(self.false_positive, self.false_positive + self.true_negative)

    @property
    def false_negative_rate(self) -> float:
        """Share of the reference's valid items that the first judge calls invalid."""
        return _share(self.false_negative, self.false_negative + self.true_positive)


def compare(valid, reference, *, seed: int = 0) -> Comparison:
    """Accuracy, F1 and Krippendorff's alpha of one judge's labels against a reference's.

    Args:
        valid, reference: True, False or NA per item, in the same order.
        seed: of the bootstrap.

    Raises:
        InvalidRequestError: unequal lengths, or no item that both labelled.
    """
    first, second = _labels(valid), _labels(reference)
    if len(first) != len(second):
        raise InvalidRequestError(f"{len(first)} labels against {len(second)}: give both per item")
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        raise InvalidRequestError("no item has a label of both judges")
    a, b = first[both] > 0, second[both] > 0
    counts = np.array([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()])
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=_RESAMPLES)
    low, high = np.nanquantile(_f1(draws), [0.025, 0.975]) if counts[:3].any() else (np.nan,) * 2
    hits = int(counts[0] + counts[3])
    return Comparison(
        *map(int, counts),
        n_unlabelled=len(first) - n,
        accuracy=hits / n,
        accuracy_interval=share_interval(hits, n),
        f1=float(_f1(counts[None])[0]),
        f1_interval=(float(low), float(high)),
        alpha=krippendorff_alpha(np.stack([first, second], axis=1)),
    )


def _labels(valid) -> np.ndarray:
    return pd.array(valid, dtype="boolean").to_numpy(dtype=float, na_value=np.nan)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of rows of (both, first only, second only, neither); NaN where nothing is positive."""
    total = 2 * counts[:, 0] + counts[:, 1] + counts[:, 2]
    return np.divide(2 * counts[:, 0], total, out=np.full(len(counts), np.nan), where=total > 0)


def krippendorff_alpha(labels) -> float:
    """Krippendorff's alpha for nominal labels: 1 is full agreement, 0 what chance gives.

    Alpha is 1 - (observed disagreement) / (expected disagreement), over pairs of labels of the
    same item. Items with fewer than two labels do not count.

    Args:
        labels: [item, judge], any values; NA or None where a judge has no label.

    Returns:
        NaN where all labels are equal or no item has two: there is no disagreement to expect.

    >>> round(krippendorff_alpha([[1, 1], [0, 0], [1, 0], [1, 1]]), 3)
    0.533
    """
    kinds, counts = _kinds(labels)
    return float(_alphas(kinds, counts[None])[0])


def alpha_interval(labels, *, resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of alpha over items; samples in which it is undefined are left out.

    Raises:
        InvalidRequestError: alpha is undefined in every sample.
    """
    kinds, counts = _kinds(labels)
    rng = np.random.default_rng(seed)
    values = _alphas(kinds, rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples))
    values = values[~np.isnan(values)]
    if not len(values):
        raise InvalidRequestError("alpha is undefined: all labels are equal, or no item has two")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _kinds(labels) -> tuple[list[tuple], np.ndarray]:
    """The different rows of labels, None where one is missing, and how often each occurs."""
    table = pd.DataFrame(labels).astype(object)
    rows = table.where(table.notna(), None).itertuples(index=False, name=None)
    counts = Counter(rows)
    return list(counts), np.array(list(counts.values()), dtype=np.int64)


def _alphas(kinds: list[tuple], draws: np.ndarray) -> np.ndarray:
    """Alpha of each draw [draw, kind], which says how often each row of labels occurs."""
    values = list(dict.fromkeys(label for kind in kinds for label in kind if label is not None))
    counts = np.zeros((len(kinds), len(values)))
    for row, kind in zip(counts, kinds, strict=True):
        if len(kind) - kind.count(None) > 1:  # one label alone makes no pair
            row[:] = [kind.count(value) for value in values]
    per_kind = counts.sum(axis=1)
    pairs_apart = per_kind**2 - (counts**2).sum(axis=1)
    observed = draws @ (pairs_apart / np.maximum(per_kind - 1, 1))
    n = draws @ per_kind
    expected = n**2 - ((draws @ counts) ** 2).sum(axis=1)
    alpha = np.full(len(draws), np.nan)
    return np.divide(expected - (n - 1) * observed, expected, out=alpha, where=expected > 0)


@dataclass(frozen=True)
class NoiseFloor:
    """What a perfect ranking measures when a judge errs at known rates.

    Everything is against the judge's own labels, as in a measurement where no others exist:
    recall is the share of what the *judge* calls valid, and `prevalence`, the share it calls
    valid, is also the area of a ranking at random.
    """

    area: float
    recall: float
    prevalence: float


def noise_floor(
    n_valid: int,
    n_total: int,
    false_positive: float,
    false_negative: float,
    precision: float = PRECISION,
) -> NoiseFloor:
    """Area under the precision-recall curve, and recall at a precision, of a perfect ranking.

    All valid items come first; the judge calls an invalid one valid at the rate `false_positive`
    and a valid one invalid at the rate `false_negative`, independently. The curve is that of the
    expected counts: precision h for the first n_valid items, h = 1 - false_negative, then
    (h n_valid + f (k - n_valid)) / k; its area is in closed form. One measurement scatters about
    it, and the best of many cutoffs profits from the scatter: `noise_draws` gives both.

    >>> floor = noise_floor(8_000, 80_000, 0.1, 0.1)
    >>> round(floor.area, 3), round(floor.recall, 3)
    (0.602, 0.508)

    Raises:
        InvalidRequestError: counts or rates out of range.
    """
    _check_noise(n_valid, n_total, false_positive, false_negative)
    hit, false, v = 1 - false_negative, false_positive, n_valid
    positives = hit * v + false * (n_total - v)
    if positives == 0:
        return NoiseFloor(float("nan"), float("nan"), 0.0)
    tail = (hit - false) * v * np.log(n_total / v) if v else 0.0
    area = (hit**2 * v + false * (false * (n_total - v) + tail)) / positives
    prevalence = positives / n_total
    if prevalence >= precision:
        recall = 1.0
    elif hit < precision or not v:
        recall = 0.0
    else:  # the cutoff at which precision has fallen to the level asked for
        cutoff = v * (hit - false) / (precision - false)
        recall = (hit * v + false * (cutoff - v)) / positives
    return NoiseFloor(float(area), float(recall), float(prevalence))


def noise_draws(
    n_valid: int,
    n_total: int,
    false_positive: float,
    false_negative: float,
    precision: float = PRECISION,
    *,
    draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Simulated measurements of a perfect ranking: one row per draw of the judge's errors.

    Columns: `area` under the curve of all cutoffs (a step per item), `frontier_area` under its
    Pareto frontier, `recall` at the precision, `prevalence`. NaN where the judge calls none valid.
    """
    _check_noise(n_valid, n_total, false_positive, false_negative)
    rng = np.random.default_rng(seed)
    rate = np.where(np.arange(n_total) < n_valid, 1 - false_negative, false_positive)
    ranks = np.arange(1, n_total + 1)
    rows = []
    for _ in range(draws):
        found = rng.random(n_total) < rate
        hits = np.cumsum(found)
        total = hits[-1] or np.nan
        curve = hits / ranks
        best = np.maximum.accumulate(curve[::-1])[::-1]
        recall = hits[curve >= precision].max(initial=0) / total
        rows.append(
            (curve[found].sum() / total, best[found].sum() / total, recall, total / n_total)
        )
    return pd.DataFrame(rows, columns=["area", "frontier_area", "recall", "prevalence"])


def _check_noise(n_valid, n_total, false_positive, false_negative) -> None:
    if not 0 <= n_valid <= n_total or n_total < 1:
        raise InvalidRequestError(f"{n_valid=}, {n_total=}: need 0 <= n_valid <= n_total, above 0")
    for name, rate in (("false_positive", false_positive), ("false_negative", false_negative)):
        if not 0 <= rate <= 1:
            raise InvalidRequestError(f"{name}={rate}: must be a rate from 0 to 1")

"""How far judges agree: accuracy, F1, Krippendorff's alpha, with intervals.

Labels in, numbers out (App. A.2 of the paper). Knows no judge and no text. What a judge's errors
do to a measured frontier is in `pr_baselines`.
"""

from dataclasses import dataclass

import krippendorff
import numpy as np
import pandas as pd

from calib_utils.errors import InvalidRequestError
from calib_utils.sampling import share_interval

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

    Args:
        labels: [item, judge], any values; NA or None where a judge has no label.

    Returns:
        NaN where all labels are equal or no item has two: there is no disagreement to expect.

    >>> round(krippendorff_alpha([[1, 1], [0, 0], [1, 0], [1, 1]]), 3)
    0.533
    """
    return _alpha(*_kinds(labels))


def alpha_interval(labels, *, resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of alpha over items, of the samples in which it is defined.

    Both ends are NaN where it is defined in none.
    """
    values, times = _kinds(labels)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(times.sum(), times / times.sum(), size=resamples)
    alphas = np.array([_alpha(values, draw) for draw in draws])
    if np.isnan(alphas).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(alphas, [0.025, 0.975])
    return float(low), float(high)


def _kinds(labels) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of labels as counts per value [row, value], and how often each occurs."""
    table = pd.DataFrame(labels).astype(object)
    codes, values = pd.factorize(table.to_numpy().ravel())  # -1 where a label is missing
    rows = pd.DataFrame(codes.reshape(table.shape))
    times = rows.groupby(list(rows), sort=False).size()
    kinds = times.index.to_frame().to_numpy()
    return (kinds[:, :, None] == np.arange(len(values))).sum(axis=1), times.to_numpy()


def _alpha(values: np.ndarray, times: np.ndarray) -> float:
    """Alpha of rows of labels [row, value], each so many times; the package divides 0 by 0."""
    counts = np.repeat(values, times, axis=0)
    counts = counts[counts.sum(axis=1) > 1]
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))

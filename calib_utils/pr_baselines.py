"""What a precision-recall frontier looks like when the ranking knows nothing, or the judge errs.

Numbers of candidates and of valid ones in, expected area and recall out. Knows no model and no
label. A frontier takes the best cutoff after the fact, so a random order gets more than its
prevalence: the smaller the node, the more.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.8  # of precision, Fig. 4 and 8
# The exact computation holds (n/2)^2 thresholds against n states; beyond this it is simulated.
_EXACT_UP_TO = 110
_DRAWS = 4000


@dataclass(frozen=True)
class RandomOrder:
    """Expected area and recall at a precision of a random order of `n` candidates."""

    n: int
    n_valid: int
    area: float
    recall_at: float
    standard_error: float  # of the area, 0 where computed exactly


@dataclass(frozen=True)
class NoiseFloor:
    """What a perfect order measures under a judge that errs: means and sd over drawn labels."""

    area: float
    area_sd: float
    recall_at: float
    recall_at_sd: float
    prevalence: float  # as the judge sees it


@lru_cache(maxsize=4096)
def random_order(
    n: int,
    n_valid: int,
    level: float = LEVEL,
    cutoffs: tuple[int, ...] | None = None,
    seed: int = 0,
) -> RandomOrder:
    """Area under the frontier and recall at a precision, averaged over all orders.

    The same for weighted and for unweighted recall: in a random order the weights of the valid
    candidates are exchangeable, and precision does not see them, so the expected recall of every
    cutoff is that of counts.

    Up to 110 candidates the expectation is exact: a walk over the states (cutoff, valid ones
    kept), from the last cutoff back, finds for every precision t the expected recall of the largest
    cutoff that reaches t; the area is the integral of that over t. Above, the mean of 4,000 seeded
    random orders with its standard error.

    Args:
        n: candidates.
        n_valid: valid ones among them.
        level: precision, in (0, 1].
        cutoffs: numbers of candidates kept that a frontier may use, rising to n; all from 1 to n
            by default.
        seed: of the simulation.

    Returns:
        NaN for area and recall where nothing is valid.

    >>> random_order(2, 1).area  # the valid one is first (1) or second (1/2)
    0.75
    """
    cutoffs = cutoffs or tuple(range(1, n + 1))
    if n_valid == 0:
        return RandomOrder(n, 0, math.nan, math.nan, 0.0)
    if n <= _EXACT_UP_TO:
        thresholds = {found / kept for kept in cutoffs for found in range(min(kept, n_valid) + 1)}
        above = np.array(sorted(t for t in thresholds if t > n_valid / n))
        recall = _recall_at_thresholds(n, n_valid, np.append(above, level), cutoffs)
        # Below the prevalence, keeping all reaches every precision with recall 1.
        area = n_valid / n + float(np.diff(above, prepend=n_valid / n) @ recall[:-1])
        return RandomOrder(n, n_valid, area, float(recall[-1]), 0.0)
    precision, recall = _simulated(n, n_valid, cutoffs, np.random.default_rng(seed))
    areas, reached = _area_and_recall(precision, recall, level)
    error = float(areas.std(ddof=1) / math.sqrt(len(areas)))
    return RandomOrder(n, n_valid, float(areas.mean()), float(reached.mean()), error)


def _area_and_recall(precision: np.ndarray, recall: np.ndarray, level: float):
    """Area under the frontier, and recall at a precision, of curves [..., cutoff].

    The area of `metrics.frontier_area`, for many curves at once whose recall never falls.
    """
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    area = (best * np.diff(recall, prepend=0.0, axis=-1)).sum(axis=-1)
    return area, np.where(precision >= level, recall, 0.0).max(axis=-1)


def _recall_at_thresholds(n: int, n_valid: int, thresholds: np.ndarray, cutoffs: tuple):
    """Expected recall of the largest cutoff with precision of at least each threshold.

    A random order read backwards is a random order: of `kept` candidates with a valid ones, the
    last is valid with probability a / kept. The first cutoff met on the way back that reaches the
    threshold is the largest, and holds the most recall.
    """
    found = np.arange(n_valid + 1)
    p = np.zeros((len(thresholds), n_valid + 1))
    p[:, n_valid] = 1.0
    recall = np.zeros(len(thresholds))
    allowed = set(cutoffs)
    for kept in range(n, 0, -1):
        if kept in allowed:
            # Quotients of small integers are rounded correctly: equal fractions compare equal.
            reached = found / kept >= thresholds[:, None]
            recall += np.where(reached, p, 0.0) @ (found / n_valid)
            p[reached] = 0.0
        valid = np.minimum(found / kept, 1.0)
        # Column a takes what loses an invalid candidate, and what loses a valid one from a + 1.
        p[:, :-1] = p[:, :-1] * (1 - valid[:-1]) + p[:, 1:] * valid[1:]
        p[:, -1] *= 1 - valid[-1]
    return recall


def _simulated(n: int, n_valid: int, cutoffs: tuple, rng: np.random.Generator):
    """Precision and recall [draw, cutoff] of random orders: valid ones kept, step by step."""
    found = np.zeros((_DRAWS, len(cutoffs)), dtype=np.int64)
    before, kept_before = np.zeros(_DRAWS, dtype=np.int64), 0
    for column, kept in enumerate(cutoffs):
        left = n_valid - before
        others = n - kept_before - left
        before = before + rng.hypergeometric(left, others, kept - kept_before)
        found[:, column], kept_before = before, kept
    return found / np.array(cutoffs), found / n_valid


def noise_floor(
    n: int,
    n_valid: int,
    false_positive: float,
    false_negative: float,
    n_draws: int = 50,
    seed: int = 0,
) -> NoiseFloor:
    """Area and recall that a perfect order seems to have, scored by a judge that errs.

    The simulated judge errs independently from candidate to candidate; a real one, whose errors
    depend on the text, need not.

    Args:
        n: candidates, the truly valid ones first.
        n_valid: truly valid ones, at least 1.
        false_positive: share of invalid candidates that the judge calls valid.
        false_negative: share of valid candidates that the judge calls invalid.
        n_draws: seeded sets of labels; those without a valid label are left out.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    called = np.where(np.arange(n) < n_valid, 1 - false_negative, false_positive)
    kept = np.arange(1, n + 1)
    seen = []
    for _ in range(n_draws):
        found = np.cumsum(rng.random(n) < called)
        if found[-1]:
            precision = found / kept
            area, reached = _area_and_recall(precision, found / found[-1], LEVEL)
            seen.append((area, reached, precision[-1]))
    if len(seen) < 2:
        return NoiseFloor(*[math.nan] * 5)
    area, reached, prevalence = np.mean(seen, axis=0)
    area_sd, reached_sd, _ = np.std(seen, axis=0, ddof=1)
    return NoiseFloor(*map(float, (area, area_sd, reached, reached_sd, prevalence)))

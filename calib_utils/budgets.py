"""Samplers compared at equal budgets: the best of so many settings tried, not of a bigger grid.

Tables of settings in, expectations and bands out. Runs nothing.
"""

from math import comb

import numpy as np
import pandas as pd

from calib_utils.errors import InvalidRequestError

_BAND = (0.05, 0.95)


def best_by_budget(table: pd.DataFrame, level: float = 0.8, by: str = "rule") -> pd.DataFrame:
    """Best diversity at validity of at least `level` against the number of settings tried.

    Someone tries `budget` settings of a sampler's grid, drawn without replacement, and takes the
    most diverse one that is valid enough; diversity counts as 0 where none is. Mean and band are
    exact over all such draws: what a bootstrap over settings tends to.

    Args:
        table: rows of `evaluate` for one model and task.
        level: in (0, 1].
        by: the column that names a sampler.

    Returns:
        One row per sampler and budget: `by`, budget, mean, low and high (5 % and 95 %).

    Raises:
        InvalidRequestError: a level outside (0, 1].

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
            low, high = (values[np.searchsorted(below[1:], q)] for q in _BAND)
            mean = float(np.diff(below) @ values)
            rows.append({by: name, "budget": budget, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)

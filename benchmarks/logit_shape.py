"""Time of one fit in two parts over 2,000 ranks, against a search of scipy at every breakpoint.

The search per breakpoint is the obvious one: for each c a scan of C, then bounded minimisation,
all else by linear regression in closed form. Its least error has to agree with ours.
"""

import argparse

import common
import numpy as np
from scipy import optimize

import calib_utils as cu
from calib_utils.studies import logit_shape
from calib_utils.theory.curves import two_part

SCAN = 24  # values of C tried at each breakpoint before refining
TOLERANCE = 1e-6  # of the least squared error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", type=int, default=1, help="which of the paper's six, from 0")
    common.add_options(parser)
    options = common.parse(parser)
    query = logit_shape.QUERIES[options.query]
    model = cu.load_model(options.model, device="cpu")
    y = logit_shape.sorted_logits(model, query)
    two_part(y)

    ours = common.timed(lambda: two_part(y), options.repeats)
    theirs = common.timed(lambda: every_breakpoint(y), 1)
    c, error = min(theirs.value.items(), key=lambda item: item[1])
    record = {
        "benchmark": "logit_shape",
        "model": model.name,
        "query": query.label,
        **common.describe(),
        "n_ranks": len(y),
        "c": ours.value.c,
        "c_per_breakpoint": c,
        "relative_difference": ours.value.sse / error - 1,
        **ours.columns("ours"),
        **theirs.columns("per_breakpoint"),
        "per_breakpoint_ratio_wall": theirs.wall_s / ours.wall_s,
        "per_breakpoint_ratio_cpu": theirs.cpu_s / ours.cpu_s,
    }
    common.save(record, options.out)
    assert ours.value.sse <= error * (1 + TOLERANCE), "the search per breakpoint fits better"


def every_breakpoint(y: np.ndarray) -> dict[int, float]:
    """Least squared error at each breakpoint."""
    n = len(y)
    grid = np.linspace(np.log(1e-9), np.log(1e4 * n), SCAN)
    return {c: _head(y, c) + _least_tail(y[c:], grid) for c in range(2, n - 3)}


def _head(y: np.ndarray, c: int) -> float:
    return _line(np.arange(1.0, c + 1), y[:c])


def _least_tail(y: np.ndarray, grid: np.ndarray) -> float:
    lag = np.arange(len(y))

    def error(v):
        return _line(np.log1p(lag / np.exp(v)), y)

    errors = [error(v) for v in grid]
    at = int(np.argmin(errors))
    bounds = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    return min(errors[at], optimize.minimize_scalar(error, bounds=bounds, method="bounded").fun)


def _line(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    rest = y - x * (x @ y) / (x @ x)
    return float(rest @ rest)


if __name__ == "__main__":
    main()

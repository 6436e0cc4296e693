"""The controlled tasks of Sec. 5 and App. C: what to measure, and the paper's claims beside it.

Knows the study's grids, how answers end, and how a claim is decided from a table. Runs nothing.
"""

import numpy as np
import pandas as pd

from calib_utils.core.metrics import frontier_area
from calib_utils.studies.reporting import (
    AGREEMENT,
    TESTABLE,
    Finding,
    listed,
    or_equal,
    too_low,
    verdict,
)

# The paper does not give its temperature grid for Fig. 5; this one is dense where curves bend.
CURVE_TEMPERATURES = (
    *(0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    *(1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.25, 2.5, 3.0, 4.0),
)
# Fig. 5 right and Fig. 10.
PROFILE_TEMPERATURES = {"us-states": (0.5, 1.0, 1.6, 2.0)}
_PROFILE_DEFAULT = (0.5, 1.0, 1.6, 4.0)
# The paper does not give the sum; 10 leaves a task of middling size at every length.
SUM = 10
FAMILIES = {
    "unconstrained": "rng-{n}",
    "sum at most 10": f"rng-{{n}}-sum-at-most-{SUM}",
    "sum equals 10": f"rng-{{n}}-sum-equals-{SUM}",
}


def task_names(lengths: tuple[int, ...]) -> list[str]:
    """The study's tasks: every family at every length, and the states."""
    return [f.format(n=n) for f in FAMILIES.values() for n in lengths] + ["us-states"]


def profile_temperatures(task: str) -> tuple[float, ...]:
    """The temperatures at which the answers' probabilities are shown."""
    return PROFILE_TEMPERATURES.get(task, _PROFILE_DEFAULT)


def label_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `family` and `length` (0 for the states)."""
    known = {f.format(n=n): (name, n) for name, f in FAMILIES.items() for n in range(1, 6)}
    pairs = [known.get(task, ("states", 0)) for task in table.task]
    return table.assign(family=[p[0] for p in pairs], length=[p[1] for p in pairs])


def curve_summary(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per task: its best validity and where, and the area under its Val-Div curve."""
    rows = []
    for task, curve in curves.groupby("task", sort=False):
        best = curve.loc[curve.validity.idxmax()]
        rows.append(
            {
                "task": task,
                "best validity": best.validity,
                "at temperature": best.temperature,
                "diversity there": best.diversity,
                "area": frontier_area(curve.validity.to_numpy(), curve.diversity.to_numpy()),
            }
        )
    return label_tasks(pd.DataFrame(rows))


def findings(curves: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about temperature on controlled tasks, decided on one model's tables.

    Args:
        curves: rows of `evaluate` without cutoff, over `CURVE_TEMPERATURES`, several tasks.
        answers: rows of `answer_probabilities` with a `task` column.

    Returns:
        Columns claim, source, found, verdict. The numbers are exact for the model file, so they
        carry no interval; a claim is not testable where validity stays below `TESTABLE`.
    """
    summary = curve_summary(curves)
    usable = set(summary.task[summary["best validity"] >= TESTABLE])
    rows = [
        _longer_is_worse(summary, "unconstrained"),
        _longer_is_worse(summary, "sum at most 10"),
        _constrained_is_worse(summary),
        _temperature_trades(curves, usable),
        _no_temperature_has_both(curves, usable),
        _few_answers_hold_the_mass(answers, usable),
        _tail_takes_over(curves, usable),
    ]
    return pd.DataFrame(rows)


def _longer_is_worse(summary: pd.DataFrame, family: str) -> Finding:
    rows = summary[summary.family == family].sort_values("length")
    areas = rows.area.to_numpy()
    found = "area under the Val–Div curve " + listed(rows.length, areas, "n = {}: {:.3f}")
    found += "; best validity " + listed(rows.length, rows["best validity"], "n = {}: {:.2f}")
    testable = len(rows) > 1 and rows["best validity"].max() >= TESTABLE
    return Finding(
        f"Longer answers have a worse validity–diversity curve, by its area ({family})",
        "Fig. 5 left",
        found,
        verdict(testable, -np.diff(areas)),
    )


def _constrained_is_worse(summary: pd.DataFrame) -> Finding:
    areas = summary.pivot_table(index="length", columns="family", values="area")
    gap = (areas["unconstrained"] - areas["sum at most 10"]).dropna()
    free = summary[summary.family == "unconstrained"]
    return Finding(
        "A sum constraint makes the curve worse at the same length",
        "Fig. 5 left",
        "area lost to the constraint " + listed(gap.index, gap, "n = {}: {:+.3f}"),
        verdict(free["best validity"].max() >= TESTABLE, gap),
    )


def _temperature_trades(curves: pd.DataFrame, usable: set) -> Finding:
    peaks, steps = [], []
    for task, curve in curves[curves.task.isin(usable)].groupby("task", sort=False):
        curve = curve.sort_values("temperature")
        falls, rises = -curve.validity.diff().max(), curve.diversity.diff().min()
        steps += [falls, rises]
        peak = curve.loc[curve.validity.idxmax(), "temperature"]
        monotone = rises >= -AGREEMENT
        peaks.append(f"{task} peaks at T = {peak:g}" + ("" if monotone else ", Div not monotone"))
    return Finding(
        "Raising the temperature lowers validity and raises diversity throughout",
        "Sec. 5, Fig. 5",
        "validity: " + "; ".join(peaks) if peaks else too_low(),
        verdict(bool(usable), or_equal(steps)),
    )


def _no_temperature_has_both(curves: pd.DataFrame, usable: set) -> Finding:
    rows = curves[curves.task.isin(usable)]
    both = rows.assign(both=np.minimum(rows.validity, rows.diversity)).groupby("task", sort=False)
    best = both.both.max()
    return Finding(
        "No temperature reaches validity and diversity near 1 together",
        "Fig. 5 left",
        "best of min(Val, Div) " + listed(best.index, best, "{}: {:.2f}") if usable else too_low(),
        verdict(bool(usable), 0.9 - best),
    )


def _few_answers_hold_the_mass(answers: pd.DataFrame, usable: set) -> Finding:
    shares, told = {}, []
    for task, rows in answers[answers.task.isin(usable) & (answers.temperature == 1)].groupby(
        "task", sort=False
    ):
        p = np.sort(np.exp(rows.log_p.to_numpy()))[::-1]
        shares[task] = (int((p.cumsum() < 0.5 * p.sum()).sum()) + 1) / len(p)
        told.append(f"{task}: {shares[task] * len(p):.0f} of {len(p):,} ({shares[task]:.0%})")
    return Finding(
        "At T = 1 a few valid answers hold most of the valid mass",
        "Fig. 5 right, Fig. 10",
        "answers that hold half of the valid mass (uniform: half of them; decided at a quarter) "
        + ", ".join(told)
        if usable
        else too_low(),
        verdict(bool(usable), [0.25 - share for share in shares.values()]),
    )


def _tail_takes_over(curves: pd.DataFrame, usable: set) -> Finding:
    hot = curves[curves.task.isin(usable) & (curves.temperature == curves.temperature.max())]
    tail = 1 - hot.validity
    found = f"invalid mass at T = {curves.temperature.max():g} " + listed(
        hot.task, tail, "{}: {:.4f}"
    )
    return Finding(
        "At high temperature the invalid tail holds nearly all mass",
        "Fig. 5 right, Fig. 10",
        found if usable else too_low(),
        verdict(bool(usable), tail - 0.9),
    )

"""The controlled tasks of Sec. 5 and App. C: what to measure, and the paper's claims beside it.

Knows the study's grids, how answers end, and how a claim is decided from a table. Draws nothing.
"""

import numpy as np
import pandas as pd

from calib_utils.core.metrics import frontier_area
from calib_utils.core.prompts import ENDS
from calib_utils.results.evaluation import (
    answer_probabilities,
    evaluate,
    share_interval,
    stored_measurement,
)
from calib_utils.studies.reporting import (
    AGREEMENT,
    TESTABLE,
    Finding,
    Page,
    decide,
    listed,
    or_equal,
    over,
    verdict,
)

# The paper does not give its temperature grid for Fig. 5; this one is dense where curves bend.
CURVE_TEMPERATURES = (
    *(0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    *(1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.25, 2.5, 3.0, 4.0),
)
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
    """The temperatures at which the answers' probabilities are shown (Fig. 5 right, Fig. 10)."""
    return (0.5, 1.0, 1.6, 2.0 if task == "us-states" else 4.0)


def label_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `family` and `length` (0 for the states)."""
    known = {f.format(n=n): (name, n) for name, f in FAMILIES.items() for n in range(1, 6)}
    pairs = [known.get(task, ("states", 0)) for task in table.task]
    return table.assign(family=[p[0] for p in pairs], length=[p[1] for p in pairs])


def temperature_curves(page: Page, tasks: list[str]) -> pd.DataFrame:
    """Rows of `evaluate` without cutoff over `CURVE_TEMPERATURES`, through `label_tasks`."""

    def curve(task: str) -> pd.DataFrame:
        profile = profile_temperatures(task)
        asked = {"temperatures": CURVE_TEMPERATURES, "answer_temperatures": profile}
        return evaluate(page.model, task, **asked, **page.asked)

    return label_tasks(over(tasks, curve))


def answer_profiles(page: Page, tasks: list[str]) -> pd.DataFrame:
    """Rows of `answer_probabilities` at `profile_temperatures`, with a `task` column."""

    def profile(task: str) -> pd.DataFrame:
        return answer_probabilities(page.model, task, profile_temperatures(task), **page.asked)

    return over(tasks, profile)


def end_policies(page: Page) -> pd.DataFrame:
    """Rows of `evaluate` at T = 1 under every end policy, with a column `end`."""
    parts = [
        evaluate(page.model, task, end=end, results_dir=page.store).assign(end=end)
        for task in ("rng-2", "us-states")
        for end in ENDS
    ]
    return pd.concat(parts)


def valid_draws(draws: pd.DataFrame) -> tuple[int, float, float]:
    """How many rows of `sample_answers` are valid, and the 95 % interval of their share."""
    valid = int(draws.answer.notna().sum())
    return valid, *share_interval(valid, len(draws))


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


def key_numbers(curves: pd.DataFrame, summary: pd.DataFrame) -> dict[str, float]:
    """What the book's prose quotes of each task: validity and diversity at T = 1, and the area."""
    at_one = curves[curves.temperature == 1.0].set_index("task")
    found = {}
    for task, area in zip(summary.task, summary.area, strict=True):
        found[f"validity_{task}"] = at_one.validity[task]
        found[f"diversity_{task}"] = at_one.diversity[task]
        found[f"area_{task}"] = area
    return found


def provenance(page: Page, tasks: list[str]) -> str:
    """Which weights, convention, machine and packages the rows come from: four lines."""
    record = stored_measurement(page.model, tasks[0], page.store, end=page.end).record
    told = record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in told["packages"].items())
    return (
        f"weights   {page.source}\n"
        f"rows      convention {record['convention']}\n"
        f"measured  {told['date']} on {told['machine']} {told['device']}\n"
        f"packages  {packages}"
    )


def findings(curves: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about temperature on controlled tasks, decided on one model's tables.

    Args:
        curves: of `temperature_curves`, several tasks.
        answers: of `answer_profiles`.

    Returns:
        Columns claim, source, found, verdict. The numbers are exact for the model file, so they
        carry no interval; a claim is not testable where validity stays below `TESTABLE`.
    """
    summary = curve_summary(curves)
    usable = summary.task[summary["best validity"] >= TESTABLE]
    curves, answers = curves[curves.task.isin(usable)], answers[answers.task.isin(usable)]
    rows = [
        _longer_is_worse(summary, "unconstrained"),
        _longer_is_worse(summary, "sum at most 10"),
        _constrained_is_worse(summary),
        _temperature_trades(curves),
        _no_temperature_has_both(curves),
        _few_answers_hold_the_mass(answers[answers.temperature == 1], testable=len(usable) > 0),
        _tail_takes_over(curves),
    ]
    return pd.DataFrame(rows)


def _longer_is_worse(summary: pd.DataFrame, family: str) -> Finding:
    claim = f"Longer answers have a worse validity–diversity curve, by its area ({family})"
    rows = summary[summary.family == family].sort_values("length")
    areas, best = rows.area.to_numpy(), rows["best validity"]
    found = "area under the Val–Div curve " + listed(rows.length, areas, "n = {}: {:.3f}")
    found += "; best validity " + listed(rows.length, best, "n = {}: {:.2f}")
    testable = len(rows) > 1 and best.max() >= TESTABLE
    return Finding(claim, "Fig. 5 left", found, verdict(testable, -np.diff(areas)))


def _constrained_is_worse(summary: pd.DataFrame) -> Finding:
    claim = "A sum constraint makes the curve worse at the same length"
    areas = summary.pivot_table(index="length", columns="family", values="area")
    gap = (areas["unconstrained"] - areas["sum at most 10"]).dropna()
    found = "area lost to the constraint " + listed(gap.index, gap, "n = {}: {:+.3f}")
    free = summary[summary.family == "unconstrained"]
    testable = free["best validity"].max() >= TESTABLE
    return Finding(claim, "Fig. 5 left", found, verdict(testable, gap))


def _temperature_trades(curves: pd.DataFrame) -> Finding:
    claim = "Raising the temperature lowers validity and raises diversity throughout"
    peaks, steps = [], []
    for task, curve in curves.groupby("task", sort=False):
        curve = curve.sort_values("temperature")
        falls, rises = -curve.validity.diff().max(), curve.diversity.diff().min()
        steps += [falls, rises]
        peak = curve.loc[curve.validity.idxmax(), "temperature"]
        monotone = "" if rises >= -AGREEMENT else ", Div not monotone"
        peaks.append(f"{task} peaks at T = {peak:g}{monotone}")
    found = "validity: " + "; ".join(peaks)
    return decide(claim, "Sec. 5, Fig. 5", found, bool(peaks), or_equal(steps))


def _no_temperature_has_both(curves: pd.DataFrame) -> Finding:
    claim = "No temperature reaches validity and diversity near 1 together"
    both = np.minimum(curves.validity, curves.diversity)
    best = both.groupby(curves.task, sort=False).max()
    found = "best of min(Val, Div) " + listed(best.index, best, "{}: {:.2f}")
    return decide(claim, "Fig. 5 left", found, len(best) > 0, 0.9 - best)


def _few_answers_hold_the_mass(answers: pd.DataFrame, testable: bool) -> Finding:
    claim = "At T = 1 a few valid answers hold most of the valid mass"
    how = "answers that hold half of the valid mass (uniform: half of them; decided at a quarter) "
    shares, told = [], []
    for task, rows in answers.groupby("task", sort=False):
        p = np.sort(np.exp(rows.log_p.to_numpy()))[::-1]
        most = int((p.cumsum() < 0.5 * p.sum()).sum()) + 1
        shares.append(most / len(p))
        told.append(f"{task}: {most} of {len(p):,} ({shares[-1]:.0%})")
    found = how + ", ".join(told)
    return decide(claim, "Fig. 5 right, Fig. 10", found, testable, 0.25 - np.array(shares))


def _tail_takes_over(curves: pd.DataFrame) -> Finding:
    claim = "At high temperature the invalid tail holds nearly all mass"
    hottest = curves.temperature.max()
    hot = curves[curves.temperature == hottest]
    tail = 1 - hot.validity
    found = f"invalid mass at T = {hottest:g} " + listed(hot.task, tail, "{}: {:.4f}")
    return decide(claim, "Fig. 5 right, Fig. 10", found, len(hot) > 0, tail - 0.9)

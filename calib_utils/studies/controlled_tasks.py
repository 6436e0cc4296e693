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
    Page,
    decide_all,
    listed,
    or_equal,
    over,
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
# Closed lists with 8 to 250 answers, of every size and subject; the other lists are alike.
LISTS = (
    *("african-country", "amino-acid", "bible-book", "brazilian-state", "canadian-province"),
    *("chinese-zodiac-animal", "constellation", "country", "css-color", "currency-code"),
    *("element", "eu-member", "geological-period", "german-state", "greek-letter", "greek-muse"),
    *("http-method", "indian-state", "japanese-prefecture", "language", "major-arcana-card"),
    *("month", "musical-key", "national-capital", "nato-word", "nba-team", "planet"),
    *("python-keyword", "shakespeare-play", "si-prefix", "south-american-country", "swiss-canton"),
    *("us-national-park", "us-president", "us-state-capital", "zodiac-sign"),
)

_LEFT, _RIGHT = "Fig. 5 left", "Fig. 5 right, Fig. 10"
_LONGER = "Longer answers have a worse validity–diversity curve, by its area ({})"
_CONSTRAINED = "A sum constraint makes the curve worse at the same length"
_TRADES = "Raising the temperature lowers validity and raises diversity throughout"
_NONE_HAS_BOTH = "No temperature reaches validity and diversity near 1 together"
_FEW = "At T = 1 a few valid answers hold most of the valid mass"
_HALF = "answers that hold half of the valid mass (uniform: half of them; decided at a quarter) "
_TAIL = "At high temperature the invalid tail holds nearly all mass"


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
    asked = page.asked | {"temperatures": CURVE_TEMPERATURES}

    def curve(task: str) -> pd.DataFrame:
        return evaluate(page.model, task, answer_temperatures=profile_temperatures(task), **asked)

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
    by_task = curves.groupby("task", sort=False)
    best = curves.loc[by_task.validity.idxmax(), ["task", "validity", "temperature", "diversity"]]
    best.columns = ["task", "best validity", "at temperature", "diversity there"]
    areas = [frontier_area(*own[["validity", "diversity"]].to_numpy().T) for _, own in by_task]
    return label_tasks(best.assign(area=areas).reset_index(drop=True))


def key_numbers(curves: pd.DataFrame, summary: pd.DataFrame) -> dict[str, float]:
    """What the book's prose quotes of each task: validity and diversity at T = 1, and the area."""
    at_one = summary[["task", "area"]].merge(curves[curves.temperature == 1.0], on="task")
    numbers = at_one.set_index("task")[["validity", "diversity", "area"]].stack()
    return {f"{name}_{task}": value for (task, name), value in numbers.items()}


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

    Of `temperature_curves` of several tasks, and of `answer_profiles`. The numbers are exact for
    the model file, so they carry no interval. Columns claim, source, found, verdict.
    """
    summary = curve_summary(curves)
    usable = summary.task[summary["best validity"] >= TESTABLE]
    curves, answers = curves[curves.task.isin(usable)], answers[answers.task.isin(usable)]
    some, rows = len(usable) > 0, []
    for family in ("unconstrained", "sum at most 10"):
        own = summary[summary.family == family].sort_values("length")
        best, told = own["best validity"], "area under the Val–Div curve "
        told += listed(own.length, own.area, "n = {}: {:.3f}") + "; best validity "
        told += listed(own.length, best, "n = {}: {:.2f}")
        done = len(own) > 1 and best.max() >= TESTABLE
        rows.append((_LONGER.format(family), _LEFT, told, True, -np.diff(own.area) if done else ()))

    areas = summary.pivot_table(index="length", columns="family", values="area")
    gap = (areas["unconstrained"] - areas["sum at most 10"]).dropna()
    done = summary["best validity"][summary.family == "unconstrained"].max() >= TESTABLE
    told = "area lost to the constraint " + listed(gap.index, gap, "n = {}: {:+.3f}")
    rows.append((_CONSTRAINED, _LEFT, told, True, gap if done else ()))

    told, steps = [], []
    for task, curve in curves.sort_values("temperature", kind="stable").groupby("task", sort=False):
        falls, rises = -curve.validity.diff().max(), curve.diversity.diff().min()
        steps += [falls, rises]
        peak = curve.temperature[curve.validity.idxmax()]
        monotone = "" if rises >= -AGREEMENT else ", Div not monotone"
        told.append(f"{task} peaks at T = {peak:g}{monotone}")
    rows.append((_TRADES, "Sec. 5, Fig. 5", "validity: " + "; ".join(told), some, or_equal(steps)))

    best = np.minimum(curves.validity, curves.diversity).groupby(curves.task, sort=False).max()
    told = "best of min(Val, Div) " + listed(best.index, best, "{}: {:.2f}")
    rows.append((_NONE_HAS_BOTH, _LEFT, told, some, 0.9 - best))

    shares, told = [], []
    for task, own in answers[answers.temperature == 1].groupby("task", sort=False):
        p = np.sort(np.exp(own.log_p.to_numpy()))[::-1]
        most = int((p.cumsum() < 0.5 * p.sum()).sum()) + 1
        shares.append(most / len(p))
        told.append(f"{task}: {most} of {len(p):,} ({shares[-1]:.0%})")
    rows.append((_FEW, _RIGHT, _HALF + ", ".join(told), some, 0.25 - np.array(shares)))

    hot = curves[curves.temperature == curves.temperature.max()]
    told = f"invalid mass at T = {hot.temperature.max():g} "
    told += listed(hot.task, 1 - hot.validity, "{}: {:.4f}")
    rows.append((_TAIL, _RIGHT, told, some, 0.1 - hot.validity))
    return decide_all(rows)

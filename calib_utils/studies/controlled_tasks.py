"""The controlled tasks of Sec. 5 and App. C: what to measure, and the paper's claims beside it.

Knows the study's grids, how answers end, and how a claim is decided from a table. Draws nothing.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from calib_utils.core.metrics import frontier_area
from calib_utils.results.evaluation import answer_probabilities, evaluate, share_interval
from calib_utils.studies import reporting
from calib_utils.studies.reporting import Page, able, listed, mean_text, on_tasks, over, voted

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
# Two of the paper's temperatures, on either side of 1.
_COOL, _HOT = 0.5, 1.6
_HAS_BOTH, _FEW, _TAIL = 0.9, 0.25, 0.1  # where claims are decided


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
    return label_tasks(_curves(page, tasks, profile_temperatures))


def _curves(page: Page, tasks: Iterable[str], at: Callable[[str], tuple]) -> pd.DataFrame:
    """Rows of `evaluate` over `CURVE_TEMPERATURES`; ln p is kept at what `at` says of a task."""
    asked = page.asked | {"temperatures": CURVE_TEMPERATURES}
    return over(tasks, lambda t: evaluate(page.model, t, answer_temperatures=at(t), **asked))


def answer_profiles(page: Page, tasks: list[str]) -> pd.DataFrame:
    """Rows of `answer_probabilities` at `profile_temperatures`, with a `task` column."""
    at, asked = profile_temperatures, page.asked
    return over(tasks, lambda t: answer_probabilities(page.model, t, at(t), **asked))


def list_curves(page: Page, names: Iterable[str] = LISTS) -> pd.DataFrame:
    """Rows of `evaluate` over `CURVE_TEMPERATURES` for closed lists; ln p at T = 1 is kept."""
    return _curves(page, names, lambda name: (1.0,))


def list_table(page: Page, curves: pd.DataFrame) -> pd.DataFrame:
    """`decisive` of `list_curves`."""
    lists, asked = curves.task.unique(), page.asked
    at_one = over(lists, lambda name: answer_probabilities(page.model, name, [1.0], **asked))
    return decisive(curves, at_one)


def decisive(curves: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """What the claims of this chapter rest on: a row per task of `curves`, columns by name.

    Validity lost and diversity won are those of heating from T = .5 to 1.6; `best of both` is the
    largest min(Val, Div), `half the mass` the share of the answers that hold half the valid mass.
    """
    at = curves.pivot(index="task", columns="temperature", values=["validity", "diversity"])
    log_p = answers[answers.temperature == 1].groupby("task").log_p
    numbers = {
        "answers": log_p.size(),
        "best validity": at.validity.max(axis=1),
        "validity": at.validity[1.0],
        "diversity": at.diversity[1.0],
        "validity lost": at.validity[_COOL] - at.validity[_HOT],
        "diversity won": at.diversity[_HOT] - at.diversity[_COOL],
        "best of both": _best_of_both(curves),
        "half the mass": log_p.agg(_half),
    }
    return pd.DataFrame(numbers, curves.task.unique()).rename_axis("task").reset_index()


def _best_of_both(curves: pd.DataFrame) -> pd.Series:
    """The largest min(Val, Div) of each task over its temperatures."""
    return curves[["validity", "diversity"]].min(axis=1).groupby(curves.task, sort=False).max()


def over_lists(table: pd.DataFrame) -> pd.DataFrame:
    """How the claims of this chapter hold over the lists that the model can do.

    A row per claim: on how many lists it holds, and the mean of what decides it, with an interval
    over lists. No row for a model that can do none of them.
    """
    done, _ = able(table, "best validity")
    own = table[table.task.isin(done)]
    heating = f"raising T from {_COOL:g} to {_HOT:g}"
    both = f"no temperature brings validity and diversity to {_HAS_BOTH:g}"
    few = f"less than {_FEW:.0%} of the answers have half of the valid mass"
    claims = (
        (f"{heating} lowers validity", "validity lost", own["validity lost"] > 0),
        (f"{heating} raises diversity", "diversity won", own["diversity won"] > 0),
        (both, "best of both", own["best of both"] < _HAS_BOTH),
        (few, "half the mass", own["half the mass"] < _FEW),
    )
    rows = [
        (claim, f"{int(holds.sum())} of {len(own)}", column, mean_text(own, column, "task"))
        for claim, column, holds in claims
        if done
    ]
    return pd.DataFrame(rows, columns=["claim", "holds on", "decided by", "mean over lists"])


def _half(log_p: pd.Series) -> float:
    """The share of the answers, most probable first, that hold half of the valid mass."""
    p = np.sort(np.exp(log_p.to_numpy()))[::-1]
    return (int((p.cumsum() < 0.5 * p.sum()).sum()) + 1) / len(p)


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


def key_numbers(curves: pd.DataFrame, summary: pd.DataFrame) -> dict[str, float | str]:
    """What the book's prose quotes.

    Of each task validity and diversity at T = 1, and the area; of the states both numbers when cool
    and when hot, and how many equally likely states would be as diverse at T = 1; and on how many
    tasks some temperature gives both.
    """
    at_one = summary[["task", "area"]].merge(curves[curves.temperature == 1.0], on="task")
    numbers = at_one.set_index("task")[["validity", "diversity", "area"]].stack()
    told = {f"{name}_{task}": value for (task, name), value in numbers.items()}
    states = curves[curves.task == "us-states"].set_index("temperature")
    for word, temperature in (("cool", _COOL), ("hot", _HOT)):
        told |= states.loc[temperature, ["validity", "diversity"]].add_prefix(f"{word}_").to_dict()
    told["states_alike"] = f"{states.diversity[1.0] * states.n_answers[1.0]:.0f}"
    done, _ = able(curves)
    both = (_best_of_both(curves)[done] >= _HAS_BOTH).sum()
    return told | {"reached_both": on_tasks(both, len(done))}


def findings(curves: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about temperature on controlled tasks, decided on one model's tables.

    Of `temperature_curves` of several tasks, and of `answer_profiles`. The numbers are exact for
    the model file, so they carry no interval; every task the model can do has one vote.
    """
    summary = curve_summary(curves).set_index("task")
    done, failed = able(curves)
    area, rows = summary.area.where(summary.index.isin(done)), []
    areas = summary.assign(area=area).pivot_table(
        index="family", columns="length", values="area", dropna=False
    )
    for family in ("unconstrained", "sum at most 10"):
        own, out = areas.loc[family].dropna(), [t for t in failed if summary.family[t] == family]
        apart = -pd.Series(own.to_numpy(), own.index).diff().iloc[1:]
        told = "area under the Val–Div curve " + listed(own.index, own, "n = {}: {:.3f}")
        claim = f"Longer answers have a worse validity–diversity curve, by its area ({family})"
        rows.append(voted(claim, _LEFT, told, apart, out, of="comparison"))
    gap = (areas.loc["unconstrained"] - areas.loc["sum at most 10"]).dropna()
    told = "area lost to the constraint " + listed(gap.index, gap, "n = {}: {:+.3f}")
    out = [t for t in failed if summary.family[t] in ("unconstrained", "sum at most 10")]
    claim = "A sum constraint makes the curve worse at the same length"
    rows.append(voted(claim, _LEFT, told, gap, out, of="length"))

    own = decisive(curves, answers).set_index("task").loc[done]
    moved = own[["validity lost", "diversity won"]]
    told = "change of validity and diversity " + ", ".join(
        f"{task}: {-lost:+.2f}, {won:+.2f}" for task, lost, won in moved.itertuples()
    )
    claim = f"Raising T from {_COOL:g} to {_HOT:g} lowers validity and raises diversity"
    rows.append(voted(claim, "Sec. 5, Fig. 5", told, moved.min(axis=1), failed))

    best = own["best of both"]
    told = f"best of min(Val, Div), decided at {_HAS_BOTH:g}: " + listed(done, best, "{}: {:.2f}")
    claim = "No temperature brings both validity and diversity near 1"
    rows.append(voted(claim, _LEFT, told, _HAS_BOTH - best, failed))

    held = own[["answers", "half the mass"]].dropna().sort_index()
    told = "answers that have half of the valid mass (decided at a quarter of all answers) "
    told += ", ".join(
        f"{task}: {n * share:.0f} of {n:,.0f} ({share:.0%})" for task, n, share in held.itertuples()
    )
    claim = "At T = 1 a few valid answers have most of the valid mass"
    rows.append(voted(claim, _RIGHT, told, _FEW - held["half the mass"], failed))

    hot = curves[curves.temperature == curves.temperature.max()].set_index("task")
    invalid = 1 - hot.validity[done]
    told = f"invalid mass at T = {hot.temperature.max():g} " + listed(done, invalid, "{}: {:.4f}")
    claim = "At high temperature the invalid tail has nearly all mass"
    rows.append(voted(claim, _RIGHT, told, invalid - (1 - _TAIL), failed))
    return reporting.table_of(rows)

"""Logit shape (App. I, Fig. 13 to 15): the six queries, their sorted logits, the fits, the claims.

Knows the paper's queries and its 18 published fits, and how a claim is decided from tables. The
curves' families and the criterion are those of `theory.curves`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from calib_utils import paths
from calib_utils.core.tasks import Task
from calib_utils.models.loading import Model, load_model
from calib_utils.models.scoring import logits_after
from calib_utils.results import records
from calib_utils.results.evaluation import render_prompt
from calib_utils.studies import reporting
from calib_utils.studies.reporting import NOT_DECIDED, OURS, VERDICTS, Finding, voted
from calib_utils.theory import curves as forms
from calib_utils.theory.curves import FAMILIES, REFERENCE, Fit, two_part

N_RANKS = 2000  # as far as the paper shows
STUDY = "logit-shape"  # the name of its kept logits
NAMES = {
    "exponential": "exponential",
    "power_law": "power law",
    "shifted_power_law": "shifted power law",
    "two_part_continuous": "two parts, continuous",
    "two_part_log_head": "two parts, log head",
    "two_part": "two parts, as published",
}
SOURCE = "App. I, Fig. 13–15"
BREAKS = "The breakpoint lies where the paper's do"
_BETTER = "The two-part form predicts held-out ranks better than"
# What is claimed against each rival, and its name in a sentence.
_RIVALS = {
    "exponential": (f"{_BETTER} an exponential (logits linear in the rank)", "an exponential"),
    "power_law": (f"{_BETTER} a power law", "a power law"),
    "shifted_power_law": (
        f"{_BETTER} one power law with shifted ranks",
        "a power law with shifted ranks",
    ),
    "two_part_continuous": (
        f"{_BETTER} the same form without its jump",
        "the same form without its jump",
    ),
    "two_part_log_head": (
        "The head is a line rather than a logarithm",
        "the same form with a logarithm as its head",
    ),
}
_STANDS = dict(
    zip(VERDICTS, ("better than ", "worse than ", "neither better nor worse than "), strict=True)
)
_TOP = "The fit gives the top token's odds to within a factor of 2"
_ANY_ANSWER = "1"  # where the model is asked before any answer, which one does not matter
_PARAMETERS = ("mse", "r2", "m", "b", "A", "B", "C", "jump")
_NEAR = 1.1  # squared error over the least: fits about as well


@dataclass(frozen=True)
class Query:
    """A prompt and the beginning of a reply after which the next token's logits are read."""

    label: str
    text: str
    prefix: str = ""


QUERIES = (
    Query("3+6", "What is 3+6?"),
    Query("city", "Name a random city in the world."),
    Query("story", "Write a creative story.", "In a world where"),
    Query("1 to 10", "Generate a random integer in the range 1 to 10."),
    Query("1 to 20", "Generate a random integer in the range 1 to 20."),
    Query("three of 20", "Generate 3 random integers in the range 1 to 20.", "1,"),
)
QUICK_QUERIES = QUERIES[:2]


def query_task(query: Query) -> Task:
    """The query as a task, so that it reaches the model as every other prompt of the book does."""
    name = "logit-shape-" + query.label.replace(" ", "-").replace("+", "-plus-")
    return Task(name, query.text, [query.prefix or _ANY_ANSWER])


def sorted_logits(model: Model | str, query: Query, n_ranks: int = N_RANKS) -> np.ndarray:
    """The highest logits of the next token, descending, float64, all if fewer. [rank]"""
    model = load_model(model)
    prompt = render_prompt(model, query_task(query))
    path = list(prompt.sequences.symbols[0]) if query.prefix else []
    return np.sort(logits_after(model, prompt, path))[::-1][:n_ranks].copy()


def logit_curves(model: Model | str, queries: tuple[Query, ...] = QUERIES) -> pd.DataFrame:
    """Sorted logits, a column per query, indexed by rank from 1."""
    table = pd.DataFrame({query.label: sorted_logits(model, query) for query in queries})
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="rank"))


def fits_of(curves: pd.DataFrame) -> dict[str, Fit]:
    """The paper's form fitted to every query."""
    return {query: two_part(y.to_numpy()) for query, y in curves.items()}


def keep(curves: pd.DataFrame, model: Model, results_dir: str | Path) -> None:
    """Keeps a model's sorted logits for the page about all models (`records.keep_logits`)."""
    records.keep_logits(curves, model, records.logits_path(results_dir, model.key, STUDY))


def fit_table(curves: pd.DataFrame) -> pd.DataFrame:
    """The fits, a row per query; `jump`: head less tail at the tail's first rank.

    `top_miss`: the top token's logit less the fit's; the paper judges fits by R², which is near 1
    whatever the few first of 2,000 ranks do.

    `c_low`, `c_high`: the lowest and highest breakpoint whose best fit has at most `_NEAR` times
    the least squared error. No confidence set: errors differ too much along the curve.
    """
    rows = []
    for query, fit in fits_of(curves).items():
        near = np.flatnonzero(fit.profile <= fit.profile.min() * _NEAR)
        row = {"query": query, "c": fit.c, "c_low": near.min(), "c_high": near.max()}
        row["top_miss"] = float(curves[query].iloc[0] - fit.predict(np.array([1]))[0])
        rows.append(row | {name: getattr(fit, name) for name in _PARAMETERS})
    return pd.DataFrame(rows)


def bfloat16_table(curves: pd.DataFrame) -> pd.DataFrame:
    """What rounding the logits to bfloat16 does to the fit: different values left, c, mse, r2.

    Only the logits are rounded, not the arithmetic before them, so this is the least it does.
    """
    rounded = curves.apply(to_bfloat16)
    fits = fit_table(rounded)[["query", "c", "mse", "r2"]]
    fits.insert(1, "values", rounded.nunique().to_numpy())
    return fits


def to_bfloat16(values) -> np.ndarray:
    """The nearest bfloat16 numbers (ties to even), as float64.

    >>> to_bfloat16([20.07, 20.05]).tolist()
    [20.125, 20.0]
    """
    return torch.tensor(np.asarray(values)).float().bfloat16().double().numpy()


def held_out_table(curves: pd.DataFrame) -> pd.DataFrame:
    """`curves.held_out_errors` of every query, with a column `query`."""
    parts = {query: forms.held_out_errors(y.to_numpy()) for query, y in curves.items()}
    return reporting.stacked(parts, ["query"])


def comparison(curves: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """`curves.compare` of every query, with a column `query`; `held_out` of the same curves."""
    errors = dict(list(held_out.groupby("query")))
    parts = {query: forms.compare(y.to_numpy(), errors[query]) for query, y in curves.items()}
    return reporting.stacked(parts, ["query"])


def pooled_ratios(held_out: pd.DataFrame) -> pd.DataFrame:
    """Held-out error over the published form's, all queries together: family, ratio, low, high.

    Means over queries within each block; the interval is over blocks, since the curves are alike.
    """
    means = held_out.groupby(["family", "block"], sort=False).log_ratio.mean()
    rows = [(name, *np.exp(forms.mean_interval(means[name]))) for name in FAMILIES]
    return pd.DataFrame(rows, columns=["family", "ratio", "low", "high"])


def ratio_table(compared: pd.DataFrame, pooled: pd.DataFrame) -> pd.DataFrame:
    """Held-out ratios as text: a row per query, a column per rival, last the queries pooled."""
    wide = compared.pivot(index="query", columns="family", values="ratio")
    rows = pooled.set_index("family")[["ratio", "low", "high"]].T
    rows.index = ["all queries", "interval from", "to"]
    rivals = [family for family in FAMILIES if family != REFERENCE]
    table = pd.concat([wide.loc[compared["query"].unique()], rows])[rivals].map(_two_digits)
    table = table.rename(columns=NAMES).rename_axis(index="query", columns=None)
    return table.reset_index()


def bic_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Per query the family that either BIC puts first, by how much, and the effective n."""
    rows = []
    for query, own in compared.groupby("query", sort=False):
        row = {"query": query}
        for column, name in (("bic_naive", "all ranks"), ("bic_effective", "effective n")):
            first, second = own.nsmallest(2, column).itertuples()
            row[f"BIC, {name}"] = NAMES[first.family]
            row[f"lead, {name}"] = _two_digits(getattr(second, column))
        rows.append({**row, "effective n": _two_digits(own.effective_n.iloc[0])})
    return pd.DataFrame(rows)


def published_fits() -> pd.DataFrame:
    """The paper's 18 fits: model, query, prefix, mse, r2, c, source, and our label of the query."""
    table = pd.read_csv(paths.package_data("published", "logit_shape.csv"), na_filter=False)
    labels = {(query.text, query.prefix): query.label for query in QUERIES}
    asked = zip(table["query"], table["prefix"], strict=True)
    return table.assign(label=[labels[pair] for pair in asked])


def beside_published(fits: pd.DataFrame, model: str) -> pd.DataFrame:
    """Our fits below the paper's: model, query (label), mse, r2, c, whose."""
    columns = ["model", "query", "mse", "r2", "c", "whose"]
    theirs = published_fits().drop(columns="query").rename(columns={"label": "query"})
    theirs = theirs[theirs["query"].isin(fits["query"])].assign(whose="published")
    return pd.concat([theirs, fits.assign(model=model, whose="here")], ignore_index=True)[columns]


def findings(fits: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """The paper's description of sorted logits, decided on `fit_table` and `held_out_table`.

    Each query has a vote; a comparison of forms is decided by its interval over 12 blocks.
    """
    theirs, ratios = published_fits(), pooled_ratios(held_out).set_index("family")
    by_query = fits.set_index("query")
    breaks = reporting.listed(by_query.index, by_query.c, "{1} ({0})")
    breaks = f"c = {breaks}; published {theirs.c.min()} to {theirs.c.max()}, which decides"
    missed = reporting.listed(by_query.index, by_query.top_miss, "{1:+.1f} ({0})")
    missed = f"its logit minus the fit's {missed}; R² {fits.r2.min():.3f} at least"
    accurate = np.log(2) - by_query.top_miss.abs()
    rows = [
        voted(BREAKS, SOURCE, breaks, breaks_inside(by_query.c), of="query"),
        voted(_TOP, "App. I", missed, accurate, kind=OURS, of="query"),
    ]
    for rival, (claim, name) in _RIVALS.items():
        said = _against(ratios.loc[rival])
        ratio, low, high = map(_two_digits, ratios.loc[rival, ["ratio", "low", "high"]])
        found = f"the published form predicts {_STANDS[said]}{name}, whose squared "
        found += f"error on held-out ranks is {ratio} times as large ({low} to {high})"
        # Any two points lie on a line.
        if rival == "two_part_log_head" and (fits.c <= 2).all():
            said, found = NOT_DECIDED, "every head has two ranks"
        rows.append(Finding(claim, "App. I", found, said, OURS))
    return reporting.table_of(rows)


def breaks_inside(c: pd.Series) -> pd.Series:
    """1 where a breakpoint is among the published ones, else -1."""
    theirs = published_fits().c
    return c.between(theirs.min(), theirs.max()) * 2.0 - 1


def key_numbers(fits: pd.DataFrame, pooled: pd.DataFrame) -> dict[str, str]:
    """What the prose quotes: ranges of R² and c, the worst miss of the top token, and how the
    published form stands against its rivals on held-out ranks."""
    worst = fits.loc[fits.top_miss.abs().idxmax()]
    told = {"lowest_r2": f"{fits.r2.min():.3f}", "top_miss": f"{abs(worst.top_miss):.1f}"}
    told |= {"top_miss_r2": f"{worst.r2:.3f}", "top_miss_query": worst["query"]}
    told |= {"lowest_c": str(fits.c.min()), "highest_c": str(fits.c.max())}
    ratios, stands = pooled.set_index("family"), {word: [] for word in _STANDS}
    for rival, (_, name) in _RIVALS.items():
        stands[_against(ratios.loc[rival])].append(name)
    words = (_STANDS[verdict] + _and(names) for verdict, names in stands.items() if names)
    return told | {"held_out": ", and ".join(words)}


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _against(ratio: pd.Series) -> str:
    """The verdict on "the published form predicts better" from a rival's pooled ratio."""
    low, high = np.log([ratio.low, ratio.high])
    return reporting.decided(low, high, 0.0, reporting.RATIO_AGREEMENT)


def _two_digits(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{float(f'{value:.2g}'):g}"

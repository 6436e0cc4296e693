"""Figures of the logit-shape chapter: tables in, figures out, in the style of `figures`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from calib_utils.figures import GREY, INK, legend_below, name_lines, panels, shades
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.models.registry import human_name
from calib_utils.studies.logit_shape import NAMES, QUERIES
from calib_utils.theory.curves import REFERENCE, Fit

_COLOURS = dict(zip([query.label for query in QUERIES], shades(len(QUERIES)), strict=True))
_MARKERS = dict(zip(_COLOURS, "osD^vP", strict=True))
_PARTS = {"head: m k + b": INK, "tail: A + B log(k + C)": shades(1)[0]}
_DOTS = 40  # of a curve, evenly spread on its axis
_RANKS = (1, 10, 100, 1000)


def fit_grid(curves: pd.DataFrame, fits: dict[str, Fit]) -> Figure:
    """Each query's sorted logits with head, tail and breakpoint, named in the first panel.

    Dotted: either part carried on beyond the breakpoint c. Ranks on a logarithmic axis, where the
    head is seen; the paper's is linear (Fig. 13 to 15).
    """
    n = len(curves)
    figure, axes = panels(curves.shape[1], 2, 2.3, "rank", "logit")
    shown = np.unique(np.geomspace(1, n, _DOTS).round().astype(int))
    for ax, (query, curve) in zip(axes, curves.items(), strict=True):
        fit, rank = fits[query], np.unique([*shown, *range(1, fits[query].c + 2)])
        ax.plot(rank, curve[rank], "o", markersize=2.5, color=GREY, zorder=3)
        head = fit.m * rank + fit.b
        tail = fit.A + fit.B * np.log(np.where(rank + fit.C > 0, rank + fit.C, np.nan))
        parts = (head, rank <= fit.c), (tail, rank > fit.c)
        for (name, colour), (line, own) in zip(_PARTS.items(), parts, strict=True):
            ax.plot(rank, line, ":", color=colour, linewidth=1.2)
            ax.plot(rank[own], line[own], color=colour, linewidth=2.6, label=name)
        ax.axvline(fit.c + 0.5, color=GREY, linewidth=0.8, label="breakpoint c")
        _log_axis(ax, "x", [tick for tick in _RANKS if tick <= n])
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_title(f"{query}: c = {fit.c}, R² = {fit.r2:.3f}", fontsize=11)
        ax.set_label(f"{query}\nc = {fit.c}, R² {fit.r2:.3f}")
    low, high = curves.min().min(), curves.max().max()
    axes[0].set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    name_lines(axes[0])
    own = [fits[query] for query in curves]
    told = ", ".join(str(fit.c) for fit in own)
    figure.says = (
        "A line and then a logarithm fit with an R² of "
        f"{min(fit.r2 for fit in own):.3f} or more; they meet at rank {told}."
    )
    return figure


def residuals(curves: pd.DataFrame, fits: dict[str, Fit]) -> Axes:
    """Logits less the fit against log-rank, a line per query: what neighbours have in common."""
    ax = plt.gca()
    for query, curve in curves.items():
        missed = curve - fits[query].predict(curve.index)
        ax.plot(curve.index, missed, color=_COLOURS.get(query), label=query, linewidth=1.5)
    ax.axhline(0, color=INK, linewidth=0.8)
    worst = max(abs(curve - fits[q].predict(curve.index)).max() for q, curve in curves.items())
    ax.figure.says = f"The fit misses single logits by up to {worst:.1f}."
    _log_axis(ax, "x", _RANKS)
    ax.set(xlabel="rank", ylabel="logit less fit")
    name_lines(ax)
    return ax


def published_dots(table: pd.DataFrame) -> Figure:
    """The fits of `logit_shape.beside_published`, a row per model; ours filled, theirs open."""
    measures = (
        ("r2", "R²", ()),
        ("mse", "MSE", (0.001, 0.01, 0.1, 1)),
        ("c", "breakpoint c", (2, 5, 10, 20, 50, 100)),
    )
    table = table[table["query"].isin(_MARKERS)]  # one's own question has no published fit
    models = list(dict.fromkeys(table.model))
    published = table[table.whose != "here"].model.nunique()
    figure, axes = plt.subplots(1, 3, figsize=(6.8, 1.4 + 0.34 * len(models)), sharey=True)
    for ax, (column, title, ticks) in zip(axes, measures, strict=True):
        # A line between published rows and ours, so that they are not taken for one sample.
        for (query, whose), own in table.groupby(["query", "whose"], sort=False):
            spread, ours = (list(_MARKERS).index(query) - 2.5) * 0.11, whose == "here"
            places = [models.index(m) + spread for m in own.model]
            style = {"marker": _MARKERS[query], "s": 34, "linewidth": 1.3}
            style |= {"edgecolor": _COLOURS[query], "label": query if ours else None}
            ax.scatter(own[column], places, facecolor=_COLOURS[query] if ours else "none", **style)
        ax.axhline(published - 0.5, color=INK, linewidth=0.8)
        ax.set_yticks(range(len(models)), [human_name(m) for m in models], fontsize=9)
        ax.set_ylim(-0.6, len(models) - 0.4)
        ax.grid(False, axis="y")
        if ticks:
            low, high = table[column].min(), table[column].max()
            _log_axis(ax, "x", [t for t in ticks if low / 2 <= t <= high * 2])
        ax.set_xlabel(title, labelpad=2)
        ax.tick_params(axis="x", labelsize=9)
    legend_below(figure)
    r2 = table.groupby("whose").r2.min()
    told = (f"{value:.3f} or more {whose}" for whose, value in r2.items())
    figure.says = f"R² is {', and '.join(told)}."
    return figure


def held_out_ratios(queries: pd.DataFrame, pooled: pd.DataFrame) -> Axes:
    """Held-out error over the published form's, a row per family: dots are queries, bars pooled."""
    ax = plt.gca()
    rows = [family for family in pooled.family if family != REFERENCE]
    for place, family in enumerate(rows):
        own = queries[queries.family == family]
        for query, ratio in zip(own["query"], own.ratio, strict=True):
            style = {"color": _COLOURS.get(query), "marker": _MARKERS.get(query, "o"), "s": 26}
            ax.scatter(ratio, place + 0.22, label=query if place == 0 else None, **style)
        whole = pooled[pooled.family == family].iloc[0]
        ax.plot([whole.low, whole.high], [place - 0.12] * 2, color=INK, linewidth=2)
        ax.plot(whole.ratio, place - 0.12, "o", color=INK, markersize=6)
    ax.axvline(1, color=INK, linestyle=":", linewidth=1.2)
    low, high = queries.ratio.min(), queries.ratio.max()
    _log_axis(ax, "x", [10.0**n for n in range(-3, 6) if low / 2 <= 10.0**n <= high * 2])
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(rows)), [NAMES[family].replace(", ", ",\n") for family in rows])
    ax.invert_yaxis()
    ax.set_xlabel("held-out error / that of the published form")
    legend_below(ax.figure)
    own = pooled[pooled.family.isin(rows)]
    ax.figure.says = (
        f"{int((own.high < 1).sum())} of {len(rows)} rival forms predict held-out logits better "
        f"than the published one, {int((own.low > 1).sum())} worse, by intervals over blocks."
    )
    return ax


def breakpoint_profiles(fits: dict[str, Fit]) -> Axes:
    """Least squared error at each breakpoint over the least of all, a line per query."""
    ax, near = plt.gca(), []
    for query, fit in fits.items():
        c = np.flatnonzero(np.isfinite(fit.profile))
        ratio = fit.profile[c] / fit.sse
        ax.plot(c, ratio, color=_COLOURS.get(query), label=query, linewidth=1.5)
        ax.plot(fit.c, 1, _MARKERS.get(query, "o"), color=_COLOURS.get(query), markersize=6)
        near.append(f"{query} {c[ratio < 1.1].min()} to {c[ratio < 1.1].max()}")
    _log_axis(ax, "x", (2, 5, 10, 20, 50, 100, 200, 500))
    _log_axis(ax, "y", (1, 2, 5, 10, 20))
    ax.set(xlabel="breakpoint c", ylabel="squared error / least", ylim=(0.9, 30), xlim=(1.8, 800))
    name_lines(ax)
    ax.figure.says = f"Breakpoints within a tenth of the least error: {', '.join(near)}."
    return ax


def _log_axis(ax: Axes, which: str, ticks) -> None:
    """A logarithmic axis with these ticks, written as plain numbers."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())

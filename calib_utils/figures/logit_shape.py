"""Figures of the logit-shape chapter: tables in, figures out, in the style of `figures`."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from calib_utils.figures import BLUE, PALETTE, VERMILION, legend_below, two_lines
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.logit_shape import NAMES, QUERIES
from calib_utils.theory.curves import REFERENCE, Fit

_COLOURS = dict(zip([query.label for query in QUERIES], PALETTE, strict=True))
_MARKERS = dict(zip(_COLOURS, "osD^vP", strict=True))
_BELOW = {"loc": "upper center", "ncol": 3, "frameon": False}
_RANKS = (1, 10, 100, 1000)


def fit_grid(curves: pd.DataFrame, fits: dict[str, Fit], log_rank: bool = True) -> Figure:
    """Each query's sorted logits, head, tail and breakpoint (Fig. 13 to 15), with one legend.

    Ranks on a logarithmic axis, where the head is seen, or as in the paper.
    """
    rows = math.ceil(curves.shape[1] / 2)
    figure, axes = plt.subplots(rows, 2, figsize=(6.4, 2.5 * rows + 0.7), sharex=True)
    rank, dots = curves.index.to_numpy(), {"markersize": 5, "color": "#999999", "rasterized": True}
    for ax, (query, curve) in zip(axes.flat, curves.items(), strict=False):
        fit = fits[query]
        ax.plot(rank, curve, ".", label="logits", **dots)
        for colour, name, part in (
            (VERMILION, "head: m k + b", rank[rank <= fit.c]),
            (BLUE, "tail: A + B log(k + C)", rank[rank > fit.c]),
        ):
            ax.plot(part, fit.predict(part), color=colour, label=name, linewidth=1.8)
        ax.axvline(fit.c + 0.5, color="black", linestyle=":", linewidth=1.2, label="breakpoint c")
        if log_rank:
            _log_axis(ax, "x", _RANKS)
        else:
            ax.set_xticks([0, 1000, 2000])
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_title(f"{query}   c = {fit.c}, R² = {fit.r2:.3f}", fontsize=11)
    for ax in axes.flat[curves.shape[1] :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("rank")
    for ax in axes[:, 0]:
        ax.set_ylabel("logit")
    legend_below(figure, (0, 0.55 / figure.get_figheight(), 1, 1), 2)
    return figure


def residuals(curves: pd.DataFrame, fits: dict[str, Fit]) -> Axes:
    """Logits less the fit against log-rank, a line per query: what neighbours have in common."""
    ax = plt.gca()
    for query, curve in curves.items():
        missed = curve - fits[query].predict(curve.index)
        ax.plot(curve.index, missed, color=_COLOURS.get(query), label=query, linewidth=1.5)
    ax.axhline(0, color="black", linewidth=0.8)
    _log_axis(ax, "x", _RANKS)
    ax.set(xlabel="rank", ylabel="logit less fit")
    ax.legend(bbox_to_anchor=(0.5, -0.16), **_BELOW)
    return ax


def published_dots(table: pd.DataFrame) -> Figure:
    """The fits of `logit_shape.beside_published`, a row per model; ours filled, theirs open."""
    panels = (
        ("r2", "R²", ()),
        ("mse", "MSE", (0.001, 0.01, 0.1, 1)),
        ("c", "breakpoint c", (2, 5, 10, 20, 50, 100)),
    )
    models = list(dict.fromkeys(table.model))
    published = table[table.whose != "here"].model.nunique()
    figure, axes = plt.subplots(3, 1, figsize=(6.4, 6.8 + 0.35 * len(models)))
    for ax, (column, title, ticks) in zip(axes, panels, strict=True):
        # A line between published rows and ours, so that they are not taken for one sample.
        for (query, whose), own in table.groupby(["query", "whose"], sort=False):
            spread, ours = (list(_MARKERS).index(query) - 2.5) * 0.11, whose == "here"
            places = [models.index(m) + spread for m in own.model]
            style = {"marker": _MARKERS[query], "s": 34, "linewidth": 1.3}
            style |= {"edgecolor": _COLOURS[query], "label": query if ours else None}
            ax.scatter(own[column], places, facecolor=_COLOURS[query] if ours else "none", **style)
        ax.axhline(published - 0.5, color="black", linewidth=0.8)
        ax.set_yticks(range(len(models)), [two_lines(m) for m in models], fontsize=9)
        ax.set_ylim(-0.6, len(models) - 0.4)
        ax.grid(False, axis="y")
        if ticks:
            low, high = table[column].min(), table[column].max()
            _log_axis(ax, "x", [t for t in ticks if low / 2 <= t <= high * 2])
        ax.set_xlabel(title, labelpad=2)
    legend_below(figure, (0, 0.07, 1, 1))
    return figure


def held_out_ratios(queries: pd.DataFrame, pooled: pd.DataFrame) -> Axes:
    """Held-out error over the published form's, a row per family: dots are queries, bars pooled."""
    ax = plt.gca()
    rows = [family for family in pooled.family if family != REFERENCE]
    for place, family in enumerate(rows):
        own = queries[queries.family == family]
        for query, ratio in zip(own["query"], own.ratio, strict=True):
            style = {"color": _COLOURS[query], "marker": _MARKERS[query], "s": 26}
            ax.scatter(ratio, place + 0.22, label=query if place == 0 else None, **style)
        whole = pooled[pooled.family == family].iloc[0]
        ax.plot([whole.low, whole.high], [place - 0.12] * 2, color="black", linewidth=2)
        ax.plot(whole.ratio, place - 0.12, "o", color="black", markersize=6)
    ax.axvline(1, color="black", linestyle=":", linewidth=1.2)
    low, high = queries.ratio.min(), queries.ratio.max()
    _log_axis(ax, "x", [10.0**n for n in range(-3, 6) if low / 2 <= 10.0**n <= high * 2])
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(rows)), [NAMES[family].replace(", ", ",\n") for family in rows])
    ax.invert_yaxis()
    ax.set_xlabel("held-out error / that of the published form")
    ax.legend(bbox_to_anchor=(0.35, -0.16), **_BELOW)
    return ax


def breakpoint_profiles(fits: dict[str, Fit]) -> Axes:
    """Least squared error at each breakpoint over the least of all, a line per query."""
    ax = plt.gca()
    for query, fit in fits.items():
        c = np.flatnonzero(np.isfinite(fit.profile))
        ratio = fit.profile[c] / fit.sse
        ax.plot(c, ratio, color=_COLOURS.get(query), label=query, linewidth=1.5)
        ax.plot(fit.c, 1, _MARKERS.get(query, "o"), color=_COLOURS.get(query), markersize=6)
    _log_axis(ax, "x", (2, 5, 10, 20, 50, 100, 200, 500))
    _log_axis(ax, "y", (1, 2, 5, 10, 20))
    ax.set(xlabel="breakpoint c", ylabel="squared error / least", ylim=(0.9, 30), xlim=(1.8, 800))
    ax.legend(bbox_to_anchor=(0.5, -0.16), **_BELOW)
    return ax


def _log_axis(ax: Axes, which: str, ticks) -> None:
    """A logarithmic axis with these ticks, written as plain numbers."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())

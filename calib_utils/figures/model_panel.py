"""Figures of all models together: a table in, a figure out."""

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_utils.figures import STRONG_FIRST, TICKS, legend_below, two_lines
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.figures.logit_shape import published_dots as published_dots
from calib_utils.figures.oracle_cutoffs import frontiers, split_bars
from calib_utils.studies.order_calibration import JUDGES, TEXTS

_MARKERS = {"post-trained": "o", "base": "s"}
_ROWS = {"area": "area", "recall_at": "recall at precision .8"}
_SHORT = {"us-states": "states", "rng-3-sum-at-most-10": "rng-3, sum ≤ 10"}


def against_size(order: pd.DataFrame, pairs: list, published: pd.DataFrame) -> Figure:
    """Area and recall at precision .8 against the number of parameters (Fig. 4, 8).

    Bars are 95 % intervals; a short black line marks what a random order has; a line joins a pair.
    Open: from the authors' published points, with another judge and other ranks.
    """
    figure, axes = plt.subplots(2, 3, figsize=(6.8, 5.4), sharex=True, sharey=True)
    families = list(dict.fromkeys(order.family))
    colours = dict(zip(families, cycle(STRONG_FIRST)))
    for column, kind in enumerate(JUDGES):
        own = order[order.kind == kind].set_index("model")
        for row, (measure, title) in enumerate(_ROWS.items()):
            ax = axes[row, column]
            for first, second in pairs:
                if {first, second} <= set(own.index):
                    ends = own.loc[[first, second]]
                    ax.plot(ends.parameters, ends[measure], color="#999999", linewidth=1, zorder=1)
            for one in own.itertuples():
                value = getattr(one, measure)
                low, high = (getattr(one, f"{measure}_{end}") for end in ("low", "high"))
                bar = [[max(value - low, 0)], [max(high - value, 0)]]
                style = {"marker": _MARKERS.get(one.stage, "D"), "color": colours[one.family]}
                style |= {"markersize": 8, "capsize": 3, "linewidth": 1.4}
                ax.errorbar(one.parameters, value, yerr=bar, **style)
            tick = {"linestyle": "none", "marker": "_"}
            if measure == "area":
                ax.plot(own.parameters, own.random_area, color="black", markersize=16, **tick)
            if kind == TEXTS:
                ax.plot(published.parameters, published[measure], "D", mfc="none", color="#555555")
                if measure == "area":
                    style = {"color": "#999999", "markersize": 10} | tick
                    ax.plot(published.parameters, published.random_area, **style)
            ax.set(xscale="log", ylim=(-0.04, 1.04), yticks=TICKS)
            if column == 0:
                ax.set_ylabel(title)
            if row == 0:
                ax.set_title(f"{kind}\n({JUDGES[kind]})", fontsize=10)
            else:
                ax.set_xlabel("parameters, billions")
    biggest = max(order.parameters.max(), published.parameters.max())
    ticks = [t * 1e9 for t in (0.1, 0.3, 1, 3, 10, 30, 100) if t * 1e9 < 3 * biggest]
    axes[0, 0].set_xticks(ticks, [f"{t / 1e9:g}" for t in ticks])
    axes[0, 0].minorticks_off()

    def key(label, marker, colour, **more):
        return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **more)

    handles = [key(name or "unknown", "o", colour) for name, colour in colours.items()]
    stages = [stage for stage in _MARKERS if stage in set(order.stage)]
    handles += [key(stage, _MARKERS[stage], "black") for stage in stages]
    handles.append(key("published points", "D", "#555555", mfc="none"))
    handles.append(key("random order", "_", "black", markersize=12))
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncol=4, frameon=False)
    return figure


def frontier_panels(table: pd.DataFrame, models: list[str], tasks: list[str]) -> Figure:
    """Diversity against validity of settings, a row per model, a column per task (Fig. 9)."""
    shape, height = (len(models), len(tasks)), 1.0 + 1.9 * len(models)
    options = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(*shape, figsize=(6.8, height), **options)
    for row, model in enumerate(models):
        for column, task in enumerate(tasks):
            ax = axes[row, column]
            own = table[(table.model == model) & (table.task == task)]
            if len(own):
                frontiers(own, None, ax)
            ax.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            ax.label_outer()
            if row == 0:
                ax.set_title(_SHORT.get(task, task), fontsize=10)
            if column == 0:
                ax.set_ylabel(two_lines(model), fontsize=9)
    figure.supylabel("diversity", fontsize=11, x=0.01)
    legend_below(figure, (0.01, 0.5 / height, 1, 1))
    return figure


def split_of_models(points: pd.DataFrame) -> Figure:
    """Order, shape and size parts of one decoder's loss, a bar per task and model."""
    return split_bars(points.assign(decoder=points.model).sort_values(["task", "model"])).figure

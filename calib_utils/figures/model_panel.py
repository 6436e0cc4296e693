"""Figures of all models together: a table in, a figure out."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_utils import figures
from calib_utils.figures import GREY, INK, TICKS, legend_below, name_lines, panels, shades
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.figures.logit_shape import published_dots as published_dots
from calib_utils.figures.oracle_cutoffs import better_oracles, frontiers, split_bars
from calib_utils.models.registry import human_name
from calib_utils.studies.order_calibration import JUDGES, LISTS, TEXTS
from calib_utils.studies.reporting import TESTABLE

_MARKERS = {"post-trained": "o", "base": "s"}
_ROWS = {"area": "area", "recall_at": "recall at precision .8"}


def against_size(order: pd.DataFrame, pairs: list, published: pd.DataFrame) -> Figure:
    """Area and recall at precision .8 against the number of parameters (Fig. 4, 8).

    Bars are 95 % intervals; a short black line marks what a random order has; a line joins a pair.
    Open: from the authors' published points, with another judge and other ranks.
    """
    figure, axes = panels(6, 3, 2.4, "parameters, billions")
    families = list(dict.fromkeys(order.family))
    colours = dict(zip(families, shades(len(families)), strict=True))
    for column, kind in enumerate(JUDGES):
        own = order[order.kind == kind].set_index("model")
        for row, (measure, title) in enumerate(_ROWS.items()):
            ax = axes[3 * row + column]
            for first, second in pairs:
                if {first, second} <= set(own.index):
                    ends = own.loc[[first, second]]
                    ax.plot(ends.parameters, ends[measure], color=GREY, linewidth=1, zorder=1)
            for one in own.itertuples():
                value = getattr(one, measure)
                low, high = (getattr(one, f"{measure}_{end}") for end in ("low", "high"))
                bar = [[max(value - low, 0)], [max(high - value, 0)]]
                style = {"marker": _MARKERS.get(one.stage, "D"), "color": colours[one.family]}
                style |= {"markersize": 8, "capsize": 3, "linewidth": 1.4}
                ax.errorbar(one.parameters, value, yerr=bar, **style)
            tick = {"linestyle": "none", "marker": "_"}
            if measure == "area":
                ax.plot(own.parameters, own.random_area, color=INK, markersize=16, **tick)
            if kind == TEXTS:
                ax.plot(published.parameters, published[measure], "D", mfc="none", color=GREY)
                if measure == "area":
                    style = {"color": GREY, "markersize": 10} | tick
                    ax.plot(published.parameters, published.random_area, **style)
            ax.set(xscale="log", ylim=(-0.04, 1.04), yticks=TICKS)
            # A blank is a label of its own: the narrow drawing takes no other row's.
            ax.set_ylabel(title if column == 0 else " ")
            ax.set_label(f"{kind}: {title}")
            if row == 0:
                ax.set_title(f"{kind}\n({JUDGES[kind]})", fontsize=10)
    biggest = max(order.parameters.max(), published.parameters.max())
    ticks = [t * 1e9 for t in (0.1, 0.3, 1, 3, 10, 30, 100) if t * 1e9 < 3 * biggest]
    axes[0].set_xticks(ticks, [f"{t / 1e9:g}" for t in ticks])
    axes[0].minorticks_off()

    def key(label, marker, colour, **more):
        return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **more)

    handles = [key(name or "unknown", "o", colour) for name, colour in colours.items()]
    stages = [stage for stage in _MARKERS if stage in set(order.stage)]
    handles += [key(stage, _MARKERS[stage], INK) for stage in stages]
    handles.append(key("published points", "D", GREY, mfc="none"))
    handles.append(key("random order", "_", INK, markersize=12))
    legend_below(figure, 4, handles, [handle.get_label() for handle in handles])
    own = order[order.kind == LISTS].sort_values("parameters")
    found = (f"{human_name(row.model)} {row.area:.2f}" for row in own.itertuples())
    figure.says = f"Area on lists, from the smallest model to the largest: {', '.join(found)}."
    return figure


def frontier_panels(table: pd.DataFrame, models: list[str], tasks: list[str]) -> Figure:
    """Frontiers of every model and task where there is something to see, by task (Fig. 9)."""
    best = table.groupby(["model", "task"]).validity.max()
    shown = [(m, t) for t in tasks for m in models if best.get((m, t), 0) >= TESTABLE]
    figure, axes = panels(len(shown), 4, 1.8, "validity", "diversity")
    for ax, (model, task) in zip(axes, shown, strict=False):
        own = table[(table.model == model) & (table.task == task)]
        frontiers(own, None, ax)
        ax.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        ax.set_title(f"{figures.task_name(task)}\n{human_name(model)}", fontsize=9)
    name_lines(axes[0])
    drawn = pd.MultiIndex.from_frame(table[["model", "task"]]).isin(shown)
    figure.says = better_oracles(table[drawn])
    return figure


def split_of_models(points: pd.DataFrame) -> Figure:
    """Order, shape and size parts of one decoder's loss, a bar per task and model."""
    named = points.assign(decoder=points.model.map(human_name))
    return split_bars(named.sort_values(["task", "model"]), 3).figure

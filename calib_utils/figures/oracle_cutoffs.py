"""Figures of the cutoffs: frontiers, losses step by step, samplers compared (Fig. 6, 9)."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils import figures
from calib_utils.core.rules import rule_name
from calib_utils.figures import CAUSES, INK, explorer, name_lines, panels, rule_style, unit_square
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.oracle_cutoffs import ALONE, draws, frontier_points
from calib_utils.studies.reporting import Page

# What only heat moves: drawn whole, with arrows; of the others the best settings are enough.
_PATHS = ("oracle_size", "none")
_SHORT = {ALONE: "T = 1", "temperature": "best T", "any rule": "best rule"}


def first_step(page: Page, tasks: Iterable[str], task: str) -> HTML:
    """The first step of a task to play with; keeps what the explorer shows of all of them."""
    steps = explorer.keep(page.model, tasks, page.end, page.store)
    draws(page, tasks)
    return explorer.explorer(steps[task][0], page.weights)


def frontiers(table: pd.DataFrame, ceiling: float | None, ax: Axes) -> Axes:
    """Frontiers of each rule on one task, paths of rising temperature, the ceiling (Fig. 6, 9).

    The oracle size and temperature alone have a path: all their settings, an arrow where T rises.
    The ceiling is the diversity of a perfectly ordered model that is uniform over G.
    """
    for rule, own in table.groupby("rule", sort=False):
        style = rule_style(rule)
        if rule in _PATHS:
            path = own.sort_values("temperature").dropna(subset="diversity")
            ax.plot(path.validity, path.diversity, linewidth=2.2, **style)
            _arrows(ax, path[["validity", "diversity"]].to_numpy(), style["color"])
        else:
            best = frontier_points(own)
            ax.plot(best.validity, best.diversity, ".-", linewidth=1.2, markersize=5, **style)
    if ceiling is not None:
        ax.axhline(ceiling, color=INK, linestyle=":", linewidth=1.2)
        ax.scatter([1], [ceiling], marker="*", s=130, color=INK, zorder=4, clip_on=False)
    unit_square(ax)
    return ax


def _arrows(ax: Axes, path: np.ndarray, colour: str) -> None:
    """Heads along a path [point, (x, y)], a third and two thirds of its length from its start."""
    length = np.r_[0, np.hypot(*np.diff(path, axis=0).T).cumsum()]
    for share in (1 / 3, 2 / 3) if length[-1] > 0.1 else ():
        ends = [[np.interp(share * length[-1] + d, length, xy) for xy in path.T] for d in (0, 0.02)]
        arrow = {"arrowstyle": "-|>", "color": colour, "mutation_scale": 18, "linewidth": 0}
        ax.annotate("", ends[1], ends[0], arrowprops=arrow)


def frontier_grid(table: pd.DataFrame, facts: pd.DataFrame, tasks: list[str]) -> Figure:
    """`frontiers`, a panel per task, named in the first."""
    figure, axes = panels(len(tasks), 2, 2.7, "validity", "diversity")
    ceilings = facts.set_index("task").uniform_over_g
    for ax, task in zip(axes, tasks, strict=False):
        frontiers(table[table.task == task], ceilings[task], ax)
        ax.set_title(figures.task_name(task))
    name_lines(axes[0])
    figure.says = better_oracles(table[table.task.isin(tasks)].assign(model=""))
    return figure


def better_oracles(table: pd.DataFrame) -> str:
    """In words, where the oracle size has the best product of validity and diversity."""
    table = table.assign(product=table.validity * table.diversity)
    oracle, other = (
        own.groupby(["model", "task"])["product"].max()
        for own in (table[table.rule == "oracle_size"], table[table.rule != "oracle_size"])
    )
    better = (oracle > other.reindex(oracle.index)).sum()
    return (
        "The best product of validity and diversity is that of the oracle size in "
        f"{better} of {len(oracle)} panels."
    )


def adaptive(table: pd.DataFrame, hull: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Sequence precision against recall of one task's settings under the best of all cutoffs."""
    ax = ax or plt.gca()
    for rule, own in table[table.rule != "none"].groupby("rule", sort=False):
        ax.scatter(own.sequence_recall, own.sequence_precision, s=18, **rule_style(rule))
    recall = [0.0, *hull.sequence_recall]
    precision = [hull.sequence_precision.iloc[0], *hull.sequence_precision]
    ax.plot(recall, precision, "-", color=INK, linewidth=1.4, label="best adaptive cutoff")
    unit_square(ax, "sequence recall", "sequence precision")
    name_lines(ax)
    return ax


def step_losses(steps: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """-ln Div of some tasks, part by part over the steps: task, step, diversity_loss (nats)."""
    ax = ax or plt.gca()
    wide = steps.pivot_table(index="task", columns="step", values="diversity_loss", sort=False)
    wide = wide.rename(index=figures.task_name)
    wide.plot.barh(
        stacked=True, ax=ax, color=figures.shades(wide.shape[1]), width=0.7, legend=False
    )
    ax.set(xlabel="−ln diversity, nats", ylabel="")
    ax.invert_yaxis()
    figures.legend_below(ax.figure, 5, title="step")
    first = (wide.idxmax(axis=1) == wide.columns.min()).sum()
    ax.figure.says = f"The first step loses the most diversity on {first} of {len(wide)} tasks."
    return ax


def split_bars(points: pd.DataFrame, columns: int = 2) -> Axes:
    """Order, shape and size parts of the loss: a panel per task, a bar per decoder.

    A decoder that has no row for a task has no bar there.
    """
    tasks, decoders = (list(dict.fromkeys(points[name])) for name in ("task", "decoder"))
    height, label = 0.45 + 0.24 * len(decoders), "−ln(Val × Div), nats"
    figure, axes = panels(len(tasks), columns, height, label)
    for ax, task in zip(axes, tasks, strict=False):
        own = points[points.task == task]
        place = own.decoder.map(decoders.index).to_numpy()
        stacked_parts(own, place, ax)
        for y in set(range(len(decoders))) - set(place.tolist()):
            ax.text(0, y, " not valid enough", va="center", fontsize=9, color=figures.GREY)
        ax.set_title(figures.task_name(task), loc="left", fontsize=11)
        ax.grid(visible=False, axis="y")
    names = [_SHORT.get(name.split(",")[0], name.split(",")[0]) for name in decoders]
    axes[0].set_yticks(range(len(names)), names)
    for ax in axes[::columns]:
        ax.tick_params(axis="y", labelsize=10)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figures.legend_below(figure)
    largest = points[[*CAUSES]].idxmax(axis=1).value_counts()
    found = ", ".join(f"{cause} in {largest.get(cause, 0)}" for cause in CAUSES)
    figure.says = f"The largest part of the loss, of {len(points)} bars: {found}."
    return axes[0]


def stacked_parts(parts: pd.DataFrame, place, ax: Axes) -> Axes:
    """A bar for each row of `split` at its place: order, shape, size; the negative to the left."""
    left, below = np.zeros((2, len(parts)))
    for cause, (colour, hatch) in CAUSES.items():
        value = parts[cause].to_numpy(dtype=float)
        start = np.where(value >= 0, left, below)
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
        ax.barh(place, value, left=start, label=cause, height=0.75, **style)
        left, below = left + value.clip(0), below + value.clip(None, 0)
    return ax


def sampler_curves(table: pd.DataFrame, by: str, ax: Axes | None = None) -> Axes:
    """Val against Div as temperature rises, a line per value of the column `by`."""
    ax = ax or plt.gca()
    lines = ["-", "--", ":", "-."]
    groups = table.groupby(by, sort=False)
    for number, ((name, curve), colour) in enumerate(
        zip(groups, figures.shades(len(groups)), strict=True)
    ):
        curve = curve.sort_values("temperature").dropna(subset="diversity")
        style = {"marker": ".", "color": colour, "label": name}
        ax.plot(curve.validity, curve.diversity, lines[number % 4], **style)
    unit_square(ax, "validity", "diversity")
    name_lines(ax)
    product = table.validity * table.diversity.fillna(0.0)  # 0 where no answer is reached
    best = product.groupby(table[by], sort=False).max()
    found = ", ".join(f"{name} {product:.2f}" for name, product in best.items())
    ax.figure.says = f"The best product of validity and diversity: {found}."
    return ax


def budgets(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean and band of `metrics.best_by_budget`, a line per sampler."""
    ax = ax or plt.gca()
    for rule, own in table.groupby("rule", sort=False):
        style = rule_style(rule)
        ax.plot(own.budget, own["mean"], **style)
        band = {"color": style["color"], "alpha": 0.12, "linewidth": 0}
        ax.fill_between(own.budget, own.low, own.high, **band)
    ax.set_xscale("log")
    ticks = [n for n in (1, 2, 5, 10, 20, 50) if n <= table.budget.max()]
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel="settings tried", ylabel="best diversity that is valid enough")
    ax.set_ylim(-0.02, None)
    name_lines(ax)
    shared = table.groupby("rule").budget.max().min()
    best = table[table.budget == shared].set_index("rule")["mean"]
    ax.figure.says = (
        f"With {shared} settings tried of each, {rule_name(best.idxmax())} reaches the most "
        f"diversity on average, {best.max():.2f}, and {rule_name(best.idxmin())} the least, "
        f"{best.min():.2f}."
    )
    return ax

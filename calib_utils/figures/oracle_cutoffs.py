"""Figures of the cutoffs: frontiers, losses step by step, samplers compared (Fig. 6, 9)."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils.figures import CAUSES, explorer, legend_below, rule_style, unit_square
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.oracle_cutoffs import frontier_points
from calib_utils.studies.reporting import Page

_BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "frameon": False, "ncol": 3}


def first_step(page: Page, tasks: Iterable[str], task: str) -> HTML:
    """The first step of a task to play with; keeps the steps of all of them for the book."""
    steps = explorer.keep(page.model, tasks, page.end, page.store)
    return explorer.explorer(steps[task][0], page.weights)


def frontiers(table: pd.DataFrame, ceiling: float | None, ax: Axes | None = None) -> Axes:
    """Every setting of one task, each rule's Pareto frontier, and the ceiling, if any (Fig. 6, 9).

    The ceiling is the diversity of a perfectly ordered model that is uniform over G.
    """
    ax = ax or plt.gca()
    for rule, own in table.groupby("rule", sort=False):
        style = rule_style(rule)
        ax.scatter(own.validity, own.diversity, s=9, color=style["color"], alpha=0.3, linewidth=0)
        best = frontier_points(own)
        width = 2.6 if rule == "oracle_size" else 1.5
        ax.plot(best.validity, best.diversity, ".-", linewidth=width, **style)
    if ceiling is not None:
        ax.axhline(ceiling, color="black", linestyle=":", linewidth=1.2)
        ax.scatter([1], [ceiling], marker="*", s=130, color="black", zorder=4, clip_on=False)
    unit_square(ax, "validity", "diversity")
    ax.set_ylim(-0.03, 1.05)
    return ax


def frontier_grid(table: pd.DataFrame, facts: pd.DataFrame, tasks: list[str]) -> Figure:
    """`frontiers`, a panel per task, with one legend."""
    rows = -(-len(tasks) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(6.8, 2.9 * rows), sharex=True, sharey=True)
    ceilings = facts.set_index("task").uniform_over_g
    for ax, task in zip(axes.flat, tasks, strict=False):
        frontiers(table[table.task == task], ceilings[task], ax)
        ax.set_title(task)
        ax.label_outer()
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    legend_below(figure, (0, 0.06 if rows > 1 else 0.12, 1, 1))
    return figure


def adaptive(table: pd.DataFrame, hull: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Sequence precision against recall of one task's settings under the best of all cutoffs."""
    ax = ax or plt.gca()
    for rule, own in table[table.rule != "none"].groupby("rule", sort=False):
        ax.scatter(own.sequence_recall, own.sequence_precision, s=18, **rule_style(rule))
    recall = [0.0, *hull.sequence_recall]
    precision = [hull.sequence_precision.iloc[0], *hull.sequence_precision]
    ax.plot(recall, precision, "-", color="black", linewidth=1.4, label="best adaptive cutoff")
    unit_square(ax, "sequence recall", "sequence precision")
    ax.legend(**_BELOW)
    return ax


def step_losses(steps: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """-ln Div of some tasks, part by part over the steps: task, step, diversity_loss (nats)."""
    ax = ax or plt.gca()
    wide = steps.pivot_table(index="task", columns="step", values="diversity_loss", sort=False)
    shades = sns.color_palette("viridis", wide.shape[1])
    wide.plot.barh(stacked=True, ax=ax, color=shades, width=0.7)
    ax.set(xlabel="−ln diversity, nats", ylabel="")
    ax.invert_yaxis()
    ax.legend(title="step", loc="upper center", bbox_to_anchor=(0.45, -0.15), ncol=5, frameon=False)
    return ax


def split_bars(points: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Order, shape and size parts of the loss, a bar per task and decoder."""
    ax = ax or plt.subplots(figsize=(6.4, 1.2 + 0.36 * len(points)))[1]
    place, (left, below) = np.arange(len(points)), np.zeros((2, len(points)))
    for cause, (colour, hatch) in CAUSES.items():
        value = points[cause].to_numpy(dtype=float)
        start = np.where(value >= 0, left, below)
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
        ax.barh(place, value, left=start, label=cause, height=0.7, **style)
        left, below = left + value.clip(0), below + value.clip(None, 0)
    ax.set_yticks(place, points.task + "\n" + points.decoder, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("−ln(validity × diversity), nats")
    below_label = -0.6 / (ax.figure.get_figheight() * ax.get_position().height)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, below_label), ncol=3, frameon=False)
    return ax


def sampler_curves(table: pd.DataFrame, by: str, ax: Axes | None = None) -> Axes:
    """Val against Div as temperature rises, a line per value of the column `by`."""
    ax = ax or plt.gca()
    lines = ["-", "--", ":", "-."]
    for number, (name, curve) in enumerate(table.groupby(by, sort=False)):
        curve = curve.sort_values("temperature").dropna(subset="diversity")
        ax.plot(curve.validity, curve.diversity, lines[number % 4], marker=".", label=name)
    unit_square(ax, "validity", "diversity")
    ax.legend(frameon=False)
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
    ax.legend(**_BELOW)
    return ax

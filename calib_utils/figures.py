"""Figures: a table and an axes in, the axes out. Names, units and colours live here, once.

Knows matplotlib and seaborn; computes nothing that a table should hold.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils.controlled import profile_temperatures
from calib_utils.cutoffs import frontier_points

# Okabe and Ito's colours, told apart by most colour-blind readers.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
LENGTH_COLOURS = {0: PURPLE, 2: GREEN, 3: BLUE, 4: VERMILION}
FAMILY_LINES = {"unconstrained": "-", "sum at most 10": "--", "sum equals 10": ":", "states": "-"}
RULE_COLOURS = {
    "none": "#555555",
    "top_k": ORANGE,
    "top_p": BLUE,
    "min_p": GREEN,
    "oracle_size": VERMILION,
    "typical": PURPLE,
    "epsilon": SKY,
    "eta": "#8c6d31",
    "top_h": "#5b3a8c",
    "top_nsigma": "#7f7f00",
}
RULE_NAMES = {
    "none": "temperature alone",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "oracle_size": "oracle size",
    "top_h": "top-H",
    "top_nsigma": "top-nσ",
}
CAUSES = {"order": (VERMILION, "//"), "shape": (BLUE, ""), "size": ("#bbbbbb", "..")}
_MARKED_TEMPERATURES = (0.5, 1.0, 1.6)
TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def use_style() -> None:
    """The book's look: sized for a phone's width, type large enough after scaling down."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        rc={
            "figure.figsize": (6.4, 4.4),
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "axes.titlesize": 12,
            "axes.labelsize": 12,
            "legend.fontsize": 10,
            "lines.linewidth": 2,
            "figure.facecolor": "white",
        },
    )


def validity_diversity(curves: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Val against Div as temperature rises, a line per task (Fig. 5 left).

    Args:
        curves: rows of `evaluate` without cutoff, through `controlled.label_tasks`.
    """
    ax = ax or plt.gca()
    for (family, length), curve in curves.groupby(["family", "length"], sort=False):
        curve = curve.sort_values("temperature").dropna(subset="diversity")
        label = f"{family}, n = {length}" if length else family
        colour, line = LENGTH_COLOURS.get(length, "#555555"), FAMILY_LINES.get(family, "-.")
        ax.plot(curve.validity, curve.diversity, line, color=colour, label=label)
        marked = curve[curve.temperature.isin(_MARKED_TEMPERATURES)]
        sizes = 22 * marked.temperature
        ax.scatter(marked.validity, marked.diversity, s=sizes, color=colour, zorder=3)
    unit_square(ax, "validity", "diversity")
    ax.scatter([1], [1], marker="*", s=160, color="black", zorder=4, clip_on=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2, frameon=False)
    return ax


def temperature_response(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Validity and diversity of one task against temperature, no cutoff."""
    ax = ax or plt.gca()
    table = table.sort_values("temperature")
    ax.plot(table.temperature, table.validity, "o-", color=BLUE, label="validity")
    ax.plot(table.temperature, table.diversity, "s--", color=VERMILION, label="diversity")
    ax.set(xlabel="temperature", ylim=(-0.03, 1.03), yticks=TICKS)
    ax.legend(frameon=False)
    return ax


def answer_profile(answers: pd.DataFrame, temperature: float, ax: Axes | None = None) -> Axes:
    """Sorted probabilities of the valid answers at one temperature, with the uniform level and
    the invalid mass (Fig. 5 right, Fig. 10).

    Args:
        answers: rows of `answer_probabilities` of one task.
    """
    ax = ax or plt.gca()
    log_p = answers.loc[answers.temperature == temperature, "log_p"].to_numpy()
    p = np.sort(np.exp(log_p))[::-1]
    rank = np.arange(1, len(p) + 1)
    ax.fill_between(rank, p, step="mid", color=SKY, alpha=0.6, linewidth=0)
    ax.step(rank, p, where="mid", color=BLUE, linewidth=1.4)
    ax.axhline(1 / len(p), color="black", linestyle="--", linewidth=1.2)
    ax.set_yscale("log")
    ax.set_ylim(max(p[0] * 1e-6, 1e-12), 2)
    ax.set_xlim(0.5, len(p) + 0.5)
    tail = 1 - p.sum()
    ax.set_title(f"T = {temperature:g}   invalid tail {tail:.1%}")
    return ax


def answer_profiles(answers: pd.DataFrame, task: str) -> Figure:
    """`answer_profile` at the paper's four temperatures, a panel each."""
    figure, axes = plt.subplots(2, 2, figsize=(6.4, 5.6), sharex=True, sharey=True)
    rows = answers[answers.task == task]
    for ax, temperature in zip(axes.flat, profile_temperatures(task), strict=True):
        answer_profile(rows, temperature, ax)
    level = 1 / rows.answer.nunique()
    axes[0, 0].text(0.98, level * 1.3, "uniform", ha="right", **_across(axes[0, 0]))
    for ax in axes[1]:
        ax.set_xlabel("valid answers by rank")
    for ax in axes[:, 0]:
        ax.set_ylabel("probability")
    figure.tight_layout()
    return figure


def frontiers(table: pd.DataFrame, ceiling: float | None, ax: Axes | None = None) -> Axes:
    """Every setting of one task, each rule's Pareto frontier, and the ceiling (Fig. 6, 9).

    Args:
        table: rows of `evaluate` of one task.
        ceiling: diversity of a perfectly ordered model that is uniform over G; None draws none.
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
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.06 if rows > 1 else 0.12, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False)
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
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=3, frameon=False)
    return ax


def step_losses(steps: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """-ln Div of some tasks, part by part over the steps of an answer.

    Args:
        steps: columns task, step, diversity_loss (nats).
    """
    ax = ax or plt.gca()
    wide = steps.pivot_table(index="task", columns="step", values="diversity_loss", sort=False)
    shades = sns.color_palette("viridis", wide.shape[1])
    wide.plot.barh(stacked=True, ax=ax, color=shades, width=0.7)
    ax.set(xlabel="−ln diversity, nats", ylabel="")
    ax.invert_yaxis()
    ax.legend(title="step", loc="upper center", bbox_to_anchor=(0.45, -0.15), ncol=5, frameon=False)
    return ax


def split_bars(points: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Order, shape and size parts of the loss, a bar per task and decoder.

    Args:
        points: of `operating.operating_points`.
    """
    ax = ax or plt.subplots(figsize=(6.4, 1.2 + 0.36 * len(points)))[1]
    place, left = np.arange(len(points)), np.zeros(len(points))
    below = np.zeros(len(points))
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
    """Mean and band of `budgets.best_by_budget`, a line per sampler."""
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
    ax.set(
        xlabel="settings tried", ylabel="best diversity that is valid enough", ylim=(-0.02, None)
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=3, frameon=False)
    return ax


def unit_square(ax: Axes, x: str, y: str) -> None:
    """Both axes from 0 to 1 with a margin, and their names."""
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=TICKS, yticks=TICKS)
    ax.set(xlabel=x, ylabel=y)


def rule_style(rule: str) -> dict:
    """The colour and display name of a rule's family, the same through the book."""
    return {"color": RULE_COLOURS.get(rule, "#555555"), "label": RULE_NAMES.get(rule, rule)}


def _across(ax: Axes) -> dict:
    """Text placed by the share of the axes' width and the value on its y axis."""
    return {"transform": ax.get_yaxis_transform(), "fontsize": 10}


def two_lines(model: str) -> str:
    """A long model name broken after its second hyphen."""
    parts = model.split("-")
    return model if len(parts) < 3 else "-".join(parts[:2]) + "-\n" + "-".join(parts[2:])


def source_line(ax: Axes, *lines: str) -> Axes:
    """Which model file the figure's numbers come from, and how, in small print below it."""
    figure = ax.figure
    # Legends may have any height, and a layout places the panels only when it is drawn.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        # Saving widens the figure for the line: a legend at its edge would move there with it.
        if legend.get_bbox_to_anchor() is figure.bbox:
            legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
    bottom = (figure.get_tightbbox().y0 - 0.08) / figure.get_figheight()
    style = {"ha": "center", "va": "top", "fontsize": 8, "color": "#555555"}
    figure.text(0.5, bottom, "\n".join(lines), **style)
    return ax

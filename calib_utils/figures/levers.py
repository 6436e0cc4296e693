"""Figures of what a user can turn: levers with intervals over tasks, and tasks in the plane."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from calib_utils.core.rules import rule_name
from calib_utils.figures import GREY, VALID, name_lines, panels, rule_style, unit_square
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.levers import rule_of


def lever_dots(compared: pd.DataFrame) -> Figure:
    """`levers.compared`, a panel per level: mean diversity over tasks with its 95 % interval."""
    levels = list(dict.fromkeys(compared.level))
    order = list(compared[compared.level == levels[0]].lever)[::-1]
    figure, axes = panels(len(levels), len(levels) or 1, 0.7 + 0.36 * len(order), "diversity")
    for ax, level in zip(axes, levels, strict=False):
        for row in compared[compared.level == level].itertuples():
            y, colour = order.index(row.lever), rule_style(rule_of(row.lever))["color"]
            ax.plot([row.diversity_low, row.diversity_high], [y, y], color=colour, linewidth=1.6)
            ax.plot(row.diversity, y, "o", color=colour)
        ax.set_title(f"validity ≥ {level:g}")
        ax.set_xlim(0, None)
        ax.grid(visible=False, axis="y")
    best = [own.loc[own.diversity.idxmax()] for _, own in compared.groupby("level", sort=False)]
    found = (f"{row.level:g} {rule_name(rule_of(row.lever))}, {row.diversity:.2f}" for row in best)
    figure.says = f"The most diverse lever at each validity: {'; '.join(found)}."
    axes[0].set_yticks(range(len(order)), [rule_name(rule_of(lever)) for lever in order])
    return figure


def task_arrows(before: pd.DataFrame, after: pd.DataFrame) -> Figure:
    """Validity and diversity of every task (index) as it is, and after the best lever."""
    figure, ax = plt.subplots(figsize=(5.6, 5.2))
    shared = before.index.intersection(after.index)
    for task in shared:
        start, end = before.loc[task], after.loc[task]
        way = {"arrowstyle": "->", "color": GREY, "linewidth": 1}
        places = (end.validity, end.diversity), (start.validity, start.diversity)
        ax.annotate("", *places, arrowprops=way)
    for name, points, colour, marker in (
        ("as it is", before, GREY, "o"),
        ("at its best setting", after, VALID, "s"),
    ):
        style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 5}
        ax.plot(points.validity, points.diversity, label=name, **style)
    unit_square(ax, "validity", "diversity")
    name_lines(ax, 2)
    old, new = before.diversity[shared].mean(), after.diversity[shared].mean()
    figure.says = f"Mean diversity over {len(shared)} lists goes from {old:.2f} to {new:.2f}."
    return figure

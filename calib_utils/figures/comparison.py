"""Figures of one's own models, tasks and rules: frontier and split, and a training run.

Tables of `evaluate`, `split` and `comparison` in, figures out. Knows no model.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils.core.rules import rule_name
from calib_utils.figures import legend_below, rule_style, shades, task_name, unit_square
from calib_utils.figures import use_style as use_style
from calib_utils.figures.oracle_cutoffs import frontiers, stacked_parts
from calib_utils.results.storage import KEY
from calib_utils.studies.oracle_cutoffs import setting_text

_CURVES = {
    "validity": "validity",
    "diversity": "diversity",
    "order": "order part, nats",
    "shape": "shape part, nats",
}


def frontier_and_split(table: pd.DataFrame) -> Figure:
    """The frontier of every rule and, where the table has it, how each rule's best setting splits.

    Args:
        table: rows of `evaluate` or `split`, of one or several models and tasks: a row of panels
            for each. The best setting of a rule has the largest validity x diversity.
    """
    use_style()
    groups = list(table.groupby(["model", "task"], sort=False))
    wide = 1 + ("order" in table)
    options = {"figsize": (3.6 * wide, 0.6 + 2.9 * len(groups)), "squeeze": False}
    figure, grid = plt.subplots(len(groups), wide, **options)
    for ((model, task), own), axes in zip(groups, grid, strict=True):
        frontiers(own, None, axes[0])
        for rule, settings in own.groupby("rule", sort=False):
            dots = {"color": rule_style(rule)["color"], "s": 10}
            axes[0].scatter(settings.validity, settings.diversity, **dots)
        unit_square(axes[0], "validity", "diversity")
        axes[0].set_title(f"{model}\n{task_name(task)}", loc="left", fontsize=11)
        if wide > 1:
            _best_settings(own, axes[1])
    labels = dict(
        pair
        for ax in grid.flat
        for pair in zip(*reversed(ax.get_legend_handles_labels()), strict=True)
    )
    legend_below(figure, 3, list(labels.values()), list(labels))
    return figure


def _best_settings(table: pd.DataFrame, ax: Axes) -> None:
    worth = (table.validity * table.diversity).fillna(-1.0)
    best = table.loc[worth.groupby(table.rule, sort=False).idxmax()]
    stacked_parts(best, range(len(best)), ax)
    ax.set_yticks(range(len(best)), _named(best), fontsize=9)
    ax.set_ylim(len(best) - 0.5, -0.5)
    ax.set_xlabel("−ln(validity × diversity), nats")
    ax.grid(visible=False, axis="y")


def _named(settings: pd.DataFrame) -> pd.Series:
    return setting_text(settings.assign(rule=[rule_name(n) for n in settings.rule]))


def training(table: pd.DataFrame) -> Figure:
    """Validity, diversity, order and shape along training, a line per setting: means over tasks.

    Args:
        table: rows of `evaluate_many` with a column `step`; without the split, two panels.
    """
    use_style()
    shown = [name for name in _CURVES if name in table]
    means = table.groupby([*KEY, "step"], sort=False, dropna=False)[shown].mean().reset_index()
    settings = list(means.groupby(KEY, sort=False, dropna=False))
    options = {"sharex": True, "figsize": (6.8, 0.6 + 2.3 * (len(shown) // 2))}
    figure, axes = plt.subplots(len(shown) // 2, 2, **options)
    for ax, name in zip(axes.flat, shown, strict=True):
        for (_, own), colour in zip(settings, shades(len(settings)), strict=True):
            own = own.sort_values("step")
            label = _named(own.head(1)).item()
            ax.plot(own.step, own[name], ".-", color=colour, label=label)
        ax.set_ylabel(_CURVES[name])
        ax.set_xlabel("training step" if ax.get_subplotspec().is_last_row() else "")
    legend_below(figure, 3)
    return figure

"""Figures of the controlled tasks: validity, diversity, answers under temperature (Fig. 5, 10)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils import figures
from calib_utils.figures import INK, TICKS, VALID, VALID_RARE, name_lines, panels, shades
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.controlled_tasks import profile_temperatures

LENGTH_COLOURS = dict(zip((0, 2, 3, 4), (INK, *shades(3)), strict=True))
FAMILY_LINES = {"unconstrained": "-", "sum at most 10": "--", "sum equals 10": ":", "states": "-"}
_MARKED_TEMPERATURES = (0.5, 1.0, 1.6)


def validity_diversity(curves: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Val against Div as temperature rises, a line per task of `temperature_curves` (Fig. 5)."""
    ax = ax or plt.gca()
    ax.figure.is_card = True
    products = {}
    for (family, length), curve in curves.groupby(["family", "length"], sort=False):
        curve = curve.sort_values("temperature").dropna(subset="diversity")
        label = f"{length} digits, {family}" if length else "US states"
        colour, line = LENGTH_COLOURS.get(length, INK), FAMILY_LINES.get(family, "-.")
        ax.plot(curve.validity, curve.diversity, line, color=colour, label=label)
        marked = curve[curve.temperature.isin(_MARKED_TEMPERATURES)]
        sizes = 22 * marked.temperature
        products[label] = max([0.0, *(curve.validity * curve.diversity)])
        ax.scatter(marked.validity, marked.diversity, s=sizes, color=colour, zorder=3)
    figures.unit_square(ax, "validity", "diversity")
    ax.scatter([1], [1], marker="*", s=160, color=INK, zorder=4, clip_on=False)
    name_lines(ax, 2)
    found = ", ".join(f"{label} {product:.2f}" for label, product in products.items())
    ax.figure.says = f"The best product of validity and diversity, at most 1: {found}."
    return ax


def temperature_response(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Validity and diversity of one task against temperature, no cutoff."""
    ax = ax or plt.gca()
    table = table.sort_values("temperature")
    ax.plot(table.temperature, table.validity, "o-", color=VALID, label="validity")
    ax.plot(table.temperature, table.diversity, "s--", color=INK, label="diversity")
    ax.set(xlabel="temperature", ylim=(-0.03, 1.03), yticks=TICKS)
    name_lines(ax)
    cold, hot = table.iloc[0], table.iloc[-1]
    ax.figure.says = (
        f"From temperature {cold.temperature:g} to {hot.temperature:g} validity goes from "
        f"{cold.validity:.2f} to {hot.validity:.2f}, diversity from {cold.diversity:.2f} to "
        f"{hot.diversity:.2f}."
    )
    return ax


def answer_profile(answers: pd.DataFrame, temperature: float, ax: Axes | None = None) -> Axes:
    """Sorted probabilities of one task's valid answers, the uniform level, the invalid mass."""
    ax = ax or plt.gca()
    p = np.sort(np.exp(answers.log_p[answers.temperature == temperature]))[::-1]
    rank = np.arange(1, len(p) + 1)
    ax.fill_between(rank, p, step="mid", color=VALID_RARE, alpha=0.6, linewidth=0)
    ax.step(rank, p, where="mid", color=VALID, linewidth=1.4)
    ax.axhline(1 / len(p), color=INK, linestyle="--", linewidth=1.2, label="uniform")
    ax.set_yscale("log")
    ax.set(xlim=(0.5, len(p) + 0.5), ylim=(max(p[0] * 1e-6, 1e-12), 2))
    ax.set_title(f"T = {temperature:g}: invalid {1 - p.sum():.1%}")
    return ax


def answer_profiles(answers: pd.DataFrame, task: str, temperatures: Sequence[float] = ()) -> Figure:
    """`answer_profile` at temperatures, by default the paper's (Fig. 5 right, 10), a panel each."""
    temperatures = temperatures or profile_temperatures(task)
    figure, axes = panels(len(temperatures), 2, 2.6, "valid answers by rank", "probability")
    rows = answers[answers.task == task]
    for ax, temperature in zip(axes, temperatures, strict=True):
        answer_profile(rows, temperature, ax)
    name_lines(axes[0])
    told = ("{1} at {0}".format(*ax.get_title().split(": invalid ")) for ax in axes)
    figure.says = f"Invalid answers have a probability of {', '.join(told)}."
    return figure

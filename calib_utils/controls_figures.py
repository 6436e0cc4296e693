"""The teaching figure of the controls: one step of each law, and its answers under temperature.

Tables of `controls` in, a figure out. Knows matplotlib and the book's style; computes nothing.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils.figures import BLUE, VERMILION

_RANKS, _LEAST = 24, 1e-4  # shown of a step
_BARS = {"valid": {"color": BLUE}, "invalid": {"facecolor": VERMILION, "hatch": "////"}}


def laws_under_temperature(steps: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """A row per law: the step's ranked probabilities, and Val and Div as temperature rises.

    Args:
        steps: of `controls.first_steps`.
        curves: of `controls.temperature_curves`, for the same task and laws.
    """
    laws = list(dict.fromkeys(steps.law))
    height = 0.9 + 1.45 * len(laws)
    figure, axes = plt.subplots(
        len(laws), 2, figsize=(6.4, height), sharex="col", sharey="col", squeeze=False
    )
    for (left, right), law in zip(axes, laws, strict=True):
        step_profile(steps[steps.law == law], left)
        left.set_title(law, loc="left", fontweight="bold")
        validity_and_diversity(curves[curves.law == law], right)
    axes[-1, 0].set_xlabel("rank at the first step")
    axes[-1, 1].set_xlabel("temperature")
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1), h_pad=0.5)
    for column, middle in enumerate((0.3, 0.78)):
        handles, names = axes[-1, column].get_legend_handles_labels()
        place = {"loc": "lower center", "bbox_to_anchor": (middle, 0), "frameon": False, "ncol": 2}
        figure.legend(handles, names, handlelength=1.6, **place)
    return figure


def step_profile(step: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Probabilities of one step by rank on a logarithmic scale, valid tokens apart from invalid.

    Args:
        step: rank, p, n_answers of one law; ranks after the first 24 are in the printed mass only.
    """
    ax = ax or plt.gca()
    is_valid = step.n_answers > 0
    shown = (step["rank"] < _RANKS) & (step.p > 0)
    for (name, style), chosen in zip(_BARS.items(), (is_valid, ~is_valid), strict=True):
        own = step[shown & chosen]
        style = {"width": 0.85, "linewidth": 0, "edgecolor": "white", "label": name, **style}
        ax.bar(own["rank"] + 1, own.p, **style)
    ax.set_title(f"invalid {step.p[~is_valid].sum():.1%}", loc="right", fontsize=10)
    ax.set_yscale("log")
    ax.set(ylabel="p", ylim=(_LEAST, 1))
    ax.set_yticks([1, 0.01, _LEAST], ["1", ".01", ".0001"])
    ax.set(xticks=[1, 10, 20], xlim=(0.2, _RANKS + 0.8))
    ax.minorticks_off()
    ax.grid(axis="x", visible=False)
    return ax


def validity_and_diversity(curve: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Validity and diversity of one law against temperature, T = 1 marked."""
    ax = ax or plt.gca()
    curve = curve.sort_values("temperature")
    ax.plot(curve.temperature, curve.validity, "-", color=BLUE, label="validity")
    ax.plot(curve.temperature, curve.diversity, "--", color="black", label="diversity")
    ax.axvline(1, color="#888888", linewidth=1, zorder=0)
    ax.set(ylim=(-0.05, 1.05), xticks=[0, 1, 2, 3], yticks=[0, 0.5, 1])
    at_one = curve[curve.temperature == 1].iloc[0]
    text = f"T = 1: Val {at_one.validity:.2f}, Div {at_one.diversity:.2f}"
    ax.set_title(text, loc="right", fontsize=10)
    return ax

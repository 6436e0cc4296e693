"""The teaching figure of the controls: one step of each law, and its answers under temperature.

Tables of `controls` in, a figure out. Knows matplotlib and the book's style; computes nothing.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from calib_utils.figures import BLUE, VERMILION, temperature_response

_RANKS = 20  # shown of a step
_VALID = {"facecolor": BLUE, "edgecolor": BLUE}
_INVALID = {"facecolor": VERMILION, "hatch": "////", "edgecolor": "white"}


def laws_under_temperature(steps: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """A row per law: the step's ranked probabilities, and Val and Div as temperature rises.

    Args:
        steps: of `controls.first_steps`.
        curves: of `controls.temperature_curves`, for the same task and laws.
    """
    laws = list(dict.fromkeys(steps.law))
    size = (6.4, 1.0 + 1.45 * len(laws))
    figure, axes = plt.subplots(len(laws), 2, figsize=size, sharex="col", squeeze=False)
    for (left, right), law in zip(axes, laws, strict=True):
        step_profile(steps[steps.law == law], left)
        left.set_title(law, loc="left", fontweight="bold")
        temperature_response(curves[curves.law == law], right)
        right.set(xlabel="", xticks=[0, 1, 2, 3], yticks=[0, 0.5, 1])
        right.axvline(1, color="#999999", linewidth=1, zorder=0)
        for line in right.lines:
            line.set_markersize(0)
        right.get_legend().remove()
    axes[-1, 0].set_xlabel("rank at the first step")
    axes[-1, 1].set_xlabel("temperature")
    lines, names = axes[0, 1].get_legend_handles_labels()
    patches = [Patch(**_VALID), Patch(**_INVALID)]
    figure.tight_layout(rect=(0, 0.7 / size[1], 1, 1), h_pad=0.4)
    place = {"loc": "lower center", "frameon": False, "ncol": 2, "handlelength": 1.6}
    figure.legend(patches, ["valid", "invalid"], bbox_to_anchor=(0.28, 0), **place)
    figure.legend(lines, names, bbox_to_anchor=(0.76, 0), **place)
    return figure


def step_profile(step: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Probabilities of one step by rank, valid tokens apart from invalid ones.

    Args:
        step: rank, p, n_answers of one law.
    """
    ax = ax or plt.gca()
    shown = step[step["rank"] < _RANKS]
    for valid, style in ((True, _VALID), (False, _INVALID)):
        own = shown[(shown.n_answers > 0) == valid]
        ax.bar(own["rank"] + 1, own.p, width=0.85, linewidth=0.5, **style)
    ax.set(ylabel="p", xticks=[1, 5, 10, 15, 20], xlim=(0.2, _RANKS + 0.8))
    ax.grid(axis="x", visible=False)
    return ax

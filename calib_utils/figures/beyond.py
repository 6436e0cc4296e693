"""Figures beyond the controlled tasks: one question asked many times, programs by probability."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils.core.metrics import as_text
from calib_utils.figures import INK, INVALID, PALE, VALID, legend_below, panels
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.beyond import Repeats, shortened

_LONGEST = 24  # characters of an answer on an axis


def answer_bars(repeats: Repeats, top: int = 10) -> Axes:
    """How often each answer came (Fig. 11): the most frequent, the rest, and what is unseen.

    The last bar estimates how many of as many further answers would not be among these.
    """
    counts, n = repeats.counts, int(repeats.counts.sum())
    once = int((counts == 1).sum())
    several = counts[counts > 1]
    shown, rest = several.iloc[:top], several.iloc[top:]
    bars = [
        # A dollar sign would start a formula.
        (shortened(answer, _LONGEST).replace("$", r"\$"), int(count), VALID)
        for answer, count in shown.items()
    ]
    if len(rest):
        bars.append((f"{len(rest)} others, more than once", int(rest.sum()), PALE))
    if once:
        bars.append((f"{once} answers, once each", once, PALE))
    bars.append(("not among these, of as many more", n * repeats.unseen.value, "none"))
    _, ax = plt.subplots(figsize=(6.4, 1.3 + 0.34 * len(bars)))
    place = np.arange(len(bars))
    labels, widths, colours = zip(*bars, strict=True)
    edges = [INK if colour == "none" else colour for colour in colours]
    ax.barh(place, widths, color=colours, edgecolor=edges, height=0.75)
    for y, width in zip(place[:-1], widths[:-1], strict=True):
        ax.text(width, y, f" {width}", va="center", fontsize=10)
    low, high = n * repeats.unseen.low, n * repeats.unseen.high
    ax.plot([low, high], [place[-1]] * 2, color=INK, marker="|", linewidth=1.5)
    ax.set_yticks(place, labels, fontsize=10)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    told = as_text(*repeats.effective, digits=1, whole_from=100)
    label = f"answers of {n}\neffective number {told}"
    ax.set(xlabel=label, xlim=(0, 1.12 * max(*widths, high)))
    first = f"{shortened(str(counts.index[0]), _LONGEST)}, {counts.iloc[0]} of {n} times"
    ax.figure.says = f"The commonest answer is {first}; the effective number of answers is {told}."
    return ax


def program_ranks(ranked: pd.DataFrame) -> Figure:
    """Programs of each problem of `ranked_programs`, passed or failed (Fig. 12)."""
    problems = list(dict.fromkeys(ranked.problem))
    figure, axes = panels(len(problems), 3, 1.6, "replies by rank", "ln p")
    for ax, problem in zip(axes, problems, strict=False):
        own = ranked[ranked.problem == problem]
        for label, colour, marker in (("failed", INVALID, "x"), ("passed", VALID, "o")):
            part = own[own.passed == (label == "passed")]
            style = {"color": colour, "marker": marker, "label": label, "s": 22}
            ax.scatter(part["rank"], part.log_p, linewidth=1.4, **style)
        ax.set_title(problem, fontsize=10, pad=3)
        ax.tick_params(labelsize=10)
    # One scale for all, from the top of what a log-probability can be.
    low = float(ranked.log_p.min()) if len(ranked) else -1.0
    axes[0].set_ylim(1.06 * low, -0.04 * low)
    legend_below(figure, 2)
    likeliest = ranked[ranked["rank"] == 1].passed
    figure.says = (
        f"{int(ranked.passed.sum())} of {len(ranked)} different replies pass; the likeliest reply "
        f"passes on {int(likeliest.sum())} of {len(problems)} problems."
    )
    return figure
